"""The folder that keeps what came of an evaluation.

config.json                      who plays what, and by which protocol
replies.jsonl                    a line for each answer, as it comes
moves/GAME--PLAYER.parquet       once all runs of a player on a game are over
table.md, results.json, results.parquet, lab.json
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g1_ray.evaluation.job import Answered, Entry, Key
from g1_ray.evaluation.moves import file_name, read_runs, write_moves
from g1_ray.evaluation.play import Reply, Run
from g1_ray.files import Journal, read_json, read_lines, write_json


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


class EvaluationFolder:
    """What is kept of an evaluation. Raises `ValueError` where the folder is that of another one."""

    def __init__(self, path: Path, entries: Sequence[Entry], protocol: Protocol) -> None:
        self.path = path
        now = _describe(entries, protocol)
        if (path / "config.json").is_file():
            now = _joined(path, read_json(path / "config.json"), now)
        write_json(path / "config.json", now)
        self._replies = Journal(path / "replies.jsonl")

    def replies(self) -> dict[Key, Reply]:
        """The answers that are there."""
        lines = read_lines(self._replies.path)
        return {(game, player, seed, move): Reply(**reply) for game, player, seed, move, reply in lines}

    def keep(self, news: Answered) -> None:
        """Writes an answer down."""
        self._replies.append([*news.key, dataclasses.asdict(news.reply)])

    def runs(self, entry: Entry) -> list[Run]:
        """The runs of a player on a game; none where not all of them are over."""
        return read_runs(self._moves(entry)) if self._moves(entry).is_file() else []

    def write_runs(self, entry: Entry, runs: Sequence[Run]) -> None:
        """Writes down the runs of a player on a game, by seed."""
        write_moves(self._moves(entry), *entry.key, sorted(runs, key=lambda run: run.seed))

    def _moves(self, entry: Entry) -> Path:
        return self.path / "moves" / file_name(*entry.key)

    def close(self) -> None:
        """Closes all files."""
        self._replies.close()


def _describe(entries: Sequence[Entry], protocol: Protocol) -> dict[str, Any]:
    games, players = (
        {getattr(entry, part).name: getattr(entry, part) for entry in entries} for part in ("game", "player")
    )
    return {
        "games": [game.model_dump(mode="json") for game in games.values()],
        "players": [player.model_dump(mode="json") for player in players.values()],
        "protocol": dataclasses.asdict(protocol),
    }


def _joined(path: Path, before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Both: games and players may be added to a folder, but what is there must have been played by the same rules."""
    parts = {}
    for part in ("games", "players"):
        old, new = ({line["name"]: line for line in config[part]} for config in (before, now))
        for name in old.keys() & new.keys():
            for key, value in new[name].items():  # an older version may have kept options that say nothing
                if old[name].get(key) != value:
                    raise _another(path, f"{part.removesuffix('s')} {name!r}", f"{key} = {old[name].get(key)!r}")
        parts[part] = list({**old, **new}.values())
    for key, value in now["protocol"].items():
        if before["protocol"][key] != value:
            raise _another(path, "protocol", f"{key} = {before['protocol'][key]}")
    return {**parts, "protocol": now["protocol"]}


def _another(path: Path, what: str, was: str) -> ValueError:
    return ValueError(f"{path} holds an evaluation with another {what}: {was}\ngive the same, or another --out")
