"""What would bound a run on many GPUs: a simulation with costs of calls that are measured first, checked against real
actors whose engines sleep, and then made large.

What is not measured here is assumed, and told: how fast an engine and a learner are. The question is whether driver,
buffer, env workers and the buffer's network keep up with them.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g1_ray.pipeline.parcels import parcel_of
from jobs.bench import Row, buffer, driver
from jobs.bench.models import groups_of
from jobs.bench.ray import cluster, cpu_s
from jobs.bench.simulation import Costs, Setup, Simulation, bounds, needed

ENGINES = (1, 8, 64)
"""Of the check: real ones, that sleep."""
LANES_PER_ENGINE, SLEEP_S, SECONDS = 4, 2.0, 10.0
GPUS = (8, 64, 512)
GROUPS_PER_TICK = (1, 8, 32)
GROUPS_PER_ENGINE = 32
"""In flight: with 8 answers a group, 256 sequences."""
ANSWERS = {"short": 2.0, "long": 20.0}
"""Seconds that an engine takes for all groups that it has: assumed."""
SYNC_S = 0.5
"""In which no engine samples, each step: assumed."""


def simulate_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Costs; the check; then each size, for engines that answer shortly and at length."""
    with tempfile.TemporaryDirectory() as out, cluster() as ray:
        costs = measured(ray, Path(out))
        cpu = {name: 1e6 * value for name, value in vars(costs).items() if name != "group_bytes"}
        yield {"what": "costs, CPU us", **cpu, "bytes of a group": costs.group_bytes}
        idle = idle_costs(ray, with_engines=True)
        for engines in ENGINES:
            yield checked(ray, idle, engines)
    for kind, answer_s in ANSWERS.items():
        for gpus in GPUS:
            for groups_per_tick in GROUPS_PER_TICK:
                yield simulated(costs, kind, answer_s, gpus, groups_per_tick)


def measured(ray: Any, out: Path) -> Costs:
    """What the calls of a real run cost; the driver's in calls that do nothing."""
    config = buffer.config_of(out)
    groups = groups_of(config, buffer.DIFFERENT)
    parcels = [parcel_of(group, config) for group in groups]
    times = [time.process_time()]
    for num in (1, buffer.DIFFERENT):
        for group in groups_of(config, num):
            parcel_of(group, config)
        times.append(time.process_time())
    env_group = (times[2] - 2 * times[1] + times[0]) / (buffer.DIFFERENT - 1)  # without what it takes to begin
    lively = [parcel for parcel in parcels if not parcel.flat]
    num = buffer.STEPS * buffer.GROUPS_PER_STEP
    one, many = (
        buffer.through_ray(ray, config, lively, buffer.folder_of(config, f"costs-{each}"), each)[1] / num
        for each in (1, 32)
    )
    tick = max(0.0, (one - many) * 32 / 31)
    idle = idle_costs(ray)
    size = len(lively[0].samples) + len(lively[0].rows)
    return Costs(idle.driver_tick, tick, max(0.0, one - tick), idle.env_tick, env_group, size)


def idle_costs(ray: Any, with_engines: bool = False) -> Costs:
    """Of actors that do nothing, CPU seconds of a tick by who takes them; engines' as env workers', if at all."""
    actors = driver.actors_of(ray, 1, 1)
    pids = ray.get([actor.pid.remote() for actor in driver.everybody(actors)], timeout=buffer.WAIT_S)
    driver.run_for(SECONDS / 4, actors, 32)
    before = [cpu_s(pid) for pid in pids]
    ticks, _, cpu = driver.run_for(SECONDS / 2, actors, 32)
    its, games, engine = ((cpu_s(pid) - was) / ticks for pid, was in zip(pids, before, strict=True))
    driver.dismiss(ray, actors)
    return Costs(cpu / ticks, its, 0.0, games + (engine if with_engines else 0.0), 0.0, 0.0)


def checked(ray: Any, costs: Costs, engines: int) -> Row:
    """Real actors on this machine, whose cores they share, beside what the simulation says of them."""
    env_workers = 2
    setup = Setup(LANES_PER_ENGINE * engines, 1, SLEEP_S, env_workers=env_workers, cores=len(os.sched_getaffinity(0)))
    bound = bounds(costs, setup)
    actors = driver.actors_of(ray, env_workers, engines, SLEEP_S)
    driver.run_for(SLEEP_S * 1.5, actors, setup.lanes)
    _, rate, _ = driver.run_for(SECONDS, actors, setup.lanes)
    driver.dismiss(ray, actors)
    said = Simulation(costs, setup).run(5 * SECONDS, SLEEP_S)
    least = min(bound.values())
    return {
        "what": f"{engines} engines that sleep", "ticks/s": rate, "bound": least,
        "share reached": rate / least, "share simulated": said.groups_s / least,
    }  # fmt: skip


def setup_of(answer_s: float, gpus: int, groups_per_tick: int) -> Setup:
    """Three of four GPUs sample, and learners are as fast as they are; steps of four seconds' or answers' groups."""
    engines = gpus * 3 // 4
    groups_s = engines * GROUPS_PER_ENGINE / answer_s
    step = max(4.0, answer_s / 2)
    return Setup(
        lanes=max(1, engines * GROUPS_PER_ENGINE // groups_per_tick),
        groups_per_tick=groups_per_tick,
        answer_s=answer_s,
        env_workers=engines,
        groups_per_step=round(groups_s * step),
        max_staleness=max(2, round(2 * answer_s / step)),
        step_s=step - SYNC_S,
        sync_s=SYNC_S,
        learner_nodes=max(1, gpus // 32),
    )


def simulated(costs: Costs, kind: str, answer_s: float, gpus: int, groups_per_tick: int) -> Row:
    """One size: the bound, what of it is reached, what is busiest, and how many of it would be enough."""
    setup = setup_of(answer_s, gpus, groups_per_tick)
    each = bounds(costs, setup)
    wanted = min(each["engine"], each["learner"])
    least = min(each.values())
    queue_s = setup.lanes * groups_per_tick / least  # until those who came at once have been served
    result = Simulation(costs, setup).run(10 * answer_s, 4 * answer_s + 2 * queue_s)
    enough = needed(costs, setup, wanted)
    busiest = max(result.busy, key=lambda name: result.busy[name])
    return {
        "what": f"{gpus} GPUs, {kind} answers, groups a tick: {groups_per_tick}",
        "GPUs could, groups/s": wanted,
        "analytic bound": least,
        "by": min(each, key=lambda name: each[name]),
        "simulated": result.groups_s,
        "of what GPUs could": result.groups_s / wanted,
        "busiest": busiest,
        "its load": result.busy[busiest],
        "enough for 70 % load": " ".join(f"{name}s {count}" for name, count in enough.items()),
    }
