"""The folder that keeps what came of an evaluation.

config.json                      who plays what, and by which protocol
replies.jsonl                    a line for each answer, as it comes
notes.jsonl                      what went wrong on the way to them
moves/GAME--PLAYER.parquet       once all runs of a player on a game are over
table.md, results.json, results.parquet, lab.json
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from g1_ray.evaluation.job import Answered, Entry, Failed, Key, Troubled
from g1_ray.evaluation.moves import check_names, file_name, read_runs, write_moves
from g1_ray.evaluation.play import Reply, Run
from g1_ray.evaluation.replies import kept_replies
from g1_ray.files import Journal, Lock, part_of, read_json, write_json


@dataclass(frozen=True)
class Protocol:
    """How long everyone plays."""

    runs: int
    """Of each player on each game, e.g. 10 (paper)."""
    moves: int
    """Of a run, on fresh boards as boards end (paper: 100); 0: one episode."""
    seed: int = 0
    """Of the first run; the next have the next ones."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs."""
        return tuple(range(self.seed, self.seed + self.runs))


_LINE = TypeAdapter(tuple[str, str, int, int, Reply])
"""Of replies.jsonl: a key and a reply."""
_OURS = ("replies.jsonl", "moves", "table.md", "results.json", "results.parquet", "lab.json")


class EvaluationFolder:
    """What is kept of an evaluation, this process's alone until `close`.

    Raises `ValueError` where the folder is another one's, or something else's, or another process has it.
    """

    def __init__(self, path: Path, entries: Sequence[Entry], protocol: Protocol) -> None:
        self.path = path
        _check_ours(path)
        self._lock = Lock(path)
        try:
            now = _describe(entries, protocol)
            if (path / "config.json").is_file():
                now = _joined(path, _read(path), entries, now)
            check_names((game["name"], player["name"]) for game in now["games"] for player in now["players"])
            write_json(path / "config.json", now)
        except BaseException:
            self._lock.release()
            raise
        self._replies, self._notes = Journal(path / "replies.jsonl"), Journal(path / "notes.jsonl")

    def replies(self) -> dict[Key, Reply]:
        """The answers that are there."""
        return {
            (game, player, seed, move): reply
            for game, player, seed, move, reply in kept_replies(self._replies.path, _LINE)
        }

    def keep(self, news: Answered) -> None:
        """Writes an answer down."""
        self._replies.append([*news.key, dataclasses.asdict(news.reply)])

    def note(self, news: Failed | Troubled) -> None:
        """Writes down what went wrong."""
        self._notes.append({"time": time.time(), type(news).__name__.lower(): dataclasses.asdict(news)})

    def runs(self, entry: Entry) -> list[Run]:
        """The runs of a player on a game; none where not all of them are over."""
        return read_runs(self._moves(entry)) if self._moves(entry).is_file() else []

    def write_runs(self, entry: Entry, runs: Sequence[Run]) -> None:
        """Writes down the runs of a player on a game, by seed."""
        write_moves(self._moves(entry), *entry.key, sorted(runs, key=lambda run: run.seed))

    def _moves(self, entry: Entry) -> Path:
        return moves_of(self.path, entry)

    def close(self) -> None:
        """Closes all files, and lets others have the folder."""
        self._replies.close()
        self._notes.close()
        self._lock.release()


def _describe(entries: Sequence[Entry], protocol: Protocol) -> dict[str, Any]:
    games, players = (
        {getattr(entry, part).name: getattr(entry, part) for entry in entries} for part in ("game", "player")
    )
    return {
        "games": [game.model_dump(mode="json") for game in games.values()],
        "players": [player.model_dump(mode="json") for player in players.values()],
        "protocol": dataclasses.asdict(protocol),
    }


def moves_of(path: Path, entry: Entry) -> Path:
    """Where the moves of a player on a game are, once all its runs are over."""
    return path / "moves" / file_name(*entry.key)


def _check_ours(path: Path) -> None:
    """Raises `ValueError` where a folder holds what an evaluation would write over, and is none."""
    if (path / "config.json").is_file():
        _read(path)
    elif there := [name for name in _OURS if (path / name).exists()]:
        raise ValueError(f"{path} holds {there[0]}, and no evaluation that could go on\ngive another --out")


def _read(path: Path) -> dict[str, Any]:
    """The config of an evaluation in its folder."""
    try:
        kept: dict[str, Any] = read_json(part_of(path, "config.json"), _Kept)
    except ValueError as error:
        what = str(error).partition("\n")[0]
        raise ValueError(f"{path} holds something else, or a broken evaluation: {what}\ngive another --out") from None
    return kept


class _Named(BaseModel):
    name: str


class _Kept(BaseModel):
    """The config of an evaluation, as far as it is compared."""

    games: list[_Named]
    players: list[_Named]
    protocol: dict[str, int]


def _joined(path: Path, before: dict[str, Any], entries: Sequence[Entry], now: dict[str, Any]) -> dict[str, Any]:
    """Both: games and players may be added to a folder, but what is there must have been played by the same rules."""
    parts = {}
    for part in ("games", "players"):
        old, new = ({line["name"]: line for line in config[part]} for config in (before, now))
        kinds = {(thing := getattr(entry, part.removesuffix("s"))).name: type(thing) for entry in entries}
        for name in old.keys() & new.keys():
            for key, value in new[name].items():  # an older version may have kept options that say nothing
                default = kinds[name].model_fields[key].default  # or none of a newer one
                if old[name].get(key, default) != value:
                    raise _another(path, f"{part.removesuffix('s')} {name!r}", f"{key} = {old[name].get(key)!r}")
        parts[part] = list({**old, **new}.values())
    for key, value in now["protocol"].items():
        if before["protocol"].get(key) != value:
            raise _another(path, "protocol", f"{key} = {before['protocol'].get(key)}")
    return {**parts, "protocol": now["protocol"]}


def _another(path: Path, what: str, was: str) -> ValueError:
    return ValueError(f"{path} holds an evaluation with another {what}: {was}\ngive the same, or another --out")
