"""The replay buffer: admits groups, keeps what came of them, hands out batches. The only commit point of a run.

What holds at any moment, and is tested:

- issued = trained + dropped + quarantined + in flight, where in flight includes groups that wait here or are being
  trained on;
- groups that are running, waiting or taken never exceed the run's capacity (`RunConfig.capacity`), and a taken group
  gives its slot back only once the engines hold the weights made from it (after AReaL, arXiv 2505.24298, section 5.1);
- a group is trained on at most once, and never when its oldest token is more than max_staleness steps old;
- with max_staleness 0 what a batch is made of depends on the run's seed alone, not on who was faster;
- what is kept is bounded, however long no group comes that can be trained on.

A plain asyncio class: it becomes an actor where the graphs are composed.
"""

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from g1_ray.config import RunConfig
from g1_ray.pipeline.curriculum import Curriculum
from g1_ray.seeds import seed_of
from g1_ray.types import Fate, Group, Ticket

MAX_ISSUES = 3
"""Times a group is tried before it is given up and quarantined."""
POOL = 1024
"""Flat groups kept for the next batch."""


class ReplayBuffer:
    """Tickets out, groups in, batches out.

    `fault_of` says what is wrong with a group ('' for nothing), `is_flat` whether all its answers earn the same;
    `keep` is given every group that comes to an end with what became of it.
    """

    def __init__(
        self,
        config: RunConfig,
        fault_of: Callable[[Group], str],
        is_flat: Callable[[Group], bool],
        keep: Callable[[Fate, Group | None], None],
    ) -> None:
        self.config = config
        self.capacity = config.capacity
        self.version = 0
        self.counts: Counter[str] = Counter()
        self._fault_of, self._is_flat, self._keep = fault_of, is_flat, keep
        self._next = 0
        self._running: dict[int, Ticket] = {}
        self._again: deque[Ticket] = deque()
        self._waiting: dict[int, Group] = {}
        self._taken: dict[int, tuple[Group, int]] = {}  # with its staleness
        self._flat: list[tuple[int, Group]] = []  # since the last batch: a heap of those with the highest numbers
        self._forgotten: Counter[str] = Counter()  # by game, the other flat ones
        self.flat_in_a_row = 0
        """Groups that came since the last one that was not flat."""
        self.curriculum = Curriculum(config)
        self._changed = asyncio.Condition()
        self._closed = False

    # The rollout graph

    async def admit(self, num_groups: int) -> list[Ticket]:
        """The next tickets, once there are slots for all of them; none once the buffer is closed.

        Fewer where nothing is running any more, as then no other slots will come free: a batch may lack just a few.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._free >= (num_groups if self._active else 1))
            return [] if self._closed else [self._issue() for _ in range(min(num_groups, self._free))]

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

    async def put(self, groups: Sequence[Group]) -> int:
        """Takes groups in, each whole; returns how many.

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
                if fault := self._fault_of(group):
                    self._end(group.ticket, "quarantined", fault, group)
                elif self._is_flat(group):
                    self._keep_flat(group)
                    self._end(group.ticket, "dropped", "flat", group)
                else:
                    self.flat_in_a_row = 0
                    self._waiting[group.ticket.group] = group
            self._changed.notify_all()
        return taken_in

    def _keep_flat(self, group: Group) -> None:
        """Which ones are kept depends on their numbers, not on who was faster."""
        self.flat_in_a_row += 1
        heapq.heappush(self._flat, (group.ticket.group, group))
        if len(self._flat) > POOL:
            _, oldest = heapq.heappop(self._flat)
            self._forgotten[oldest.ticket.game] += 1

    async def fail(self, tickets: Sequence[Ticket], reason: str) -> None:
        """Groups that came to nothing: they are issued again, or given up after `MAX_ISSUES` times."""
        async with self._changed:
            for ticket in tickets:
                current = self._running.get(ticket.group)
                if current is None or current.incarnation != ticket.incarnation or current in self._again:
                    continue
                if ticket.incarnation + 1 >= MAX_ISSUES:
                    del self._running[ticket.group]
                    self._end(ticket, "quarantined", reason, None)
                else:
                    self.counts["reissued"] += 1
                    self._again.append(current)
            self._changed.notify_all()

    # The train graph

    async def take(self, version: int) -> tuple[list[Group], list[Group], dict[str, int]]:
        """The oldest `groups_per_step` groups that are fresh enough for policy `version`, once there are so many.

        And the flat ones that came since the last batch: they teach nothing, and belong to how well the policy does.
        Of these the newest `POOL`, and by game how many more there were. Groups that are too old are dropped. No groups
        at all where the buffer is closed before that.
        """
        num_groups = self.config.rollout.groups_per_step
        async with self._changed:
            while not self._closed:
                self._drop_stale(version)
                if len(self._waiting) >= num_groups:
                    break
                await self._changed.wait()
            else:
                return [], [], {}
            # With staleness 0 the slots admit no more than these: their numbers decide, not their order of arrival.
            groups = [self._waiting.pop(number) for number in sorted(self._waiting)[:num_groups]]
            self._taken = {group.ticket.group: (group, version - group.min_version) for group in groups}
            flat, self._flat = [group for _, group in sorted(self._flat)], []
            forgotten, self._forgotten = dict(self._forgotten), Counter()
            self.curriculum.learn([*groups, *flat], version)
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
            for group, staleness in self._taken.values():
                self._end(group.ticket, "quarantined" if skipped else "trained", skipped, group, staleness)
            self._taken.clear()
            self._changed.notify_all()

    # Books

    def _end(self, ticket: Ticket, fate: str, reason: str, group: Group | None, staleness: int | None = None) -> None:
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
        self.counts["dropped"] += lost
        self.counts["dropped: lost"] += lost
        # Checkpoints of before there was a curriculum have visited states only.
        older = {"version": state["version"], "visited": state.get("visited", {}), "known": {}, "records": []}
        self.curriculum.load_state_dict(state.get("curriculum", older))

    async def close(self) -> dict[str, int]:
        """Wakes everybody up: nothing more is admitted, taken in or handed out. The final books."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self.books()
