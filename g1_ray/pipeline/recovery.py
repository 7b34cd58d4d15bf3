"""What is done about parts that die or hang: they are brought back one by one, while the others go on.

    env worker    its tick is made again on another one; Ray starts it anew
    buffer        comes back with its books off the ledger
    engine        its ticks are made again elsewhere; it starts, is given the policy as it is now, and is compared
    learner       all ranks start anew from the newest checkpoint (`Pipeline.rewind`); engines go back with them

A part that dies more than `MAX_DEATHS` times with no step made in between ends the run.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import ray

from g1_ray.engines.weight_sync import CANARY_TOLERANCE, Canary
from g1_ray.pipeline.actors import START_TIMEOUT_S
from g1_ray.pipeline.graph import Actors, first_line
from g1_ray.pipeline.parts import Part, bury, stacks_of, there
from g1_ray.types import Ints, Prompt

log = logging.getLogger(__name__)
MAX_DEATHS = 5
BURIAL_S = 30.0
"""Longest wait for what is left of a part to be removed; its node may be gone with it."""
COLLECTIVE, INNERMOST = "torch/distributed/", 6
"""Where a rank waits for the others, among so many lines of a thread's stack."""
STACKS_S = 4.0
"""Longest wait for what parts are at."""
Asked: TypeAlias = Any
"""What a healing waits for: a call, or None for a look a little later."""


def waits_for_others(stacks: str) -> bool:
    """Whether a rank is in a collective: one of its threads, in the innermost calls."""
    threads = stacks.split("Thread ")
    return any(COLLECTIVE in call for thread in threads for call in thread.splitlines()[:INNERMOST])


class Recovery:
    """Watches the parts of a run, and heals them. `note` hears of it, a line and perhaps stacks."""

    def __init__(
        self,
        actors: Actors,
        parts: Sequence[Part],
        dtype: str,
        hang_s: float,
        sequences: Sequence[tuple[Prompt, Ints]],
        note: Callable[[str, str], None],
    ) -> None:
        self.actors, self.parts, self.note = actors, parts, note
        self.counts: Counter[str] = Counter()
        """Role -> how many of its parts have been brought back."""
        self._dtype, self._hang_s, self._sequences = dtype, hang_s, sequences
        self._healing: dict[str, tuple[Part, Iterator[Asked], Asked, float]] = {}

    def of(self, role: str, up: bool = True) -> list[Part]:
        """The parts of a role that are up, or all of them."""
        return [part for part in self.parts if part.role == role and (part.up or not up)]

    def part_of(self, actor: Any) -> Part | None:
        """The part that an actor is."""
        return next((part for part in self.parts if actor is not None and part.actor == actor), None)

    def look(self) -> None:
        """Finds out who has died or hangs, and takes those that are being healed on."""
        for part in self.parts:
            if part.up and (fault := part.look(self._hang_s)):
                self.lose(part, fault)
        for name in list(self._healing):
            self._go_on(name)

    def name(self, parts: Sequence[Part], what: str) -> Part | None:
        """Notes what those who give no answer are at, and returns who hangs: of ranks the one that waits for no other.

        None where there is nobody. It takes `STACKS_S` at most.
        """
        at = self._stacks(parts)
        for part in parts:
            self.note(f"{part.name}{part.whereabouts}: {what}", at[part.name])
        hang = (part for part in parts if not waits_for_others(at[part.name]))
        return next(hang, parts[0] if parts else None)

    def _stacks(self, parts: Sequence[Part]) -> dict[str, str]:
        """By their names: what their threads are at, and what their coroutines wait for."""
        asked = {part.name: there(stacks_of, part.place) for part in parts if part.place}
        loops = {part.name: part.actor.waits.remote() for part in parts if part.role in ("buffer", "engine")}
        told, deadline = {part.name: "" for part in parts}, time.monotonic() + STACKS_S
        for name, stacks in asked.items():
            try:
                while (its := stacks()) is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                told[name] += its or ""
            except Exception as error:  # noqa: BLE001 - its node is gone
                log.info("no stacks of %s: %s", name, first_line(error))
        for name, loop in loops.items():
            try:
                told[name] += ray.get(loop, timeout=max(0.0, deadline - time.monotonic()))
            except Exception as error:  # noqa: BLE001 - its loop stands still: its threads tell
                log.info("no coroutines of %s: %s", name, first_line(error))
        return told

    def examine(self, part: Part, patience_s: float = 5.0) -> bool:
        """Asks a part that seems to be ill whether it is alive, and waits for that; whether it is."""
        if not part.up:
            return False
        try:
            ray.get(part.actor.alive.remote(), timeout=patience_s)
        except ray.exceptions.GetTimeoutError:
            return True  # it may be busy: the watch will tell
        except Exception as error:  # noqa: BLE001 - whatever ended it
            self.lose(part, f"failed: {first_line(error)}")
            return False
        return True

    def accuse(self, part: Part, why: str, asked_at: float) -> None:
        """A part is down, as what it was asked at `asked_at` (Unix time, s) tells.

        The answer may come late, from before it came back: then it is asked once more.
        """
        if asked_at < part.back_at:
            self.examine(part)
        else:
            self.lose(part, why)

    def lose(self, part: Part, why: str) -> None:
        """A part is down: it is brought back from here on, a learner by whoever asks for `lost_learner`."""
        if not part.up:
            return
        part.lost()
        who = f"{part.name}{part.whereabouts}"
        if part.deaths > MAX_DEATHS:
            raise RuntimeError(f"{who} {why}; that was {part.deaths} times without a step in between")
        log.warning("%s %s", who, why)
        self.note(f"{who} {why}", "")
        if part.role == "learner":
            part.burial = there(bury, part.place) if part.place else None  # so that nobody waits for it
        else:
            self._healing[part.name] = part, self._heal(part), None, time.monotonic()

    @property
    def healing(self) -> bool:
        """Whether somebody is being brought back."""
        return bool(self._healing)

    @property
    def lost_learner(self) -> Part | None:
        """A rank that is down, if one is."""
        return next((part for part in self.of("learner", up=False) if not part.up), None)

    def a_step_was_made(self) -> None:
        """Nobody has died for nothing."""
        for part in self.parts:
            part.deaths = 0

    def reborn(self, part: Part) -> Iterator[Asked]:
        """Ends what is left of a part, and waits for its actor to be there again."""
        if part.place is not None:
            try:
                buried, deadline = part.burial or there(bury, part.place), time.monotonic() + BURIAL_S
                while (stacks := buried()) is None and time.monotonic() < deadline:
                    yield None
                if stacks:
                    self.note(f"{part.name}: what it was at", stacks)
            except Exception as error:  # noqa: BLE001 - its node is gone, and with it all that was left
                log.info("%s was not buried: %s", part.name, first_line(error))
            part.burial = None
        deadline = time.monotonic() + START_TIMEOUT_S  # its node may have gone, and another one have to come
        while not part.is_back():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{part.name} was not started anew in {START_TIMEOUT_S:g} s")
            yield None

    def _heal(self, part: Part) -> Iterator[Asked]:
        yield from self.reborn(part)
        if part.role == "engine":
            yield from self._rejoin(part)

    def _rejoin(self, part: Part) -> Iterator[Asked]:
        """An engine starts, and is given the policy as it is now."""
        started = part.actor.start.remote()
        yield started
        asked = [actor.policy.options(num_returns=3).remote(self._sequences) for actor in self.actors.learners]
        report, weights, learned = asked[0]
        yield report
        part.version = ray.get(report).version
        if part.version:
            loaded = part.actor.load_policy.remote(weights, report)
            yield loaded
        answered = part.actor.logprobs.remote(self._sequences)
        yield answered
        yield learned
        Canary(CANARY_TOLERANCE[self._dtype]).check(part.version, ray.get(answered), ray.get(learned))

    def _go_on(self, name: str) -> None:
        part, healing, asked, since = self._healing[name]
        if asked is not None and not ray.wait([asked], timeout=0, fetch_local=False)[0]:
            if time.monotonic() - since > START_TIMEOUT_S:
                raise RuntimeError(f"{name} did not come back in {START_TIMEOUT_S:g} s")
            return
        try:
            if asked is not None:
                ray.get(asked)
            self._healing[name] = part, healing, next(healing), since
        except StopIteration:
            del self._healing[name]
            part.back()
            self.counts[part.role] += 1
            self.note(f"{name} is back after {time.monotonic() - part.down_at:.1f} s", "")
        except Exception as error:  # noqa: BLE001 - it has died again
            del self._healing[name]
            part.up = True
            self.lose(part, f"did not come back: {first_line(error)}")

    def forget(self) -> None:
        """Those that are being healed begin anew: the learner that was to help them is another one."""
        for name, (part, _, _, since) in list(self._healing.items()):
            self._healing[name] = part, self._heal(part), None, since
