"""A learner's steps on a model made at random: is it right in bfloat16, how fast, how much memory."""

import argparse
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from g1_ray.cluster.memory import CUDA_CONTEXT, learner_need, shape_of
from g1_ray.config import RunConfig
from g1_ray.engines.make import GB
from g1_ray.learner.learner import Learner
from g1_ray.learner.samples import batch_of
from g1_ray.models.chat import Chat
from g1_ray.models.weights import load_model, vision_tower
from g1_ray.types import Batch, Floats, Group, Turn
from jobs.bench import Row
from jobs.bench.models import groups_of, run_of, sequences_of, with_logprobs

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16 operations a second that vendors state, by what is in the name of a GPU."""
STEPS = 5


@contextmanager
def learner_of(config: RunConfig) -> Iterator[Learner]:
    """One rank, in this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    learner = Learner(config)
    learner.setup(address)
    try:
        yield learner
    finally:
        learner.close()


def learner_rows(args: argparse.Namespace) -> Iterator[Row]:
    """For each size: precision (but for the largest), then speed and memory, then the other way to do it."""
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    if args.device == "cpu":
        torch.set_num_threads(1)  # as an actor of one core has
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            config = run_of(Path(folder), size, args.device, dtype)
            groups = groups_of(config, config.rollout.groups_per_step)
            if size != "3b":
                yield precision(size, config, groups)
            ours = speed(size, config, groups)
            yield ours
            yield padded(size, config, groups, ours["answers/s"], args.device)


def precision(size: str, config: RunConfig, groups: list[Group]) -> Row:
    """The same step in bfloat16 and in float32."""
    found: dict[str, tuple[list[Floats], dict[str, float]]] = {}
    for dtype in ("float32", "bfloat16"):
        its = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
        with learner_of(its) as learner:
            scored = learner.logprobs(sequences_of(groups))
            sampled_by = found["float32"][0] if found else scored
            batch = batch_of(with_logprobs(groups, sampled_by), 0, its)
            found[dtype] = scored, learner.step(batch).metrics
    exact, rounded = found["float32"], found["bfloat16"]
    gap = np.abs(np.concatenate(exact[0]) - np.concatenate(rounded[0])).mean()
    norms = exact[1]["grad_norm"], rounded[1]["grad_norm"]
    return {
        "what": f"learner {size}, bfloat16 beside float32",
        "log-probabilities off by, nats": float(gap),
        "loss": rounded[1]["loss"], "loss in float32": exact[1]["loss"],
        "gradient norm / in float32": norms[1] / norms[0],
    }  # fmt: skip


def speed(size: str, config: RunConfig, groups: list[Group]) -> Row:
    """Whole steps: packs, forward and backward pass, clipping, AdamW."""
    on_gpu, shape = config.learner.gpus > 0, shape_of(config.model.path)
    assert shape
    batch: Batch = batch_of(groups, 0, config)
    with learner_of(config) as learner:
        learner.step(batch)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(STEPS):
            began = time.perf_counter()
            metrics = learner.step(batch).metrics
            times.append(time.perf_counter() - began)
    step_s = float(np.median(times))
    row: Row = {
        "what": f"learner {size}, {config.model.dtype}, {shape.params / 1e6:,.1f} M parameters",
        "step s": step_s, "answers/s": len(batch.samples) / step_s,
        "packed tokens/s": metrics["packed_tokens"] / step_s,
    }  # fmt: skip
    if on_gpu:
        name = torch.cuda.get_device_name()
        trained = shape.params - (shape.vision_params if config.model.vision_is_frozen else 0)
        if peak := next((flops for gpu, flops in PEAK.items() if gpu in name), None):
            row["MFU"] = (
                6 * trained * row["packed tokens/s"] / peak
            )  # 6 operations a parameter and token, no recomputation
        row["peak GB"] = torch.cuda.max_memory_allocated() / GB
        row["planned GB"] = (learner_need(config, shape).total - CUDA_CONTEXT) / GB
    return row


def padded(size: str, config: RunConfig, groups: list[Group], ours: float, device: str) -> Row:
    """The same answers as batches of transformers: each with its own prompt and picture, padded to the longest."""
    chat, dtype = Chat(config.model.path), getattr(torch, config.model.dtype)
    model = load_model(config.model.path, dtype=dtype, attn_implementation="sdpa").to(device).train()
    if config.model.vision_is_frozen and (tower := vision_tower(model)) is not None:
        tower.requires_grad_(False)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    turns = [turn for group in groups for turn in group.turns]
    longest = max(len(turn.prompt.token_ids) + len(turn.completion.token_ids) for turn in turns)
    rows = max(1, config.learner.tokens_per_pack // longest)

    def step() -> None:
        for i in range(0, len(turns), rows):
            given, asked = batch_of_rows(turns[i : i + rows], chat, longest, dtype)
            given, asked = {name: tensor.to(device) for name, tensor in given.items()}, asked.to(device)
            logits = model(**given, use_cache=False).logits[:, :-1].float()
            losses = F.cross_entropy(logits.flatten(0, 1), given["input_ids"][:, 1:].flatten(), reduction="none")
            (losses * asked[:, 1:].flatten()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    rate = len(turns) / float(np.median(times))
    return {"what": f"transformers {size}, padded, {config.model.dtype}", "answers/s": rate, "ours/theirs": ours / rate}


def batch_of_rows(
    turns: list[Turn], chat: Chat, longest: int, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the model's forward takes for a row of `longest` tokens a turn, and where the answers are."""
    ids = torch.full((len(turns), longest), chat.eos_token_id)
    known, asked = torch.zeros_like(ids), torch.zeros_like(ids)
    for k, turn in enumerate(turns):
        whole = np.concatenate([turn.prompt.token_ids, turn.completion.token_ids]).astype(np.int64)
        ids[k, : len(whole)] = torch.from_numpy(whole)
        known[k, : len(whole)] = 1
        asked[k, len(turn.prompt.token_ids) : len(whole)] = 1
    pixels, grids = chat.pixel_values([turn.prompt.states[-1] for turn in turns])
    given = {
        "input_ids": ids,
        "attention_mask": known,
        "mm_token_type_ids": (ids == chat.image_token_id).long(),
        "pixel_values": torch.from_numpy(pixels).to(dtype),
        "image_grid_thw": torch.from_numpy(grids),
    }
    return given, asked
