"""What stands in the JSON files of a run and of an evaluation, as far as it is read: shapes for `files.read_json`.

A file may have more than that, and files of an earlier day less.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """A table of a JSON file."""

    model_config = ConfigDict(extra="ignore")


class Step(Shape):
    """A line of metrics.jsonl: numbers by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)
    step: int = Field(ge=0)


class Ended(Shape):
    """A line of ledger.jsonl: the fate of a group (`types.Fate`)."""

    model_config = ConfigDict(extra="forbid")
    group: int
    game: str
    fate: str
    reason: str
    step: int
    staleness: int


class Mark(Shape):
    """A line of ledger.jsonl: a checkpoint follows."""

    checkpoint: int
    issued: int = Field(ge=0, le=1 << 32)
    files: int = Field(ge=0)


class Admitted(Shape):
    """A line of ledger.jsonl: so many groups have been issued."""

    admitted: int = Field(ge=0, le=1 << 32)


class Taken(Shape):
    """A line of ledger.jsonl: a step is going to be trained on these, each with its game and its staleness."""

    taken: list[Annotated[list[int | str], Field(min_length=3, max_length=3)]]


class Released(Shape):
    """A line of ledger.jsonl: that step has been made."""

    released: int


class Saved(Shape):
    """A line of ledger.jsonl: that checkpoint is there."""

    saved: int


Entry = Ended | Mark | Saved | Admitted | Taken | Released
"""A line of ledger.jsonl."""


class Note(Shape):
    """A line of notes.jsonl."""

    time: float
    note: str


class Alive(Shape):
    """A part of a run."""

    name: str
    up: bool
    node: str
    process: int
    busy: int


class Status(Shape):
    """status.json of a run: how its parts are."""

    time: float
    step: int
    parts: list[Alive]
    ticks: int


class Named(Shape):
    """A player."""

    name: str


class Game(Shape):
    """A game of a config."""

    game: str
    name: str | None = None
    reward: str = "ternary"
    lookahead: Annotated[int, Field(ge=0, le=1000)] = 0


class Protocol(Shape):
    """That of an evaluation."""

    runs: int | None = None
    moves: int | None = None


class Eval(Shape):
    """A run's."""

    label: str | None = None
    baselines: dict[str, str] = {}


class Model(Shape):
    """A run's."""

    path: str = ""


class Config(Shape):
    """config.json of a run, a cold start or an evaluation."""

    name: str = ""
    steps: int | None = None
    games: list[Game] | dict[str, Game] | None = None
    players: list[Named] | None = None
    protocol: Protocol | None = None
    model: str | Model | None = None
    eval: Eval | None = None
    algorithm: dict[str, Any] | None = None
    reward: dict[str, Any] | None = None


class Report(Shape):
    """report.json of a run."""

    steps: int | None = None
    stopped: bool = False
    seconds: float | None = None
    training_s: float | None = None
    groups: dict[str, int] | None = None
    checkpoint: str | None = None
    results: "list[Line] | None" = None


Number = float | None
Mean = Annotated[list[Number] | None, Field(min_length=3, max_length=3)]
"""With the ends of its interval."""


class Line(Shape):
    """A line of results.json."""

    game: str
    player: str
    runs: int = 0
    score: Mean = None
    scoring: Mean = None
    legal: Mean = None
    regret: Mean = None
    difference: Mean = None
    boards: int = 0
    won: int = 0
    p_acc: Number = None
    cell_acc: Number = None
    r_acc: Number = None
    unreadable: float = 0.0
    causes: dict[str, float] | None = None
    tokens: Number = None
    seconds: Number = None
    cost: Number = None


class Lab(Shape):
    """What lab.json has of a model on a game."""

    game: str | None = None
    player: str = ""
    states: int | None = None
    names: list[str] | None = None
    confusion: list[list[int]] | None = None
    cells: list[list[Number]] | None = None
    interventions: dict[str, dict[str, Any]] | None = None


Report.model_rebuild()
