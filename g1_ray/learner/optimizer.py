"""AdamW over the shards of this rank, and its state on disk: whole tensors, so that any number of ranks can go on.

It works on plain tensors that share memory with FSDP's shards: AdamW goes element by element, and distributed tensors
would only slow it down. Matrices decay, vectors (norms, biases) don't.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from g1_ray.config_optimizer import DecayingOptimizerConfig

_KINDS = ("master", "exp_avg", "exp_avg_sq")
"""What a checkpoint keeps of every parameter that is trained."""


@dataclass(frozen=True)
class Trained:
    """A parameter that is trained, and this rank's shard of it, which the optimizer works on."""

    name: str
    parameter: DTensor
    shard: nn.Parameter


class Optimizer:
    """Over what `fully_shard` has sharded in a model. `grad_norm`, `step`, `save` and `load` are collective."""

    def __init__(self, model: nn.Module, config: DecayingOptimizerConfig) -> None:
        self.config = config
        self.trained = [
            Trained(name, parameter, nn.Parameter(parameter.detach().to_local()))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        matrices = [t.shard for t in self.trained if t.parameter.ndim > 1]
        vectors = [t.shard for t in self.trained if t.parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        for shard in (*matrices, *vectors):
            moments = {kind: torch.zeros_like(shard) for kind in _KINDS[1:]}
            self._adamw.state[shard] = {"step": torch.zeros((), device=shard.device), **moments}
        self.steps = 0

    def grad_norm(self) -> float:
        """Of the whole gradient, of which each rank has a part."""
        gradients = [t.parameter.grad.to_local() for t in self.trained if t.parameter.grad is not None]
        squares = torch.stack([norm.double().square() for norm in torch._foreach_norm(gradients)]).sum()
        dist.all_reduce(squares)
        return math.sqrt(float(squares)) if squares >= 0 else math.nan

    def step(self, grad_norm: float) -> float:
        """Clips the gradient, moves the parameters and forgets the gradient; the learning rate."""
        for t in self.trained:
            if t.parameter.grad is not None:
                t.shard.grad = t.parameter.grad.to_local()
        if grad_norm > self.config.max_grad_norm:
            gradients = [t.shard.grad for t in self.trained if t.shard.grad is not None]
            torch._foreach_mul_(gradients, self.config.max_grad_norm / grad_norm)
        self.steps += 1
        lr = self.config.lr_at(self.steps)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self.forget()
        return lr

    def forget(self) -> None:
        """Drops the gradient."""
        for t in self.trained:
            t.parameter.grad = t.shard.grad = None

    def _part(self, t: Trained, kind: str) -> torch.Tensor:
        part: torch.Tensor = t.shard.detach() if kind == "master" else self._adamw.state[t.shard][kind]
        return part

    def save(self, folder: Path, write: bool) -> dict[str, torch.Tensor]:
        """Writes a file of whole tensors for each kind, on the rank that is to; gives it the master weights."""
        masters: dict[str, torch.Tensor] = {}
        for kind in _KINDS:
            tensors = {}
            for t in self.trained:
                like = t.parameter
                part = DTensor.from_local(
                    self._part(t, kind),
                    like.device_mesh,
                    like.placements,
                    run_check=False,
                    shape=like.shape,
                    stride=like.stride(),
                )
                tensor = whole(part)
                if write:
                    tensors[t.name] = tensor.to("cpu", copy=True)
            if write:
                save_file(tensors, folder / f"{kind}.safetensors")
            masters = masters or tensors
        return masters

    def load(self, folder: Path, steps: int) -> None:
        """Goes on after so many steps, with what `save` wrote. Raises `ValueError` for that of another model."""
        for kind in _KINDS:
            with safe_open(folder / f"{kind}.safetensors", "pt") as file:
                if set(file.keys()) != {t.name for t in self.trained}:
                    raise ValueError(f"{folder}: trains other parameters; resume with the config it was written with")
                for t in self.trained:
                    tensor, like = file.get_tensor(t.name), t.parameter
                    if tensor.shape != like.shape:
                        raise ValueError(f"{folder}: {t.name} is {list(tensor.shape)}, not {list(like.shape)}")
                    tensor = tensor.to(t.shard.device)
                    parts = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
                    self._part(t, kind).copy_(parts.to_local())
        self.steps = steps
        for its in self._adamw.state.values():
            its["step"].fill_(steps)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """The full tensor, without gradient; it may share memory with the parameter. Collective where that is sharded."""
    tensor: torch.Tensor = parameter.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
