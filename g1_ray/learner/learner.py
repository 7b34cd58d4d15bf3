"""The learner: one rank of FSDP2, that makes a new policy of every batch.

    packs of this rank -> pictures -> for each pack: log-probabilities, loss, backward -> clip -> AdamW -> version + 1

Every method that talks of all ranks is collective: all ranks call it, in the same order. The loss is normalised by
the tokens of the whole batch (`Pack.weights`), so gradients are summed over packs and ranks, and never averaged:
any number of ranks and any packing makes the same update. One rank goes through the same code as many.
"""

import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

from envs import State
from g1_ray.config import RunConfig
from g1_ray.files import read_json, write_json
from g1_ray.learner.loss import LOSSES, Tokens, effective_sample_share, k3_kl
from g1_ray.learner.optimizer import Optimizer, whole
from g1_ray.learner.packs import Pack, packs_in_order, packs_of
from g1_ray.learner.policy import Inputs, Picture, Policy, load_model
from g1_ray.learner.sharding import let_go, shard, stays_gathered
from g1_ray.models.adapters import ADAPTER, WEIGHTS, tensor_name, write_config
from g1_ray.models.card import Card
from g1_ray.models.chat import Chat
from g1_ray.models.find import model_path
from g1_ray.models.manifest import fault_of
from g1_ray.models.weights import save_model, vision_tower
from g1_ray.runs import checkpoints
from g1_ray.types import Batch, Floats, Ints, Prompt, Sample, StepReport

log = logging.getLogger(__name__)
_PICTURES = 64
"""Pictures that a frozen vision tower looks at in one call."""


class Learner:
    """One rank. `setup` before anything else, `close` at the end."""

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        if world_size != config.learner.num_ranks:
            raise ValueError(f"world_size = {world_size}: learner.num_ranks is {config.learner.num_ranks}")
        self.config, self.rank, self.world_size = config, rank, world_size
        self.version = 0
        self.num_skipped = 0

    def setup(self, address: str) -> int:
        """Joins the other ranks at `address` (host:port of rank 0) and loads the model, sharded. Collective.

        Gives the size of a checkpoint, bytes.
        """
        on_gpu = self.config.learner.gpus > 0
        if on_gpu and not torch.cuda.is_available():
            raise ValueError("learner.gpus > 0, and no GPU is to be seen; set learner.gpus = 0 to train on the CPU")
        self.device = torch.device("cuda", self.rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", init_method=f"tcp://{address}", rank=self.rank, world_size=self.world_size
        )
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        model = self.config.model
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self.chat = Chat(model_path(model.path))
        policy = self._loaded(trained=True)
        about = mesh, self.device, self.config, stays_gathered(policy, self.config)
        self.policy = shard(policy, *about)
        self.reference = shard(self._loaded(trained=False), *about) if self.config.has_reference else None
        self.optimizer = Optimizer(self.policy.model, self.config.optimizer)
        self.loss = LOSSES.find(self.config.algorithm.loss)
        log.info("rank %d of %d has %s", self.rank, self.world_size, model.path)
        trained = sum(t.parameter.numel() for t in self.optimizer.trained)
        return 12 * trained + self.dtype.itemsize * sum(p.numel() for p in self.policy.parameters())

    def _loaded(self, trained: bool) -> Policy:
        return Policy(load_model(self.config.model, self.config.seed, trained), self.config.rollout.temperature)

    # A step

    def step(self, batch: Batch) -> StepReport:
        """Trains on a batch. A loss or gradient that is not finite, or a batch without samples, is skipped and counted.

        Collective: all ranks are given the same batch, and each takes its own packs.
        """
        start = time.perf_counter()
        packs = packs_of(batch, self.config, self.chat.image_token_id)[self.rank]
        if not packs:
            return self._skip(batch, "no samples in the batch", {})
        pictures = self._look_at(packs)
        sums = self._total([self._accumulate(pack, pictures) for pack in packs])
        if self.reference is not None:
            let_go(self.reference)  # no backward pass does
        grad_norm = self.optimizer.grad_norm()
        metrics = self._metrics(sums, grad_norm, len(packs))
        if not math.isfinite(sums["loss"]) or not math.isfinite(grad_norm):
            self.optimizer.forget()
            return self._skip(batch, f"loss {sums['loss']}, gradient norm {grad_norm}", metrics)
        metrics["lr"] = self.optimizer.step(grad_norm)
        self.version += 1
        metrics["step_s"] = time.perf_counter() - start
        metrics["tokens_per_s"] = metrics["packed_tokens"] / metrics["step_s"]
        log.debug("step %d: %s", self.version, metrics)
        return StepReport(self.version, metrics, batch.origin)

    def _skip(self, batch: Batch, why: str, metrics: dict[str, float]) -> StepReport:
        self.num_skipped += 1
        return StepReport(self.version, metrics | {"skipped_steps": float(self.num_skipped)}, batch.origin, why)

    def _look_at(self, packs: Sequence[Pack]) -> dict[State, Picture]:
        """What a frozen vision tower makes of each different picture."""
        pictures: dict[State, Picture] = {}
        if not self.config.model.vision_is_frozen:
            return pictures
        states = list(dict.fromkeys(state for pack in packs for state in pack.states))
        for i in range(0, len(states), _PICTURES):
            some = states[i : i + _PICTURES]
            pixel_values, grids = self.chat.pixel_values(some)
            with torch.no_grad():
                made = self.policy.encode(
                    torch.from_numpy(pixel_values).to(self.device), torch.from_numpy(grids).to(self.device)
                )
            pictures.update(zip(some, made, strict=True))
        return pictures

    def _inputs(self, pack: Pack, pictures: Mapping[State, Picture]) -> Inputs:
        if self.config.model.vision_is_frozen:
            shown = [pictures[state] for state in pack.states]
            grids = np.array([picture.grid for picture in shown], np.int64).reshape(-1, 3)
            return self.policy.inputs(pack, grids, pictures=shown, device=self.device, dtype=self.dtype)
        pixel_values, grids = self.chat.pixel_values(pack.states) if pack.states else self.chat.no_picture()
        return self.policy.inputs(pack, grids, pixel_values=pixel_values, device=self.device, dtype=self.dtype)

    def _accumulate(self, pack: Pack, pictures: Mapping[State, Picture]) -> dict[str, torch.Tensor]:
        """Adds the gradient of a pack's loss, and gives sums over its sampled tokens, by name."""
        inputs = self._inputs(pack, pictures)
        reference_logprobs = self._reference_logprobs(inputs)
        logprobs = self.policy(inputs)
        inference_logprobs, advantages, weights, answers = (
            torch.from_numpy(array).to(self.device)
            for array in (pack.inference_logprobs, pack.advantages, pack.weights, pack.answers.astype(np.int64))
        )
        config = self.config.algorithm
        made = self.loss(Tokens(logprobs, inference_logprobs, advantages, answers, pack.num_answers), config)
        losses, kl = made.losses, torch.zeros_like(logprobs)
        if reference_logprobs is not None:
            kl = k3_kl(logprobs, reference_logprobs)
            losses = losses + config.kl_coef * kl
        loss = (losses * weights).sum()
        loss.backward()
        columns = {
            "loss": losses.detach() * weights,
            "tokens": torch.ones_like(made.ratios),
            "ratio": made.ratios,
            "ratio_squared": made.ratios**2,
            "clip_low": made.clipped_low,
            "clip_high": made.clipped_high,
            "tis": made.tis_weights,
            "tis_capped": made.tis_weights < made.ratios,
            "kl": kl.detach(),
            "inference_kl": k3_kl(inference_logprobs, logprobs.detach()),
            "entropy": -logprobs.detach(),
        }
        sums = {name: column.double().sum() for name, column in columns.items()}
        return sums | {"packed_tokens": sums["loss"].new_tensor(float(len(pack.token_ids)))}

    def _reference_logprobs(self, inputs: Inputs) -> torch.Tensor | None:
        """[T] under the model that the run started from. With adapters: under the model without them."""
        if not self.config.algorithm.kl_coef:
            return None
        with torch.no_grad():
            if self.reference is not None:
                return self.reference(inputs)
            self._scale_adapters(0.0)
            logprobs: torch.Tensor = self.policy(inputs)
            self._scale_adapters(1.0)
            return logprobs

    def _scale_adapters(self, scale: float) -> None:
        for _, module in self._adapted():
            module.set_scale(ADAPTER, scale)

    def _total(self, sums: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, float]:
        """Of all packs of all ranks."""
        first, *others = (torch.stack(list(of_pack.values())) for of_pack in sums)
        total = sum(others, first)
        dist.all_reduce(total)
        return dict(zip(sums[0], total.tolist(), strict=True))

    def _metrics(self, sums: Mapping[str, float], grad_norm: float, num_packs: int) -> dict[str, float]:
        """Sums as they are, or as means over the sampled tokens."""
        tokens = max(1.0, sums["tokens"])
        metrics = {"loss": sums["loss"], "grad_norm": grad_norm, "packs": float(num_packs * self.world_size)}
        metrics |= {"tokens": sums["tokens"], "packed_tokens": sums["packed_tokens"]}
        metrics |= {name: value / tokens for name, value in sums.items() if name not in {*metrics, "ratio_squared"}}
        metrics["ess"] = effective_sample_share(sums["ratio"], sums["ratio_squared"], tokens)
        return metrics

    def logprobs(self, sequences: Sequence[tuple[Prompt, Ints]]) -> list[Floats]:
        """The log-probabilities [C] of each completion after its prompt. Collective; all ranks get all of them."""
        samples = [_to_score(prompt, completion) for prompt, completion in sequences]
        packs = packs_in_order(samples, self.config.learner.tokens_per_pack, self.chat.image_token_id)
        pictures = self._look_at(packs)
        scored: list[Floats] = []
        for pack in packs:
            with torch.no_grad():
                logprobs = self.policy(self._inputs(pack, pictures)).cpu().numpy()
            scored += np.split(logprobs, np.flatnonzero(np.diff(pack.answers)) + 1)
        let_go(self.policy)
        return scored

    # Weights and checkpoints

    def weights(self, frozen_tower: bool = True) -> dict[str, torch.Tensor]:
        """On rank 0 the whole model by its Hugging Face names, on the CPU in the model's dtype, adapters merged.

        `frozen_tower` False: without a vision tower that never changes, which engines have. Collective; other ranks
        get nothing.
        """
        tower = vision_tower(self.policy.model) if self.config.model.vision_is_frozen and not frozen_tower else None
        left_out = {id(parameter) for parameter in tower.parameters()} if tower is not None else set()
        weights, done = {}, set()
        for name, tensor in itertools.chain(self._changing(), self._others()):
            if name in done or id(tensor) in left_out:
                continue
            done.add(name)
            tensor = whole(tensor)
            if self.rank == 0:
                weights[name] = tensor.to("cpu", self.dtype, copy=True)
        return weights

    def _others(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters but those of adapters, by their Hugging Face names."""
        for name, parameter in self.policy.model.named_parameters():
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), parameter

    def adapter(self) -> dict[str, torch.Tensor]:
        """On rank 0 the LoRA adapter by the names of peft's files, on the CPU in the model's dtype: as it is computed
        with. Collective; other ranks get nothing.
        """
        parts = {tensor_name(t.name): whole(t.parameter) for t in self.optimizer.trained}
        return {name: part.to("cpu", self.dtype) for name, part in parts.items()} if self.rank == 0 else {}

    def _changing(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What training changes, by its Hugging Face name, in float32, an adapter's layers whole. Collective.

        An adapter is added to its layer as that is computed with (its dtype holds it exactly), and not rounded before
        the sum is.
        """
        if not self.config.model.lora.rank:
            for t in self.optimizer.trained:
                yield t.name, t.parameter
        for name, module in self._adapted():
            down, up = (whole(part[ADAPTER].weight) for part in (module.lora_A, module.lora_B))
            yield f"{name}.weight", whole(module.base_layer.weight).float() + module.scaling[ADAPTER] * (up @ down)

    def _adapted(self) -> list[tuple[str, Any]]:
        """The modules that have an adapter, by name."""
        return [(name, module) for name, module in self.policy.model.named_modules() if hasattr(module, "lora_A")]

    def save(self, folder: str | Path, extra: Mapping[str, Any] | None = None) -> None:
        """Writes a checkpoint (see `checkpoints`) that any number of ranks can load, with `extra`, as JSON. Collective.

        Its root is a model as `from_pretrained` and vLLM load it, adapters merged.
        """
        folder = Path(folder)
        with checkpoints.published(folder) if self.rank == 0 else nullcontext(folder) as beside:
            self._save_model(beside)
            if self.rank == 0:
                (beside / "learner").mkdir()
            masters = self.optimizer.save(beside / "learner", write=self.rank == 0)
            if self.rank == 0 and self.config.model.lora.rank:
                self._save_adapter(beside / "adapter", masters)
            if self.rank == 0:
                state = {"version": self.version, "skipped": self.num_skipped, "extra": dict(extra or {})}
                state["config"] = self.config.model_dump(mode="json")
                write_json(beside / "learner" / "state.json", state, indent=1)
                self._card().write(beside, f"policy version {self.version}, after as many steps")
        dist.barrier()
        log.info("wrote %s", folder)

    def _save_model(self, folder: Path) -> None:
        model, weights = self.policy.model, self.weights()
        if self.rank == 0:
            save_model(model, self.chat.processor, folder, weights)
            model.config.dtype = self.dtype
            model.config.save_pretrained(folder)

    def _save_adapter(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        folder.mkdir()
        save_file({tensor_name(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
        model = self.config.model
        write_config(folder, model.lora.rank, model.lora.alpha, [name for name, _ in self._adapted()], model.path)

    def _card(self) -> Card:
        config = self.config
        algorithm, rank = config.algorithm, config.model.lora.rank
        about = f"{algorithm.advantage}, loss {algorithm.loss}, ratios by {algorithm.ratio}"
        how = f"reinforcement learning ({about}{f', LoRA of rank {rank}' if rank else ''})"
        return Card(config.name, config.model.path, how, {game.name: game.task() for game in config.games})

    def load(self, folder: str | Path, checked: bool = False) -> dict[str, Any]:
        """Goes on from a checkpoint; gives its `extra`. Collective. `checked`: somebody has read all of it already.

        Raises `ValueError` for one that is broken, or of another model.
        """
        folder = Path(folder)
        if not checked and (fault := fault_of(folder)):
            raise ValueError(fault)
        state = read_json(folder / "learner" / "state.json", _State, most=1 << 28)
        self.version, self.num_skipped = state["version"], state["skipped"]
        self.optimizer.load(folder / "learner", self.version)
        extra: dict[str, Any] = state["extra"]
        return extra

    def close(self) -> None:
        """Leaves the other ranks."""
        dist.destroy_process_group()


class _State(BaseModel):
    """learner/state.json of a checkpoint."""

    version: int
    skipped: int
    extra: dict[str, Any]


def _to_score(prompt: Prompt, completion: Ints) -> Sample:
    token_ids = np.concatenate([prompt.token_ids, completion]).astype(np.int32)
    zeros = np.zeros(len(token_ids), np.float32)
    return Sample(
        token_ids=token_ids,
        loss_mask=np.arange(len(token_ids)) >= len(prompt.token_ids),
        inference_logprobs=zeros,
        advantages=zeros,
        states=prompt.states,
        prefix=0,
        group=-1,
        min_version=0,
        max_version=0,
    )
