"""Moves on disk: a parquet file for each player on each game, a row for each move, which `datasets` opens.

A picture is not stored: `State.from_bytes(row["state"]).draw()` draws it again.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from g1_ray.evaluation.play import Move, Run
from g1_ray.runs.layouts import MOVES, state_in
from g1_ray.runs.parquet import write_tables

SCHEMA = MOVES.schema
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
    runs: dict[int, list[Move]] = {}
    for row in MOVES.rows(path):
        values = {name: row[name] for name in _FIELDS} | {"reward": row["reward_game"]}
        move = Move(state=state_in(row), **values)
        if move.action is not None and not 0 <= move.action < move.state.task.new_game().actions.num:
            raise ValueError(f"{path}: {move.action} is no action of {move.state.task.name}; {MOVES.fix}")
        runs.setdefault(row["seed"], []).append(move)
    return [Run(seed, tuple(moves)) for seed, moves in runs.items()]


def file_name(game: str, player: str, ending: str = ".parquet") -> str:
    """What a file of a player on a game is called, e.g. "2048--tiny-base.parquet"; `check_names` keeps them apart."""
    return "--".join(re.sub(r"[^\w.@-]+", "-", name) for name in (game, player)) + ending


def check_names(keys: Iterable[tuple[str, str]]) -> None:
    """Raises `ValueError` where two players on games would have one file."""
    known: dict[str, tuple[str, str]] = {}
    for key in keys:
        other = known.setdefault(file_name(*key).casefold(), key)
        if other != key:
            one, two = (f"{player!r} on {game}" for game, player in (other, key))
            raise ValueError(
                f"{one} and {two} would both be kept in {file_name(*key)}.\n"
                "Give one of the players another name: NAME=PLAYER"
            )
