"""The learner's step beside that of TRL's `GRPOTrainer`, which a user would take instead: the same loss of the same
answers, each with its own prompt and picture, padded to the longest."""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from g1_ray.config import RunConfig
from g1_ray.learner.samples import batch_of
from g1_ray.models.chat import Chat
from g1_ray.models.weights import load_model, vision_tower
from g1_ray.types import Batch, Group, Sample
from jobs.bench import Row
from jobs.bench.learner import learner_of
from jobs.bench.models import groups_of, run_of, sequences_of, with_logprobs

ROUNDS = 5


def learner_rows(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each size."""
    import trl  # noqa: F401 - where it is missing, that is told before anything is made

    torch.set_num_threads(1)  # as an actor of one core has
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            config = run_of(Path(folder), size, args.device, "float32")
            yield beside_trl(size, config, groups_of(config, config.rollout.groups_per_step))


def beside_trl(size: str, config: RunConfig, groups: list[Group]) -> Row:
    """Loss and gradient's norm of the first step, then whole steps of both in turns.

    TRL's inputs, pictures included, are made beforehand. Raises `ModuleNotFoundError` without the extra `trl`.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    exact = config.algorithm.model_copy(update={"tis_cap": 0.0})  # TRL's loss has no such cap
    config = config.model_copy(update={"algorithm": exact})
    with learner_of(config) as learner:
        batch = batch_of(with_logprobs(groups, learner.logprobs(sequences_of(groups))), 0, config)
        theirs = Theirs(GRPOTrainer, config, batch)
        first, other = learner.step(batch).metrics, theirs.step()
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            for name, step in (("ours", lambda: learner.step(batch)), ("theirs", theirs.step)):
                began, cpu = time.perf_counter(), time.process_time()
                step()
                times[name].append((time.perf_counter() - began, time.process_time() - cpu))
    ours_s, ours_cpu = np.median(times["ours"], axis=0)
    theirs_s, theirs_cpu = np.median(times["theirs"], axis=0)
    return {
        "what": f"learner {size} beside TRL, {config.model.dtype}",
        "loss": first["loss"], "TRL's is off by": abs(other["loss"] - first["loss"]),
        "gradient norm": first["grad_norm"], "TRL's / ours": other["grad_norm"] / first["grad_norm"],
        "CPU s": float(ours_cpu), "TRL's CPU s": float(theirs_cpu), "TRL/ours, CPU": float(theirs_cpu / ours_cpu),
        "wall s": float(ours_s), "TRL's wall s": float(theirs_s), "TRL/ours, wall": float(theirs_s / ours_s),
    }  # fmt: skip


class Theirs:
    """A model, AdamW, and TRL's own `_compute_loss` with the settings of a run."""

    def __init__(self, trainer: Any, config: RunConfig, batch: Batch) -> None:
        from trl.trainer.utils import add_fused_lm_head

        self.config, self.trainer = config, trainer
        dtype = getattr(torch, config.model.dtype)
        self.model = load_model(config.model.path, dtype=dtype, attn_implementation="sdpa").train()
        if config.model.vision_is_frozen and (tower := vision_tower(self.model)) is not None:
            tower.requires_grad_(False)
        add_fused_lm_head(self.model, outputs=("log_probs", "entropy"))
        its = config.optimizer
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=its.lr, betas=its.betas, weight_decay=its.weight_decay)
        self.parameters, self.chat = trained, Chat(config.model.path)
        longest = max(len(sample.token_ids) for sample in batch.samples)
        rows = max(1, config.learner.tokens_per_pack // longest)
        tokens = sum(int(sample.loss_mask.sum()) for sample in batch.samples)
        self.rows = [self._inputs(batch.samples[i : i + rows], tokens) for i in range(0, len(batch.samples), rows)]

    def step(self) -> dict[str, float]:
        """Forward and backward pass of all rows, clipping, AdamW."""
        loss = 0.0
        for inputs in self.rows:
            part = self.trainer._compute_loss(self._self(len(self.rows)), self.model, inputs)
            part.backward()
            loss += float(part.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss, "grad_norm": float(norm)}

    def _inputs(self, samples: tuple[Sample, ...], tokens: int) -> dict[str, Any]:
        """Prompts padded on the left, answers on the right, as TRL has them."""
        starts = [int(np.argmax(sample.loss_mask)) for sample in samples]
        before, after = max(starts), max(len(s.token_ids) - at for s, at in zip(samples, starts, strict=True))
        shape = len(samples), before + after
        ids, known = np.full(shape, self.chat.eos_token_id, np.int64), np.zeros(shape, np.int64)
        asked, old = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for row, (sample, start) in enumerate(zip(samples, starts, strict=True)):
            place = slice(before - start, before - start + len(sample.token_ids))
            ids[row, place], known[row, place] = sample.token_ids, 1
            asked[row, place], old[row, place] = sample.loss_mask, sample.inference_logprobs
        pixels, grids = self.chat.pixel_values([state for sample in samples for state in sample.states])
        advantages = [float(sample.advantages[start]) for sample, start in zip(samples, starts, strict=True)]
        ids_t = torch.from_numpy(ids)
        return {
            "prompt_ids": ids_t[:, :before], "prompt_mask": torch.from_numpy(known[:, :before]),
            "completion_ids": ids_t[:, before:], "completion_mask": torch.from_numpy(asked[:, before:]),
            "old_per_token_logps": torch.from_numpy(old[:, before:]), "advantages": torch.tensor(advantages),
            "pixel_values": torch.from_numpy(pixels), "image_grid_thw": torch.from_numpy(grids),
            "num_images": [len(sample.states) for sample in samples],
            "mm_token_type_ids": (ids_t == self.chat.image_token_id).long(), "num_items_in_batch": torch.tensor(tokens),
        }  # fmt: skip

    def _self(self, num_rows: int) -> Any:
        """What the trainer's method reads of its own: settings, and an accelerator of one process."""
        accelerator = SimpleNamespace(
            num_processes=1, sync_gradients=True, autocast=nullcontext, gather=lambda x: x,
            reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x,
        )  # fmt: skip
        its = self.config.algorithm
        made = SimpleNamespace(
            accelerator=accelerator, model=self.model, beta=0.0, loss_type="dapo", importance_sampling_level="token",
            epsilon_low=its.clip_low, epsilon_high=its.clip_high, top_entropy_quantile=1.0, aux_loss_enabled=False,
            off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
            current_gradient_accumulation_steps=num_rows, _metrics={"train": defaultdict(list)},
            args=SimpleNamespace(delta=None, steps_per_generation=num_rows, use_bias_correction_kl=False),
        )  # fmt: skip
        scored = self.trainer._get_per_token_logps_and_entropies
        made._get_per_token_logps_and_entropies = getattr(scored, "__wrapped__", scored).__get__(made)  # not profiled
        return made
