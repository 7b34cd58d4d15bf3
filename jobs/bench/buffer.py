"""The replay buffer: samples that come in, are booked, stored and handed out, in one process and as Ray's actor."""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from g1_ray.config import RunConfig
from g1_ray.pipeline.parcels import Parcel, parcel_of
from g1_ray.pipeline.replay_buffer import ReplayBuffer
from g1_ray.runs.run_folder import RunFolder
from g1_ray.types import Origin, StepReport
from jobs.bench import Row
from jobs.bench.models import groups_of, run_of
from jobs.bench.ray import cluster, cpu_s

STEPS, GROUPS_PER_STEP = 16, 128
DIFFERENT = 64
"""Groups that the others are copies of."""
GROUPS_PER_TICK = (1, 8, 32)
WAIT_S = 60.0


def buffer_rows(args: argparse.Namespace) -> Iterator[Row]:
    """What an env worker does for it, the plain class, the same with ledger and parquet, and as an actor."""
    with tempfile.TemporaryDirectory() as out, cluster() as ray:
        config = config_of(Path(out))
        groups = groups_of(config, DIFFERENT)
        parcel_of(groups[0], config)  # its game's pictures are drawn once
        began = time.process_time()
        parcels = [parcel_of(group, config) for group in groups]
        cpu = (time.process_time() - began) / DIFFERENT
        parcels = [parcel for parcel in parcels if not parcel.flat]
        yield {
            "what": "a group made ready by its env worker", "CPU us": 1e6 * cpu,
            "samples, bytes": len(parcels[0].samples), "rows, bytes": len(parcels[0].rows),
        }  # fmt: skip
        size = config.rollout.group_size * STEPS * GROUPS_PER_STEP
        for what, folder in (("no ledger, no parquet", None), ("ledger and parquet", folder_of(config, "in-process"))):
            began, cpu_began = time.perf_counter(), time.process_time()
            asyncio.run(in_process(config, parcels, folder))
            taken, cpu = time.perf_counter() - began, time.process_time() - cpu_began
            yield {"what": f"buffer in process, {what}", "samples/s": size / taken, "samples/CPU s": size / cpu}
        for groups_per_tick in GROUPS_PER_TICK:
            folder = folder_of(config, f"actor-{groups_per_tick}")
            taken, cpu, driver = through_ray(ray, config, parcels, folder, groups_per_tick)
            yield {
                "what": f"buffer through Ray, ledger and parquet, groups a tick: {groups_per_tick}",
                "samples/s": size / taken, "samples/CPU s of the buffer": size / cpu,
                "samples/CPU s of the driver": size / driver,
            }  # fmt: skip


def config_of(out: Path) -> RunConfig:
    """A run that has groups of two steps under way."""
    config = run_of(out, "tiny", "cpu", "float32")
    rollout = config.rollout.model_copy(update={"groups_per_step": GROUPS_PER_STEP})
    return config.model_copy(update={"out": str(out), "rollout": rollout, "trackers": ()})


def folder_of(config: RunConfig, name: str) -> RunFolder:
    """A run's folder, as a run that starts finds it."""
    return RunFolder.open(config.model_copy(update={"name": name}))


def tick_of(parcels: list[Parcel], first: int, num: int, a_step: int) -> list[Parcel]:
    """Groups with the numbers that the buffer gives, sampled by the policy that they train, `a_step` of them."""
    made = []
    for number in range(first, first + num):
        parcel = parcels[number % len(parcels)]
        ticket = replace(parcel.ticket, group=number, source="fresh")
        lesson = replace(parcel.lesson, ticket=ticket) if parcel.lesson else None
        made.append(replace(parcel, ticket=ticket, min_version=number // a_step, flat=False, lesson=lesson))
    return made


async def in_process(config: RunConfig, parcels: list[Parcel], folder: RunFolder | None) -> None:
    """All steps, eight groups at a time."""
    keep: Callable[..., None] = lambda fate, parcel: None  # noqa: E731
    if folder is not None:
        its = folder

        def keep(fate: Any, parcel: Parcel) -> None:
            its.log_fate(fate)
            its.keep_rows(parcel.rows)

    buffer = ReplayBuffer(config, keep, folder.log_books if folder else lambda line: None)
    for step in range(STEPS):
        for first in range(step * GROUPS_PER_STEP, (step + 1) * GROUPS_PER_STEP, 8):
            await buffer.admit(8)
            await buffer.put(tick_of(parcels, first, 8, GROUPS_PER_STEP))
        await buffer.take(step)
        await buffer.release(step + 1)
    check(await buffer.close())
    if folder:
        folder.close()


def through_ray(
    ray: Any, config: RunConfig, parcels: list[Parcel], folder: RunFolder, groups_per_tick: int
) -> tuple[float, float, float]:
    """Seconds, and CPU seconds of the buffer's process and of this one. The groups are there before it begins."""
    from g1_ray.pipeline.actors import BufferActor

    class Source:
        def finish(self, first: int, num: int) -> list[Parcel]:
            return tick_of(parcels, first, num, config.rollout.groups_per_step)

    source = ray.remote(Source).options(num_cpus=0).remote()
    buffer = ray.remote(BufferActor).options(num_cpus=0).remote(config, str(folder.path))
    total = STEPS * GROUPS_PER_STEP
    ticks = [source.finish.remote(first, groups_per_tick) for first in range(0, total, groups_per_tick)]
    pid = ray.get(buffer.alive.remote(), timeout=WAIT_S).pid
    ray.wait(ticks, num_returns=len(ticks))
    began, cpu_began, driver_began = time.perf_counter(), cpu_s(pid), time.process_time()
    a_step = GROUPS_PER_STEP // groups_per_tick
    for step in range(-1, STEPS):
        its = ticks[(step + 1) * a_step : (step + 2) * a_step]  # a step ahead
        ray.get([buffer.admit.remote(groups_per_tick) for _ in its], timeout=WAIT_S)
        for tick in its:
            buffer.put.remote(tick)
        if step >= 0:
            assert ray.wait([buffer.take.remote(step)], timeout=WAIT_S, fetch_local=False)[0], "no batch came"
            ray.get(buffer.release.remote(StepReport(step + 1, {}, Origin())), timeout=WAIT_S)
    books = ray.get(buffer.close.remote(), timeout=WAIT_S)
    taken, cpu, driver = time.perf_counter() - began, cpu_s(pid) - cpu_began, time.process_time() - driver_began
    check(books)
    for actor in (source, buffer):
        ray.kill(actor)
    return taken, cpu, driver


def check(books: dict[str, int]) -> None:
    """Whether all were trained on."""
    assert books["trained"] == STEPS * GROUPS_PER_STEP and not books["refused"], books
