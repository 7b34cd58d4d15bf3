"""The driver: ticks a second of the rollout graph where its calls do nothing, and so all the time is the driver's own
and Ray's."""

import argparse
import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

from jobs.bench import Row
from jobs.bench.ray import cluster

GROUP_SIZE = 8
"""Rollouts of a group; a tick has one."""
LANES = (64, 512)
ENV_WORKERS, ENGINES = 2, 4
SECONDS = 5.0


class Actor:
    """Tells its process."""

    async def pid(self) -> int:
        return os.getpid()


class Buffer(Actor):
    """Admits at once, keeps nothing."""

    async def admit(self, num_groups: int) -> None: ...

    async def put(self, groups: None) -> None: ...


class Games:
    """An env worker without games."""

    def pid(self) -> int:
        return os.getpid()

    def observe(self, tickets: None) -> None: ...

    def score(self, groups: None, answers: None) -> None: ...

    def finish(self, groups: None) -> None: ...


class Engine(Actor):
    """Answers after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    async def generate(self, groups: None) -> None:
        await asyncio.sleep(self.seconds)


def driver_rows(args: argparse.Namespace) -> Iterator[Row]:
    """One group a tick, for some seconds each, after as many to warm up."""
    with cluster() as ray:
        for lanes in LANES:
            actors = actors_of(ray, ENV_WORKERS, ENGINES)
            for _ in range(2):
                ticks, rate, cpu = run_for(SECONDS, actors, lanes)
            yield {
                "what": f"driver, one group a tick, calls that do nothing, {lanes} lanes",
                "rollouts/s": GROUP_SIZE * rate, "rollouts/CPU s of the driver": GROUP_SIZE * ticks / cpu,
                "driver's CPU us a tick": 1e6 * cpu / ticks,
            }  # fmt: skip
            dismiss(ray, actors)


def actors_of(ray: Any, env_workers: int, engines: int, seconds: float = 0.0) -> Any:
    """Actors that do nothing, or whose engines take so long, and are there."""
    from g1_ray.pipeline.graph import Actors

    def hired(kind: Any, *about: Any, **options: Any) -> Any:
        return ray.remote(kind).options(num_cpus=0, **options).remote(*about)

    made = Actors(
        hired(Buffer),
        [hired(Games, allow_out_of_order_execution=True) for _ in range(env_workers)],
        [hired(Engine, seconds, max_concurrency=1000) for _ in range(engines)],
        [],
    )
    ray.get([actor.__ray_ready__.remote() for actor in everybody(made)], timeout=300)
    return made


def everybody(actors: Any) -> list[Any]:
    """All of them."""
    return [actors.buffer, *actors.env_workers, *actors.engines]


def dismiss(ray: Any, actors: Any) -> None:
    """Ends them."""
    for actor in everybody(actors):
        ray.kill(actor)


def run_for(seconds: float, actors: Any, lanes: int) -> tuple[int, float, float]:
    """Ticks that were finished, how many a second, and the CPU seconds of this process.

    A lane's rate is that of its whole ticks: where they are long, what the end cuts off would count.
    """
    from g1_ray.pipeline.graph import Executor, rollout_graph

    pairs = [(lane % len(actors.env_workers), lane % len(actors.engines)) for lane in range(lanes)]
    graphs = {pair: rollout_graph(actors, *pair, passes=1) for pair in set(pairs)}  # bound once, as a run does
    executor, ticks, last = Executor(tick_timeout_s=60.0), [0] * lanes, [0.0] * lanes
    began, cpu_began = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for lane, pair in enumerate(pairs):
            if lane not in executor.ticks:
                executor.start(lane, graphs[pair], 1)
        for finished in executor.poll(1.0):
            assert not finished.failure, finished.failure
            ticks[finished.tick.lane] += 1
            last[finished.tick.lane] = time.perf_counter() - began
    cpu = time.process_time() - cpu_began
    executor.clear()
    return sum(ticks), sum(num / s for num, s in zip(ticks, last, strict=True) if num), cpu
