"""A run as a queueing network: lanes that go round, stations that serve one after the other, nothing else.

    lane      slot -> driver, buffer -> env worker -> engine -> env worker -> link -> buffer, driver -> again
    trainer   groups of a step -> driver, buffer -> link -> learner -> sync -> slots are free again

The order of calls is the graphs' (`g1_ray/pipeline/graph.py`), admission is `RunConfig.capacity`'s. A station serves in
the order of arrival; an engine has room for all of its lanes. Times are in s.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

SHARED = ("driver", "buffer", "env worker", "link")
"""Stations that many lanes share; engines and learners are what they are there for."""


@dataclass(frozen=True)
class Costs:
    """CPU seconds that calls take of those who are called, and of the driver; measured."""

    driver_tick: float
    """Of a tick, whatever is in it."""
    buffer_tick: float
    """Of `admit` and `put` together, whatever is in them."""
    buffer_group: float
    """Of a group, from its ticket to the batch that it goes into."""
    env_tick: float
    """Of the calls of a tick."""
    env_group: float
    """Of a group: played, scored, made ready."""
    group_bytes: float
    """Of a group on its way to the buffer; about half of it goes on to every rank's node."""


@dataclass(frozen=True)
class Setup:
    """What runs where."""

    lanes: int
    """Ticks in flight, of all engines together."""
    groups_per_tick: int
    answer_s: float
    """From asking an engine for a tick's answers to having them, with all of its lanes busy."""
    env_workers: int = 1
    groups_per_step: int = 0
    """0: nobody trains, and slots are free at once."""
    max_staleness: int = 2
    step_s: float = 0.0
    """Of the learner."""
    sync_s: float = 0.0
    """In which no engine samples, each step."""
    link_bytes_s: float = 12.5e9
    """Of the buffer's node, e.g. 100 Gb/s."""
    learner_nodes: int = 1
    cores: int = 0
    """That all stations share, as on one machine; 0: each has its own."""
    drivers: int = 1
    buffers: int = 1


@dataclass
class Result:
    """What came of it."""

    groups_s: float
    busy: dict[str, float]
    """Of each station, the share of its time in which it serves."""


def visits(costs: Costs, setup: Setup) -> dict[str, float]:
    """Seconds of each shared station that a group takes."""
    each = setup.groups_per_tick
    out = setup.learner_nodes / 2 if setup.groups_per_step else 0
    return {
        "driver": costs.driver_tick / each,
        "buffer": costs.buffer_tick / each + costs.buffer_group,
        "env worker": costs.env_tick / each + costs.env_group,
        "link": costs.group_bytes * (1 + out) / setup.link_bytes_s,
    }


def servers(setup: Setup) -> dict[str, int]:
    """How many there are of each."""
    return {"driver": setup.drivers, "buffer": setup.buffers, "env worker": setup.env_workers, "link": setup.buffers}


def bounds(costs: Costs, setup: Setup) -> dict[str, float]:
    """Groups a second that each part could do alone: the least of them is the analytic bound."""
    each = {"engine": setup.lanes * setup.groups_per_tick / setup.answer_s}
    if setup.groups_per_step:
        stall = setup.sync_s / max(setup.step_s + setup.sync_s, 1e-9)
        each["engine"] *= 1 - stall
        each["learner"] = setup.groups_per_step / (setup.step_s + setup.sync_s)
    each |= {name: servers(setup)[name] / seconds for name, seconds in visits(costs, setup).items() if seconds}
    if setup.cores:
        cpu = sum(seconds for name, seconds in visits(costs, setup).items() if name != "link")
        each["cores"] = setup.cores / cpu if cpu else float("inf")
    return each


def needed(costs: Costs, setup: Setup, groups_s: float, load: float = 0.7) -> dict[str, int]:
    """How many of each shared part keep their load below `load` at so many groups a second."""
    return {name: ceil(groups_s * seconds / load) for name, seconds in visits(costs, setup).items()}


@dataclass
class _Stations:
    """When each server of each station is free next."""

    setup: Setup
    free: dict[str, list[float]] = field(default_factory=dict)
    cores: list[float] = field(default_factory=list)
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SHARED, 0.0))

    def __post_init__(self) -> None:
        self.free = {name: [0.0] * count for name, count in servers(self.setup).items()}
        self.cores = [0.0] * self.setup.cores

    def serve(self, name: str, now: float, seconds: float) -> float:
        """When somebody who comes now has been served."""
        start = max(now, heapq.heappop(self.free[name]))
        on_core = bool(self.cores) and name != "link"
        if on_core:  # the one that has been free for the shortest time, so that none stands idle for a queue elsewhere
            core = max((free for free in self.cores if free <= start), default=min(self.cores))
            start = max(start, core)
            self.cores[self.cores.index(core)] = start + seconds
        end = start + seconds
        heapq.heappush(self.free[name], end)
        self.busy[name] += seconds
        return end


Process = Iterator["float | deque[Process]"]
"""Gives a time to go on at, or a queue to wait in until somebody wakes it."""


class Simulation:
    """A run of `Setup` with `Costs`."""

    def __init__(self, costs: Costs, setup: Setup) -> None:
        self.costs, self.setup, self.stations = costs, setup, _Stations(setup)
        capacity = (setup.max_staleness + 1) * setup.groups_per_step
        self.slots = capacity or setup.lanes * setup.groups_per_tick
        self.waiting = self.done = self.syncs = self._order = 0
        self.now = 0.0
        self._events: list[tuple[float, int, Process]] = []
        self._gate: deque[Process] = deque()
        self._batch: deque[Process] = deque()

    def run(self, seconds: float, warm_up: float) -> Result:
        """The rate over so many simulated seconds after `warm_up`."""
        for lane in range(self.setup.lanes):  # not all at once: they would stay in step
            self._at(self.setup.answer_s * lane / self.setup.lanes, self._lane())
        if self.setup.groups_per_step:
            self._at(0.0, self._train())
        self._until(warm_up)
        before, busy = self.done, dict(self.stations.busy)
        self._until(warm_up + seconds)
        count = servers(self.setup)
        shares = {name: (at - busy[name]) / seconds / count[name] for name, at in self.stations.busy.items()}
        return Result((self.done - before) / seconds, shares)

    def _until(self, end: float) -> None:
        while self._events and self._events[0][0] < end:
            self.now, _, process = heapq.heappop(self._events)
            waits = next(process)
            if isinstance(waits, deque):
                waits.append(process)
            else:
                self._at(waits, process)

    def _at(self, when: float, process: Process) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, process))

    def _wake(self, queue: "deque[Process]") -> None:
        while queue:
            self._at(self.now, queue.popleft())

    def _lane(self) -> Process:
        """One tick after the other."""
        its, each, serve = self.costs, self.setup.groups_per_tick, self.stations.serve
        games_s = its.env_tick + each * its.env_group
        while True:
            while self.slots < each:
                yield self._gate
            self.slots -= each
            yield serve("driver", self.now, its.driver_tick / 2)
            yield serve("buffer", self.now, its.buffer_tick / 2)
            yield serve("env worker", self.now, games_s / 3)
            syncs = self.syncs
            yield self.now + self.setup.answer_s
            if late := self.syncs - syncs:
                yield self.now + late * self.setup.sync_s
            yield serve("env worker", self.now, games_s * 2 / 3)
            yield serve("link", self.now, each * its.group_bytes / self.setup.link_bytes_s)
            yield serve("buffer", self.now, its.buffer_tick / 2 + each * its.buffer_group)
            self.done += each
            if self.setup.groups_per_step:
                self.waiting += each
                self._wake(self._batch)
            else:
                self.slots += each
            yield serve("driver", self.now, its.driver_tick / 2)

    def _train(self) -> Process:
        """One step after the other."""
        its, num = self.costs, self.setup.groups_per_step
        while True:
            while self.waiting < num:
                yield self._batch
            self.waiting -= num
            out = num * its.group_bytes / 2 * self.setup.learner_nodes
            yield self.stations.serve("link", self.now, out / self.setup.link_bytes_s)
            yield self.now + self.setup.step_s
            self.syncs += 1
            yield self.now + self.setup.sync_s
            self.slots += num
            self._wake(self._gate)
