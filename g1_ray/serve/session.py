"""A session: one task, one seed, and a lane for each seat, on which whoever sits there plays its own copy of the board.

    Session = task + seed + Lane, Lane, ...         all lanes begin with the same board: a race
    Lane    = seat + Event, Event, ...              a move, a move taken back, another one sits down, a hint
    Event   -> Lane.apply                           live, and again when a journal is read: one code, one outcome

What holds, and is tested: an event has the revision of its lane, the number of events before it, and each revision is
taken once; the same event sent again changes nothing; a lane is a function of its task, its seed and its events; no
board comes from outside.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envs import Codec, RewardTable, Task, reward_table
from envs.answers import CellPairs
from envs.rewards import ternary
from g1_ray.evaluation.play import Move, Question, Reply, Table

PERSON = "person"
"""Who sits where a person plays."""
MAX_MOVES = 2000
"""Longest game of a lane."""


class Refused(Exception):
    """What was asked for can't be done. `status` is HTTP's, `code` a word for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Event:
    """What happened on a lane."""

    revision: int
    """Events of the lane before it."""
    kind: str
    """'move', 'undo', 'seat' or 'hint'."""
    by: str
    """Who moved; of 'seat': who sits down."""
    action: int | None = None
    """Of a move. None: an answer that could not be read."""
    reply: Mapping[str, Any] | None = None
    """Of a move by a model: the fields of its `Reply`."""
    at: float = 0.0
    """Unix time, s."""

    def same(self, other: "Event") -> bool:
        """Whether it is the other one, sent again."""
        return dataclasses.replace(self, at=0.0, reply=None) == dataclasses.replace(other, at=0.0, reply=None)

    def to_json(self) -> dict[str, Any]:
        """As a line of a journal has it; what there is nothing to say of is left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, "")}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Event":
        """What `to_json` made."""
        return cls(**{field.name: line[field.name] for field in dataclasses.fields(cls) if field.name in line})


@functools.lru_cache(maxsize=64)
def codec_of(task: Task) -> Codec:
    """The codec of a task, shared."""
    return Codec(task)


class Lane:
    """One copy of the board, and whoever plays it."""

    def __init__(self, task: Task, seed: int, seat: str, game: str) -> None:
        self.seat, self.game_name = seat, game
        self.table = Table(task, seat, seed, 0, ternary)
        self.events: list[Event] = []
        self.helped = False
        """Whether a move was taken back, a hint given, or another one has sat here."""
        self.movers: list[str] = []
        """Who made each move that stands."""
        self.played: list[Event] = []
        """The moves that stand."""
        self._ahead: RewardTable | None = None

    @property
    def revision(self) -> int:
        """Events so far: what the next one says."""
        return len(self.events)

    @property
    def over(self) -> bool:
        """Whether the game has ended."""
        return self.table.game.over

    @property
    def ahead(self) -> RewardTable:
        """What each legal move would do."""
        if self._ahead is None:
            self._ahead = reward_table(self.table.game, ternary)
        return self._ahead

    @property
    def credited(self) -> str:
        """Whose score it is: the one who made every move without help; '' where there is none."""
        return self.movers[0] if self.movers and not self.helped and len(set(self.movers)) == 1 else ""

    def question(self) -> Question:
        """What the one who sits here is asked now; the same as an evaluation asks on this seed."""
        return Question(self.game_name, self.seat, self.table.seed, len(self.table.moves), self.table.state)

    def known(self, event: Event) -> bool:
        """Whether an event was applied before. Raises `Refused` where another one was, or one before it is missing."""
        if event.revision == self.revision:
            return False
        if event.revision < self.revision and self.events[event.revision].same(event):
            return True
        raise Refused(409, "stale", f"revision {event.revision}: the game is at {self.revision}; look at it again")

    def check(self, event: Event) -> None:
        """Raises `Refused` for what can't be done now."""
        if event.kind == "move":
            if self.over:
                raise Refused(409, "over", "the game is over")
            if event.by != self.seat:
                raise Refused(409, "not_your_turn", f"{self.seat} plays here; take over first")
            if event.by == PERSON and event.action not in self.table.game.legal_actions():  # others' mistakes count
                if not isinstance(event.action, int) or not 0 <= event.action < self.table.game.actions.num:
                    raise Refused(422, "no_action", f"action {event.action!r}: 0 to {self.table.game.actions.num - 1}")
                raise Refused(422, "illegal", f"{self.table.game.actions.write(event.action)} is not legal here")
        elif event.kind == "undo" and not self.played:
            raise Refused(409, "nothing_to_undo", "no move to take back")
        elif event.kind == "hint" and self.over:
            raise Refused(409, "over", "the game is over")

    def apply(self, event: Event) -> None:
        """Changes the lane by an event that was checked."""
        assert event.revision == self.revision
        if event.kind == "move":
            self._move(event)
        elif event.kind == "undo":
            self.table.undo()
            self.movers.pop()
            self.played.pop()
        elif event.kind == "seat":
            self.seat = event.by
        self.helped |= event.kind in ("undo", "hint") or (event.kind == "seat" and bool(self.movers))
        if event.kind != "hint":
            self._ahead = None
        self.events.append(event)

    def _move(self, event: Event) -> None:
        table, state, best = self.table, self.table.state, float(self.ahead.rewards.max())
        if event.reply is None:
            table.count(state, best, event.action, table.game.step(event.action))
        else:
            table.hear(codec_of(table.task), state, best, Reply(**event.reply))
        self.movers.append(event.by)
        self.played.append(event)


class Session:
    """A task, a seed, and lanes."""

    def __init__(self, id: str, game: str, task: Task, seed: int, seats: tuple[str, ...], name: str, at: float) -> None:
        self.id, self.game, self.task, self.seed, self.name, self.at = id, game, task, seed, name, at
        self.seats = seats
        self.lanes = [Lane(task, seed, seat, game) for seat in seats]

    def lane(self, number: int) -> Lane:
        """One of the lanes. Raises `Refused`."""
        if not 0 <= number < len(self.lanes):
            raise Refused(404, "no_lane", f"lane {number}: there are {len(self.lanes)}")
        return self.lanes[number]

    def head(self) -> dict[str, Any]:
        """The first line of its journal."""
        about = {"task": self.task.to_json(), "seed": self.seed, "seats": self.seats, "name": self.name, "at": self.at}
        return {"id": self.id, "game": self.game, **about}

    @classmethod
    def from_head(cls, line: Mapping[str, Any]) -> "Session":
        """What `head` wrote, before its first event."""
        task = Task.from_json(line["task"])
        return cls(line["id"], line["game"], task, line["seed"], tuple(line["seats"]), line["name"], line["at"])


def action_of(task: Task, text: str) -> int:
    """The move that a person wrote. Raises `Refused`."""
    actions = codec_of(task).actions
    reading = actions.read(text)
    if not isinstance(reading, int):
        raise Refused(422, "unreadable", f"{text[:60]!r} is no move ({reading}): expected {actions.ask}")
    return reading


def cells_of(task: Task, action: int) -> list[int]:
    """The cells (row * columns + column) that an action is about, where it is about cells."""
    actions = codec_of(task).actions
    return list(actions.cells(action)) if isinstance(actions, CellPairs) else []


def words_of(move: Move) -> str:
    """A move in words; '' where it could not be read."""
    return "" if move.action is None else codec_of(move.state.task).actions.write(move.action)
