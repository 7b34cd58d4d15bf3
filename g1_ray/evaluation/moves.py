"""Moves on disk: a parquet file for each player on each game, a row for each move, which `datasets` opens.

A picture is not stored: `State.from_bytes(row["state"]).draw()` draws it again.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs import State
from g1_ray.evaluation.play import Move, Run
from g1_ray.runs.parquet import check_columns, write_tables

SCHEMA = pa.schema(
    [
        ("game", pa.string()),
        ("player", pa.string()),
        ("seed", pa.int64()),  # of the run
        ("board", pa.int32()),  # number of the board within the run
        ("move", pa.int32()),  # number within the run
        ("task", pa.string()),  # JSON, see Task.from_json
        ("state", pa.binary()),  # before the move, whole, see State.from_bytes
        ("text", pa.string()),  # the answer; '' for players that give none
        ("action", pa.int32()),  # null: unreadable
        ("action_text", pa.string()),
        ("cause", pa.string()),  # why it was unreadable
        ("legal", pa.bool_()),
        ("gain", pa.float64()),
        ("reward_game", pa.float64()),
        ("regret", pa.float64()),  # what the best legal move earns, less this one's reward
        ("perception_exact", pa.bool_()),  # null for players that describe no boards
        ("perception_share", pa.float64()),  # of cells that are right
        ("over", pa.bool_()),  # whether the board ended with this move
        ("success", pa.bool_()),  # whether it was won with it
        ("prompt_tokens", pa.int32()),
        ("tokens", pa.int32()),  # of the answer
        ("seconds", pa.float64()),  # from asking to the answer
    ]
)

_FIELDS = tuple(field.name for field in dataclasses.fields(Move) if field.name not in ("state", "reward"))


def move_rows(game: str, player: str, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """A row for each move of the runs."""
    for run in runs:
        board, actions = 0, run.moves[0].state.task.new_game().actions  # a run has one task
        for number, move in enumerate(run.moves):
            yield {
                "game": game,
                "player": player,
                "seed": run.seed,
                "board": board,
                "move": number,
                "task": move.state.task.to_json(),
                "state": move.state.to_bytes(),
                "action_text": "" if move.action is None else actions.write(move.action),
                "reward_game": move.reward,
                **{name: getattr(move, name) for name in _FIELDS},
            }
            board += move.over


def write_moves(path: Path, game: str, player: str, runs: Sequence[Run]) -> None:
    """Writes the runs of a player on a game, whole or not at all."""
    write_tables(path, SCHEMA, [pa.Table.from_pylist(list(move_rows(game, player, runs)), SCHEMA)])


def read_runs(path: Path) -> list[Run]:
    """The runs of a file that `write_moves` wrote. Raises `ValueError` where it is another one."""
    check_columns(path, SCHEMA.names, "give a file of moves that g1-ray evaluate or play wrote")
    runs: dict[int, list[Move]] = {}
    for row in pq.read_table(path).to_pylist():
        values = {name: row[name] for name in _FIELDS} | {"reward": row["reward_game"]}
        runs.setdefault(row["seed"], []).append(Move(state=State.from_bytes(row["state"]), **values))
    return [Run(seed, tuple(moves)) for seed, moves in runs.items()]


def file_name(game: str, player: str, ending: str = ".parquet") -> str:
    """What a file of a player on a game is called, e.g. "2048--tiny-base.parquet"."""
    return "--".join(re.sub(r"[^\w.@-]+", "-", name) for name in (game, player)) + ending
