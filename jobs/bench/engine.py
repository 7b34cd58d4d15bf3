"""An engine's answers, and weights on their way into it, with a learner beside it on the same device."""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from g1_ray.config import RunConfig
from g1_ray.engines.make import engine_of_run
from g1_ray.engines.weight_sync import CANARY_TOLERANCE, Canary, WeightSyncError, pack_weights
from g1_ray.learner.samples import batch_of
from g1_ray.types import Group, Request
from jobs.bench import Row
from jobs.bench.learner import learner_of
from jobs.bench.models import groups_of, run_of, sequences_of

GROUPS = 32


@contextmanager
def engine_of(config: RunConfig) -> Iterator[tuple[Any, asyncio.Runner]]:
    """One engine, in this process as far as its kind is, and the loop that it lives in."""
    engine = engine_of_run(config, config.model.path)
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:
            yield engine, runner
        finally:
            runner.run(engine.stop())


def configs(args: argparse.Namespace, folder: str) -> Iterator[tuple[str, RunConfig, list[Group]]]:
    """Each size's run, and groups of it."""
    if args.device == "cpu":
        torch.set_num_threads(1)  # as an actor of one core has
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    for size in args.sizes:
        config = run_of(Path(folder), size, args.device, dtype, args.engine)
        yield size, config, groups_of(config, GROUPS)


def engine_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Groups of answers, all in flight at once: twice, as the first time warms up."""
    with tempfile.TemporaryDirectory() as folder:
        for size, config, groups in configs(args, folder):
            requests = [Request(group.turns[0].prompt, 8, number) for number, group in enumerate(groups)]
            sequences = sequences_of(groups[:8])
            began = time.perf_counter()
            with engine_of(config) as (engine, runner):
                started = time.perf_counter() - began
                for _ in range(2):
                    began = time.perf_counter()
                    answers = runner.run(engine.generate(requests))
                    taken = time.perf_counter() - began
                theirs = runner.run(engine.logprobs(sequences))
            with learner_of(config) as learner:
                ours = learner.logprobs(sequences)
            tokens = sum(len(answer.token_ids) for group in answers for answer in group)
            gap = float(np.abs(np.concatenate(ours) - np.concatenate(theirs)).mean())
            yield {
                "what": f"{args.engine} {size}, {config.model.dtype}", "start s": started,
                "answers/s": 8 * GROUPS / taken, "tokens/s": tokens / taken,
                "log-probabilities off the learner's by, nats": gap,
            }  # fmt: skip


def sync_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Three syncs, the median; then a step whose weights are not handed over, which the canary has to notice."""
    with tempfile.TemporaryDirectory() as folder:
        for size, config, groups in configs(args, folder):
            sequences = sequences_of(groups[:8])
            with learner_of(config) as learner, engine_of(config) as (engine, runner):
                canary = Canary(CANARY_TOLERANCE[config.model.dtype])
                found: list[list[float]] = []
                for version in (1, 2, 3):
                    learner.step(batch_of(groups, version - 1, config))
                    began = time.perf_counter()
                    packed = pack_weights(learner.weights(frozen_tower=False).items(), learner.dtype)
                    made = time.perf_counter()
                    report = runner.run(engine.load_policy(packed, version))
                    loaded = time.perf_counter()
                    gap = canary.check(version, runner.run(engine.logprobs(sequences)), learner.logprobs(sequences))
                    found.append([made - began, loaded - made, report.pause_s, gap])
                learner.step(batch_of(groups, 3, config))
                try:
                    canary.check(4, runner.run(engine.logprobs(sequences)), learner.logprobs(sequences))
                    noticed = False
                except WeightSyncError:
                    noticed = True
            source, target = packed, np.empty_like(packed)
            copies = []
            for _ in range(5):
                began = time.perf_counter()
                np.copyto(target, source)
                copies.append(time.perf_counter() - began)
            pack, load, pause, gap = np.median(np.array(found), axis=0).tolist()
            copy = float(np.median(copies))
            yield {
                "what": f"sync into {args.engine} {size}, {len(packed) / 1e6:,.1f} MB", "pack ms": 1e3 * pack,
                "load ms": 1e3 * load, "pause ms": 1e3 * pause, "memcpy ms": 1e3 * copy,
                "all/memcpy": (pack + load) / copy, "canary, nats": gap, "a sync left out is noticed": noticed,
            }  # fmt: skip
