"""The scoreboard: what the games of models, classic players and people came to, with intervals as in evaluation."""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs import PLAYERS, Task
from g1_ray.evaluation.results import bootstrap_mean
from g1_ray.files import Journal, read_lines
from g1_ray.serve.session import PERSON, Lane, Session

Line = dict[str, Any]
"""A game that came to its end; see `score_of`."""


def score_of(session: Session, number: int, lane: Lane, models: Sequence[str]) -> Line:
    """A lane that is over, as a line of the scores."""
    moves = lane.table.moves
    described = [move for move in moves if move.perception_exact is not None]
    exact = [move for move in described if move.perception_exact]
    versions = [v for event in lane.played for v in (event.reply or {}).get("versions") or ()]
    player = lane.credited
    return {
        "session": session.id,
        "lane": number,
        "game": session.game,
        "task": session.task.to_json(),
        "player": session.name if player == PERSON else player,
        "kind": "person" if player == PERSON else "classic" if player in PLAYERS else "model",
        "seed": session.seed,
        "score": lane.table.game.score,
        "moves": len(moves),
        "won": lane.table.game.won(),
        "described": len(described),
        "exact": len(exact),
        "scoring": sum(move.gain > 0 for move in exact),
        "versions": [min(versions), max(versions)] if versions else None,
        "at": lane.events[-1].at,
    }


class Scores:
    """All scores, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._lines: dict[tuple[str, int], Line] = {}
        self._lock = threading.Lock()
        self.written_at = path.stat().st_mtime if path.is_file() else 0.0
        for line in read_lines(path):
            self._lines.setdefault((line["session"], line["lane"]), line)
        self._journal = Journal(path)
        self._boards: list[dict[str, Any]] | None = None

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._lines

    def add(self, line: Line) -> None:
        """Keeps a score, once."""
        with self._lock:
            key = line["session"], line["lane"]
            if key not in self._lines:
                self._journal.append(line)
                self._lines[key], self._boards = line, None

    def of(self, game: str, name: str) -> Iterator[Line]:
        """The games of a person."""
        lines = list(self._lines.values())
        return (line for line in lines if (line["game"], line["kind"], line["player"]) == (game, "person", name))

    def boards(self) -> list[dict[str, Any]]:
        """A table for each task, the most played first; in it a row for each player, the best first."""
        with self._lock:
            if self._boards is None:
                self._boards = self._tables()
            return self._boards

    def _tables(self) -> list[dict[str, Any]]:
        tasks: dict[str, dict[tuple[str, str], list[Line]]] = {}
        for line in self._lines.values():
            tasks.setdefault(line["task"], {}).setdefault((line["kind"], line["player"]), []).append(line)
        tables = [_table(task, players) for task, players in tasks.items()]
        return sorted(tables, key=lambda table: -sum(row["games"] for row in table["rows"]))


def _table(task: str, players: Mapping[tuple[str, str], list[Line]]) -> dict[str, Any]:
    rows = []
    for (kind, player), lines in players.items():
        mean = bootstrap_mean([line["score"] for line in lines], 2000)
        described, exact, scoring = (sum(line[name] for line in lines) for name in ("described", "exact", "scoring"))
        rows.append(
            {
                "player": player,
                "kind": kind,
                "games": len(lines),
                "score": list(mean),
                "best": max(line["score"] for line in lines),
                "won": sum(line["won"] for line in lines),
                "p_acc": exact / described if described else None,
                "r_acc": scoring / exact if exact else None,
            }
        )
    game = next(iter(players.values()))[0]["game"]
    about = Task.from_json(task)
    return {
        "game": game,
        "name": about.name,
        "reasoning": about.reasoning.as_dict(),
        "id": hashlib.sha256(task.encode()).hexdigest()[:12],
        "rows": sorted(rows, key=lambda row: -row["score"][0]),
    }
