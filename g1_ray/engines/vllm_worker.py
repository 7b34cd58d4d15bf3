"""What runs inside of vLLM, in whatever process: a weight-transfer engine that reads a safetensors file.

vLLM imports this module in each of its workers, because `worker_extension_cls` names it; that is what makes the backend
known there, and it needs no installed entry point, so it also works from a `--working-dir` that Ray has unpacked.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from g1_ray.processes import end_with_parent


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Where the weights lie."""

    path: str
    """A safetensors file with all parameters by their Hugging Face names."""


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads the weights as vLLM loads a checkpoint: layer by layer, repacked where the CPU wants them so."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """There is no connection to open."""

    def start_weight_update(self) -> None:
        """Makes the layers ready to be loaded again."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Loads the file; it is mapped, so only one tensor at a time is copied."""
        with safe_open(update_info.path, framework="pt") as file:
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        """Repacks what is left over."""
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                # On CPU a head works on a packed copy. One that is tied to the embedding is not in the file, so nobody
                # has told it that its weight is another now.
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """There is nothing to release."""


end_with_parent()


class Worker:
    """What every worker gets beside its own methods; importing this module is the other thing it is for."""

    def divide_logits(self, temperature: float) -> None:
        """From now on what the model says is logits / temperature, in float32, as the learner computes it."""
        model: Any = self.get_model()  # type: ignore[attr-defined]
        plain = model.compute_logits

        def divided(*args: Any, **kwargs: Any) -> torch.Tensor | None:
            logits = plain(*args, **kwargs)  # None where another worker has them
            return None if logits is None else logits.float() / temperature

        model.compute_logits = divided


def _to_rank(self: PunicaWrapperCPU, y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, scale: float) -> None:
    """y [T, rank] = x [T, inputs] through the one adapter's `down` [1, 1, rank, inputs]."""
    if not self.no_lora:
        y.copy_(scale * (x.to(y.dtype) @ down[0, 0].to(y.dtype).T))


def _from_rank(
    self: PunicaWrapperCPU, y: torch.Tensor, x: torch.Tensor, up: torch.Tensor, start: int, size: int, add_inputs: bool
) -> None:
    """Adds x [T, rank] through the one adapter's `up` [1, 1, size, rank] to a slice of y [T, outputs]."""
    assert add_inputs
    if not self.no_lora:
        y[:, start : start + size] += x.to(y.dtype) @ up[0, 0].to(y.dtype).T


# On a CPU vLLM gathers an adapter's matrices once for every token, gigabytes for a long batch. There is one for all.
PunicaWrapperCPU._apply_shrink = _to_rank
PunicaWrapperCPU._apply_expand = _from_rank
# It names, at every sync, the layers that own no weights.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
# It names the layers of the vision tower that are called as targets are; they are to have no adapter.
logging.getLogger("vllm.lora.model_manager").setLevel(logging.ERROR)
WeightTransferEngineFactory.register_engine("file", FileWeightTransferEngine)
