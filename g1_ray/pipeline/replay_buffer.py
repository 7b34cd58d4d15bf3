"""The replay buffer: admits groups, keeps what came of them, hands out batches. The only commit point of a run.

What holds at any moment, and is tested:

- issued = trained + dropped + quarantined + in flight, where in flight includes groups that wait here or are being
  trained on;
- groups that are running, waiting or taken never exceed the run's capacity (`RunConfig.capacity`), and a taken group
  gives its slot back only once the engines hold the weights made from it (after AReaL, arXiv 2505.24298, section 5.1);
- a group is trained on at most once, and never when its oldest token is more than max_staleness steps old;
- with max_staleness 0 what a batch is made of depends on the run's seed alone, not on who was faster, and nothing is in
  flight between two steps: a run that goes on from a checkpoint draws what it would have drawn;
- what is kept is bounded, however long no group comes that can be trained on.

A plain asyncio class: it becomes an actor where the graphs are composed.
"""

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from g1_ray.config import RunConfig
from g1_ray.pipeline.curriculum import Curriculum
from g1_ray.pipeline.parcels import Parcel
from g1_ray.seeds import seed_of
from g1_ray.types import Fate, Spoiled, Ticket

MAX_ISSUES = 3
"""Times a group fails before it is given up and quarantined."""
MAX_DEATHS = 10
"""Times a part dies with a group before that is given up all the same: a game can end its process."""
POOL = 1024
"""Flat groups kept for the next batch."""
RECENT = 64
"""Groups that came last: where more than half of them had something wrong with them, so has the run."""


class ReplayBuffer:
    """Tickets out, groups in, batches out.

    `keep` is given every group that comes to an end with what became of it, and `record` a line for the ledger of what
    else it takes to come back after a death (`recover`): both before anybody else can know of it.
    """

    def __init__(
        self,
        config: RunConfig,
        keep: Callable[[Fate, Parcel | None], None],
        record: Callable[[Mapping[str, Any]], None] = lambda line: None,
    ) -> None:
        self.config = config
        self.capacity = config.capacity
        self.version = 0
        self.counts: Counter[str] = Counter()
        self._keep, self._record = keep, record
        self._next = 0
        self._running: dict[int, Ticket] = {}
        self._again: deque[Ticket] = deque()
        self._blamed: Counter[int] = Counter()  # times that a group of those running failed
        self._waiting: dict[int, Parcel] = {}
        self._taken: dict[int, tuple[Ticket, Parcel | None, int]] = {}  # with its staleness; no group after a death
        self._flat: list[tuple[int, Parcel]] = []  # since the last batch: a heap of those with the highest numbers
        self._forgotten: Counter[str] = Counter()  # by game, the other flat ones
        self.flat_in_a_row = 0
        """Groups that came since the last one that was not flat."""
        self._faults: deque[str] = deque(maxlen=RECENT)
        self._ahead = config.asynchrony.max_staleness > 0
        self._wanted = False  # whether somebody waits for a batch
        self.curriculum = Curriculum(config)
        self._changed = asyncio.Condition()
        self._closed = False

    # The rollout graph

    async def admit(self, num_groups: int) -> list[Ticket]:
        """The next tickets, once there are slots for all of them; none once the buffer is closed.

        Fewer where nothing is running any more, as then no other slots will come free: a batch may lack just a few.
        With max_staleness 0 not before the batch that they are for is asked for.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._lets_in(num_groups))
            if self._closed:
                return []
            if self._suspected:
                return [self._issue()]
            tickets = [self._issue() for _ in range(min(num_groups, self._free))]
            self._record({"admitted": self.counts["issued"]})
            return tickets

    def _lets_in(self, num_groups: int) -> bool:
        if self._closed:
            return True
        if not self._ahead and not self._wanted:
            return False
        return self._suspected or self._free >= (num_groups if self._active else 1)

    @property
    def spoiled(self) -> str:
        """What is wrong with the last one that something is, where that is so of most that came lately; else ''."""
        faults = [fault for fault in self._faults if fault]
        return faults[-1] if len(self._faults) == RECENT < 2 * len(faults) else ""

    @property
    def _suspected(self) -> bool:
        """Whether the next group has failed before, or a part died with it twice.

        It is tried alone, so that it fails no others again.
        """
        return bool(self._again) and (self._blamed[self._again[0].group] > 0 or self._again[0].incarnation > 0)

    @property
    def _active(self) -> int:
        """Groups that somebody is at work on."""
        return len(self._running) - len(self._again)

    @property
    def _free(self) -> int:
        return self.capacity - len(self._running) - len(self._waiting) - len(self._taken) + len(self._again)

    def _issue(self) -> Ticket:
        if self._again:
            ticket = self._again.popleft()
            ticket = replace(ticket, incarnation=ticket.incarnation + 1, version=self.version)
        else:
            ticket = self._new_ticket()
            self.counts["issued"] += 1
        self._running[ticket.group] = ticket
        return ticket

    def _new_ticket(self) -> Ticket:
        number, self._next = self._next, self._next + 1
        seed = seed_of("group", self.config.seed, number)
        start = self.curriculum.draw(number, np.random.default_rng(seed))
        return Ticket(number, start.game, seed, self.version, state=start.state, source=start.source)

    async def put(self, groups: Sequence[Parcel | Spoiled]) -> int:
        """Takes groups in, each whole; returns how many. A spoiled one is quarantined.

        One that came already, or of an older issue, is refused, and so is everything once the books are closed.
        """
        taken_in = 0
        async with self._changed:
            for group in groups:
                current = self._running.get(group.ticket.group)
                stray = current is None or current.incarnation != group.ticket.incarnation or current in self._again
                if stray or self._closed:
                    self.counts["refused"] += 1
                    continue
                del self._running[group.ticket.group]
                taken_in += 1
                fault = group.reason if isinstance(group, Spoiled) else group.fault
                self._faults.append(fault)
                if isinstance(group, Spoiled) or fault:
                    self._end(group.ticket, "quarantined", fault, None if isinstance(group, Spoiled) else group)
                elif group.flat and self.config.algorithm.skip_flat_groups:
                    self._keep_flat(group)
                    self._end(group.ticket, "dropped", "flat", group)
                else:
                    self.flat_in_a_row = 0
                    self._waiting[group.ticket.group] = group
            self._changed.notify_all()
        return taken_in

    def _keep_flat(self, group: Parcel) -> None:
        """Which ones are kept depends on their numbers, not on who was faster."""
        self.flat_in_a_row += 1
        heapq.heappush(self._flat, (group.ticket.group, replace(group, samples=b"", rows=b"")))  # it is but counted
        if len(self._flat) > POOL:
            _, oldest = heapq.heappop(self._flat)
            self._forgotten[oldest.ticket.game] += 1

    async def fail(self, tickets: Sequence[Ticket], reason: str, blame: bool = True) -> None:
        """Groups that came to nothing: they are issued again, or given up after `MAX_ISSUES` times.

        Without `blame` it was a part that died, which may be chance: not one of these times, but of `MAX_DEATHS`.
        """
        async with self._changed:
            for ticket in tickets:
                current = self._running.get(ticket.group)
                if current is None or current.incarnation != ticket.incarnation or current in self._again:
                    continue
                self._blamed[ticket.group] += blame
                if self._blamed[ticket.group] >= MAX_ISSUES or ticket.incarnation + 1 >= MAX_DEATHS:
                    del self._running[ticket.group]
                    self._end(ticket, "quarantined", reason, None)
                else:
                    self.counts["reissued"] += 1
                    self._again.append(current)
            self._changed.notify_all()

    # The train graph

    async def take(self, version: int) -> tuple[list[Parcel], list[Parcel], dict[str, int]]:
        """The oldest `groups_per_step` groups that are fresh enough for policy `version`, once there are so many.

        And the flat ones that came since the last batch: they teach nothing, and belong to how well the policy does.
        Of these the newest `POOL`, and by game how many more there were. Groups that are too old are dropped. No groups
        at all where the buffer is closed before that.
        """
        num_groups = self.config.rollout.groups_per_step
        async with self._changed:
            for ticket, group, staleness in self._taken.values():  # of a step that came to nothing
                self._end(ticket, "dropped", "lost", group, staleness)
            self._taken.clear()
            self._wanted = True
            self._changed.notify_all()
            while not self._closed:
                self._drop_stale(version)
                if len(self._waiting) >= num_groups:
                    break
                await self._changed.wait()
            else:
                return [], [], {}
            # With staleness 0 the slots admit no more than these: their numbers decide, not their order of arrival.
            groups = [self._waiting.pop(number) for number in sorted(self._waiting)[:num_groups]]
            self._taken = {g.ticket.group: (g.ticket, g, version - g.min_version) for g in groups}
            its = [[number, ticket.game, staleness] for number, (ticket, _, staleness) in self._taken.items()]
            self._record({"taken": its, "version": version})
            self._wanted = False
            flat, self._flat = [group for _, group in sorted(self._flat)], []
            forgotten, self._forgotten = dict(self._forgotten), Counter()
            self.curriculum.learn([group.lesson for group in (*groups, *flat) if group.lesson], version)
            return groups, flat, forgotten

    def _drop_stale(self, version: int) -> None:
        for number, group in list(self._waiting.items()):
            staleness = version - group.min_version
            if staleness > self.config.asynchrony.max_staleness:
                del self._waiting[number]
                self._end(group.ticket, "dropped", "stale", group, staleness)
                self._changed.notify_all()

    async def release(self, version: int, skipped: str = "") -> None:
        """The engines hold policy `version`: what it was trained on gives its slots back.

        `skipped`: why the step was not made after all; its groups are quarantined then.
        """
        async with self._changed:
            assert version >= self.version, f"version {version} after {self.version}"
            self.version = version
            for ticket, group, staleness in self._taken.values():
                self._end(ticket, "quarantined" if skipped else "trained", skipped, group, staleness)
            self._taken.clear()
            self._record({"released": version})
            self._changed.notify_all()

    # Books

    def _end(self, ticket: Ticket, fate: str, reason: str, group: Parcel | None, staleness: int | None = None) -> None:
        self._blamed.pop(ticket.group, None)
        if staleness is None:
            staleness = self.version - (ticket.version if group is None else group.min_version)
        self.counts[fate] += 1
        if fate == "dropped":
            self.counts[f"dropped: {reason}"] += 1
        self._keep(Fate(ticket.group, ticket.game, fate, reason, self.version, staleness), group)

    @property
    def in_flight(self) -> int:
        """Groups that were issued and have come to no end yet."""
        return len(self._running) + len(self._waiting) + len(self._taken)

    def books(self) -> dict[str, int]:
        """All counts: issued, trained, dropped, quarantined, in_flight, and how the dropped divide."""
        named = ("issued", "trained", "dropped", "quarantined", "reissued", "refused")
        reasons = {key: value for key, value in self.counts.items() if key.startswith("dropped: ")}
        return {name: self.counts[name] for name in named} | reasons | {"in_flight": self.in_flight}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on with the same books, as JSON."""
        learned = self.curriculum.state_dict()
        return {"next": self._next, "version": self.version, "books": self.books(), "curriculum": learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`. What was in flight then is lost, and booked as dropped."""
        self._next, self.version = state["next"], state["version"]
        books = dict(state["books"])
        lost = books.pop("in_flight")
        self.counts = Counter(books)
        if lost:
            self.counts.update({"dropped": lost, "dropped: lost": lost})
        # Checkpoints of before there was a curriculum have visited states only.
        older = {"version": state["version"], "visited": state.get("visited", {}), "known": {}, "records": []}
        self.curriculum.load_state_dict(state.get("curriculum", older))

    def recover(self, ledger: Sequence[Mapping[str, Any]], learned: dict[str, Any] | None = None) -> None:
        """Goes on from the ledger of a buffer that died; `learned` is of the curriculum, as a checkpoint has it.

        What was running or waiting is lost, and booked as dropped; what a step is being trained on is still taken.
        """
        fates = {line["group"]: line for line in ledger if "fate" in line}
        for line in ledger:
            self._next = max(self._next, line.get("admitted", 0), line.get("issued", 0))
            self.version = line.get("released", line.get("checkpoint", self.version))
        self.counts["issued"] = self._next
        for line in fates.values():
            self.counts[line["fate"]] += 1
            if line["fate"] == "dropped":
                self.counts[f"dropped: {line['reason']}"] += 1
        batches = [line.get("taken", ()) for line in ledger if "taken" in line or "released" in line]
        taken = [its for its in (batches[-1] if batches else ()) if its[0] not in fates]
        self._taken = {n: (Ticket(n, game, 0, self.version), None, staleness) for n, game, staleness in taken}
        for number in range(self._next):
            if number not in fates and number not in self._taken:
                self._end(Ticket(number, "", 0, self.version), "dropped", "lost", None, 0)
        if learned:
            self.curriculum.load_state_dict(learned)

    async def close(self) -> dict[str, int]:
        """Wakes everybody up: nothing more is admitted, taken in or handed out. The final books."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self.books()


def books_of(config: RunConfig, ledger: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The books of a buffer that is no more, off its ledger."""
    buffer = ReplayBuffer(config, lambda fate, group: None)
    buffer.recover(ledger)
    return buffer.books()
