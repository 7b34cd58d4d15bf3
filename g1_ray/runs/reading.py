"""What lies in the folder of a run or an evaluation: its files, its games, the rows of a group or of a move."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from envs import game_spec
from envs.options import nearest
from g1_ray.runs.trajectories import SCHEMA, files_in

Row = dict[str, Any]
"""Of trajectories (`runs.trajectories.SCHEMA`), or of moves (`evaluation.moves.SCHEMA`)."""


def sources_of(folder: Path) -> dict[str, list[Path]]:
    """The parquet files that a run or an evaluation left: of its `trajectories` and of its `moves`.

    Raises `ValueError` where there are none. Games that live elsewhere are imported, so that their states can be read.
    """
    places = {"trajectories": ("trajectories",), "moves": ("moves", "eval/moves")}
    found = {
        name: files
        for name, folders in places.items()
        if (files := [file for sub in folders for file in files_in(folder / sub)])
    }
    if not found:
        raise ValueError(
            f"{folder}: neither trajectories/*.parquet nor moves/*.parquet there; give the folder of a training run "
            "(runs/NAME) or of an evaluation"
        )
    import_games(game["game"] for game in games_in(folder))
    return found


def moves_in(folder: Path) -> list[Path]:
    """The files of an evaluation's moves. Raises `ValueError` where there is no evaluation."""
    files = sources_of(folder).get("moves")
    if not files:
        raise ValueError(f"{folder}: no moves/*.parquet, so no evaluation; play one with g1-ray evaluate")
    return files


def games_of(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """The games of a run's or an evaluation's config, each with its name, the game and its reward."""
    games = config.get("games") or ()
    return [
        {"name": game.get("name") or game["game"], "game": game["game"], "reward": game.get("reward", "ternary")}
        for game in (games.values() if isinstance(games, Mapping) else games)
    ]


def games_in(folder: Path) -> list[dict[str, str]]:
    """Those of the config.json of a run or an evaluation, or of the run that an evaluation is in; else none."""
    for path in (folder / "config.json", folder.parent / "config.json"):
        if path.is_file():
            return games_of(json.loads(path.read_text()))
    return []


def reward_in(folder: Path, game: str) -> str:
    """The reward of a game by the config of a run or an evaluation; ternary where it does not say."""
    return next((about["reward"] for about in games_in(folder) if about["name"] == game), "ternary")


def import_games(names: Iterable[str]) -> None:
    """Imports the games that are named as module:name, as states do not say which code to run."""
    for name in names:
        game_spec(name)


def names_in(path: Path) -> tuple[str, str]:
    """The game and the player that a file of moves is of."""
    (row,) = pq.read_table(path, columns=["game", "player"]).slice(0, 1).to_pylist()
    return row["game"], row["player"]


def rows_of_group(folder: Path, number: int, fate: str = "") -> list[Row]:
    """The turns of a group of a run, by rollout and turn.

    Raises `ValueError` where it is not among the trajectories, with its `fate` where that is known.
    """
    import_games(game["game"] for game in games_in(folder))
    names = [name for name in SCHEMA.names if name not in ("prompt_ids", "logprobs", "task")]
    known: set[int] = set()
    for file in files_in(folder / "trajectories"):
        rows: list[Row] = pq.read_table(file, columns=names, filters=pc.field("group") == number).to_pylist()
        if rows:
            return sorted(rows, key=lambda row: (row["rollout"], row["turn"]))
        known |= set(pq.read_table(file, columns=["group"])["group"].to_pylist())
    there = f"groups {min(known)} to {max(known)} are there" if known else "no group is there yet"
    raise ValueError(f"{folder}: no group {number} among its trajectories; {fate or there}")


def row_of_move(folder: Path, game: str, player: str, seed: int, move: int) -> Row:
    """A move of an evaluation, or of the evaluation in a run's folder. Raises `ValueError` where there is none."""
    files = {"/".join(names_in(file)): file for file in moves_in(folder)}
    name = f"{game}/{player}"
    if name not in files:
        raise ValueError(f"{folder}: no moves of {name}{nearest(name, files)}")
    found: list[Row] = pq.read_table(
        files[name], filters=(pc.field("seed") == seed) & (pc.field("move") == move)
    ).to_pylist()
    if not found:
        seeds = pq.read_table(files[name], columns=["seed"])["seed"].to_pylist()
        there = f"seeds {min(seeds)} to {max(seeds)}, up to {max(map(seeds.count, set(seeds)))} moves of each"
        raise ValueError(f"{folder}: {name} has no move {move} of seed {seed}; there are {there}")
    return found[0]
