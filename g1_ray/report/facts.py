"""What a folder says in numbers and pictures: facts, verdict, tables, heat maps, clips."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g1_ray.evaluation.clips import ENDINGS
from g1_ray.evaluation.results import DIGITS, cells_of, reference_in, verdict
from g1_ray.files import part_of, read_json
from g1_ray.runs.curves import best_rewards, read_metrics
from g1_ray.runs.reading import config_in, games_of, names_in, report_in, summary_of
from g1_ray.runs.shapes import Lab, Line

CLIP_BYTES = 12_000_000
"""Of all clips on a page together."""
PARTS = ("metrics.jsonl", "trajectories", "moves", "lab.json", "results.json")


@dataclass(frozen=True)
class Told:
    """A run's or an evaluation's folder, as far as it is told in files of JSON; what is not there is empty."""

    folder: Path
    evaluation: Path
    """Where its evaluation is: the folder itself, or `eval` in it."""
    config: Mapping[str, Any]
    report: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    lab: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Told":
        """Reads a folder. Raises `ValueError` where nothing is to show."""
        evaluation = part_of(folder, "eval") if (folder / "eval").is_dir() else folder
        if not any((place / part).exists() for place in {folder, evaluation} for part in PARTS):
            raise ValueError(
                f"{folder}: nothing to report on; give the folder of a run, such as runs/quickstart, or of an "
                "evaluation"
            )
        report = report_in(folder)
        results, lab = (part_of(evaluation, name) for name in ("results.json", "lab.json"))
        return cls(
            folder,
            evaluation,
            config=config_in(folder) if (folder / "config.json").exists() else {},
            report=report,
            metrics=read_metrics(folder) if (folder / "metrics.jsonl").exists() else [],
            results=read_json(results, list[Line]) if results.exists() else report.get("results") or [],
            lab=read_json(lab, dict[str, Lab]) if lab.exists() else {},
        )

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.folder.resolve().name)

    @property
    def label(self) -> str:
        """What the evaluation calls the model that was trained."""
        return (self.config.get("eval") or {}).get("label") or self.name


def facts(told: Told) -> list[tuple[str, str]]:
    """The first things to know of a run or an evaluation: (what, value)."""
    config, report = told.config, told.report
    groups, protocol, model = report.get("groups") or {}, config.get("protocol") or {}, config.get("model")
    seconds = report.get("training_s") or report.get("seconds")
    speeds = [line["tokens_per_s"] for line in told.metrics if line.get("tokens_per_s")]
    run = summary_of(told.folder) if told.metrics and config else None
    best = ", ".join(f"{game} {reward:.2f}" for game, reward in best_rewards(told.metrics).items())
    games = [game["name"] for game in games_of(config)]
    said = [
        ("model", model.get("path") if isinstance(model, Mapping) else model),
        ("games", ", ".join(game for game in games if game.rpartition(".")[0] not in games) or None),
        ("players", ", ".join(player["name"] for player in config.get("players") or ()) or None),
        ("runs of each", protocol.get("runs")),
        ("moves a run", protocol.get("moves") or ("whole episodes" if protocol else None)),
        ("state", run.state if run else None),
        ("steps", told.metrics[-1]["step"] if told.metrics else None),
        ("best reward", best or None),
        ("training time", f"{seconds / 60:.1f} minutes" if seconds else None),
        ("tokens a second", f"{sum(speeds) / len(speeds):,.0f}" if speeds else None),
        ("groups", ", ".join(f"{groups[k]:,} {k}" for k in ("issued", "trained", "dropped") if k in groups) or None),
        ("books", _books(report) if groups else None),
        ("checkpoint", report.get("checkpoint")),
    ]
    return [(what, str(value)) for what, value in said if value is not None]


def _books(report: Mapping[str, Any]) -> str:
    right = [bool(report.get(name)) for name in ("groups_add_up", "ledger_agrees")]
    return "add up, and the ledger agrees" if all(right) else "do not add up; see report.json and ledger.jsonl"


def verdict_of(told: Told) -> list[str]:
    """What training changed: the model after it beside the one before it, game by game."""
    path = (told.config.get("model") or {}).get("path") if isinstance(told.config.get("model"), Mapping) else None
    baselines = (told.config.get("eval") or {}).get("baselines") or {}
    return [line for name, its in baselines.items() if its == path for line in verdict(told.results, told.label, name)]


def tables(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results as tables {"title", "game", "columns", "rows"}, one for each game, with the columns of the terminal.

    A cell is a text, a number, [mean, low, high] or null. Columns that are null throughout are left out. Lines of
    several runs, which have a `run`, are told apart by it; what is equal in several runs is one row.
    """
    drawn = []
    for game in dict.fromkeys(line["game"] for line in results):
        its = [line for line in results if line["game"] == game]
        reference = reference_in(its)
        cells = [{name: _cell(value) for name, value in cells_of(line, reference).items()} for line in its]
        runs = [str(line.get("run", "")) for line in its]
        columns = [name for name in cells[0] if name != "game" and any(row[name] is not None for row in cells)]
        rows: dict[str, list[Any]] = {}
        for run, row in zip(runs, cells, strict=True):
            known = rows.setdefault(json.dumps([row[name] for name in columns]), [[], *(row[name] for name in columns)])
            known[0].append(run)
        heads = [{"name": name, "digits": DIGITS.get(name)} for name in columns]
        if any(runs):
            heads.insert(0, {"name": "run", "digits": None})
        made = [([", ".join(row[0])] if any(runs) else []) + row[1:] for row in rows.values()]
        drawn.append({"title": game, "game": game, "columns": heads, "rows": made})
    return drawn


def _cell(value: Any) -> Any:
    """What a table shows of a value; None for nothing."""
    if isinstance(value, list | tuple):  # a mean and its interval
        return list(value) if all(isinstance(x, int | float) and math.isfinite(x) for x in value) else None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def variants_in(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The variants of `--grid` among the games, each with the game it is of, e.g. 2048 of 2048.heldout."""
    games = dict.fromkeys(line["game"] for line in results)
    return {game: base for game in games if (base := game.rpartition(".")[0]) in games}


def grids(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Heat maps {"title", "variants", "players", "values"} of games that were played in variants.

    `values`: the share of moves that score of each player in each variant, null where it did not play.
    """
    of, drawn = variants_in(results), []
    share = {(line["player"], line["game"]): rate[0] / 100 for line in results if (rate := line.get("scoring"))}
    for base in dict.fromkeys(of.values()):
        games = [base, *(game for game in of if of[game] == base)]
        players = list(dict.fromkeys(player for player, game in share if game in games))
        names = ["as it is", *(game.removeprefix(f"{base}.") for game in games[1:])]
        values = [[share.get((player, game)) for game in games] for player in players]
        drawn.append({"title": base, "variants": names, "players": players, "values": values})
    return drawn


def clips(evaluation: Path) -> tuple[list[dict[str, str]], list[str], list[str]]:
    """The clips of an evaluation {"title", "game", "type"}, each as base64, and the files there is no room for."""
    shown, texts, left_out, room = [], [], [], CLIP_BYTES
    for path in sorted(part_of(evaluation, path.name) for path in evaluation.glob("*--*") if path.suffix in ENDINGS):
        room -= path.stat().st_size
        if room < 0:
            left_out.append(path.name)
            continue
        moves = evaluation / "moves" / f"{path.stem}.parquet"
        game, player = names_in(moves) if moves.is_file() else path.stem.split("--", 1)
        kind = f"{'video' if path.suffix == '.mp4' else 'image'}/{path.suffix[1:]}"
        shown.append({"title": f"{game}, {player}", "game": game, "type": kind})
        texts.append(base64.b64encode(path.read_bytes()).decode())
    return shown, texts, left_out
