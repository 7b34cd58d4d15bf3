"""What lies in the folder of a run or an evaluation: its files, its games, the rows of a group or of a move."""

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from envs import REWARDS
from envs.lookahead import TERNARY, Worth
from envs.options import nearest
from envs.registry import Registry
from envs.task import GAMES
from g1_ray.files import in_use, part_of, read_json, read_lines
from g1_ray.runs.curves import best_rewards, read_metrics
from g1_ray.runs.layouts import MOVES, TURNS, Row
from g1_ray.runs.shapes import Config, Note, Report
from g1_ray.runs.trajectories import SCHEMA, files_in

FAILED = re.compile(r"failed: |step \d+ failed")
"""How the note of what ended a run begins."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """A training run or a cold start at a glance."""

    name: str
    folder: Path
    games: tuple[str, ...]
    state: str
    """running, finished, stopped (go on with --resume), failed, or damaged: its files can't be read."""
    steps: int = 0
    """Optimizer steps that are done."""
    planned: int = 0
    """Those of the config; 0 where it does not say."""
    best: Mapping[str, float] = field(default_factory=dict)
    """The highest mean reward of each game, over a window of a twentieth of the run."""
    seen: float = 0.0
    """When its last step was over, else when it was begun, Unix time in s."""


def runs_in(folder: Path) -> list[RunSummary]:
    """The runs in a folder of runs, or the one that it is; the one with the newest step first."""
    places = [folder] if (folder / "config.json").is_file() else sorted(folder.glob("*/"))
    found = [summary_of(place) for place in places if (place / "config.json").is_file()]
    return sorted((run for run in found if run), key=lambda run: run.seen, reverse=True)


def summary_of(folder: Path) -> RunSummary | None:
    """What a run is at; None for a folder that is no run's, such as an evaluation's."""
    begun = (folder / "config.json").lstat().st_mtime
    try:
        config = config_in(folder)
        if "players" in config:
            return None
        there = (folder / "metrics.jsonl").exists()
        metrics = read_metrics(folder) if there else []
        notes = read_lines(part_of(folder, "notes.jsonl"), Note)
        report = report_in(folder)
        steps = metrics[-1]["step"] if metrics else 0
        return RunSummary(
            name=config.get("name", folder.name),
            folder=folder,
            games=tuple(game["name"] for game in games_of(config)),
            state=_state(folder, steps, report, notes[-1]["note"] if notes else ""),
            steps=steps,
            planned=config.get("steps") or 0,
            best=best_rewards(metrics),
            seen=metrics[-1].get("time", begun) if metrics else begun,
        )
    except (ValueError, OSError) as error:
        log.warning("%s", error)
        return RunSummary(folder.name, folder, (), "damaged", seen=begun)


def _state(folder: Path, steps: int, report: Mapping[str, Any], note: str) -> str:
    if in_use(folder):
        return "running"
    if report and report.get("steps") == steps:  # not one that was written before the run went on
        return "stopped" if report.get("stopped") else "finished"
    if steps and not (folder / "ledger.jsonl").exists() and (folder / "curves.png").exists():
        return "finished"  # a cold start, which draws its curves at the end
    return "failed" if FAILED.match(note) else "stopped"


def sources_of(folder: Path) -> dict[str, list[Path]]:
    """The parquet files that a run or an evaluation left: of its `trajectories` and of its `moves`.

    Raises `ValueError` where there are none, and for games that live elsewhere and are not imported yet.
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
    games_in(folder)
    return found


def moves_in(folder: Path) -> list[Path]:
    """The files of an evaluation's moves. Raises `ValueError` where there is no evaluation."""
    files = sources_of(folder).get("moves")
    if not files:
        raise ValueError(f"{folder}: no moves/*.parquet, so no evaluation; play one with g1-ray evaluate")
    return files


def config_in(folder: Path) -> dict[str, Any]:
    """The config.json of a run or an evaluation. Raises `ValueError`."""
    config: dict[str, Any] = read_json(part_of(folder, "config.json"), Config)
    return config


def report_in(folder: Path) -> dict[str, Any]:
    """The report.json of a run; empty where there is none. Raises `ValueError`."""
    path = part_of(folder, "report.json")
    report: dict[str, Any] = read_json(path, Report) if path.exists() else {}
    return report


def games_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The games of a run's or an evaluation's config, each with its name, the game, its reward and its lookahead."""
    games = config.get("games") or ()
    return [
        {
            "name": game.get("name") or game["game"],
            "game": game["game"],
            "reward": game.get("reward", "ternary"),
            "lookahead": game.get("lookahead", 0),
        }
        for game in (games.values() if isinstance(games, Mapping) else games)
    ]


def games_in(folder: Path) -> list[dict[str, Any]]:
    """Those of the config.json of a run or an evaluation, or of the run that an evaluation is in; else none.

    Raises `ValueError` as `check_games` does.
    """
    for place in (folder, folder.parent):
        if (place / "config.json").exists():
            games = games_of(config_in(place))
            check_games(games, place / "config.json")
            return games
    return []


def check_games(games: Iterable[Mapping[str, str]], path: Path) -> None:
    """Raises `ValueError` where a file names a game, or a reward, of a module that nobody has imported.

    Nothing is imported because a file says so.
    """
    for game in games:
        _check_known(GAMES, game["game"], path)
        _check_known(REWARDS, game["reward"], path)


def _check_known(registry: Registry[Any], name: str, path: Path) -> None:
    module, _, own = name.rpartition(":")
    if module and module not in sys.modules:
        raise ValueError(
            f"{path}: the {registry.sort} {name!r} is of a module that is not imported because a file says so.\n"
            f"Where you trust it, name it: --import {module}"
        )
    if own not in registry:
        raise ValueError(f"{path}: unknown {registry.sort} {name!r}{nearest(own, registry)}")


def worth_of(game: Mapping[str, Any]) -> Worth:
    """What the moves of one of `games_of` earn in training."""
    return Worth(game["reward"], game["lookahead"])


def worth_in(folder: Path, game: str) -> Worth:
    """What the moves of a game earn by the config of a run or an evaluation; ternary where it does not say."""
    return next((worth_of(about) for about in games_in(folder) if about["name"] == game), TERNARY)


def names_in(path: Path) -> tuple[str, str]:
    """The game and the player that a file of moves is of. Raises `ValueError` where it has none."""
    batch = next(MOVES.batches(path, ("game", "player")), None)
    if batch is None:
        raise ValueError(f"{path}: has no moves; take it away")
    return batch["game"][0].as_py(), batch["player"][0].as_py()


def rows_of_group(folder: Path, number: int, fate: str = "") -> list[Row]:
    """The turns of a group of a run, by rollout and turn.

    Raises `ValueError` where it is not among the trajectories, with its `fate` where that is known.
    """
    games_in(folder)
    names = [name for name in SCHEMA.names if name not in ("prompt_ids", "logprobs", "task")]
    known: set[int] = set()
    for file in files_in(folder / "trajectories"):
        if rows := TURNS.rows(file, names, pc.field("group") == number):
            return sorted(rows, key=lambda row: (row["rollout"], row["turn"]))
        known |= set(TURNS.table(file, ["group"])["group"].unique().to_pylist())
    there = f"groups {min(known)} to {max(known)} are there" if known else "no group is there yet"
    raise ValueError(f"{folder}: no group {number} among its trajectories; {fate or there}")


def row_of_move(folder: Path, game: str, player: str, seed: int, move: int) -> Row:
    """A move of an evaluation, or of the evaluation in a run's folder. Raises `ValueError` where there is none."""
    files = {"/".join(names_in(file)): file for file in moves_in(folder)}
    name = f"{game}/{player}"
    if name not in files:
        raise ValueError(f"{folder}: no moves of {name}{nearest(name, files)}")
    if found := MOVES.rows(files[name], (), (pc.field("seed") == seed) & (pc.field("move") == move)):
        return found[0]
    seeds = MOVES.table(files[name], ["seed"])["seed"]
    most = max(count["counts"] for count in seeds.value_counts().to_pylist())
    there = f"seeds {pc.min(seeds)} to {pc.max(seeds)}, up to {most} moves of each"
    raise ValueError(f"{folder}: {name} has no move {move} of seed {seed}; there are {there}")
