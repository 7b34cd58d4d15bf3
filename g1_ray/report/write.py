"""A page that shows a folder: a training run's or an evaluation's. One HTML file that needs nothing but a browser.

What it holds is data in JSON; g1_ray/page/ has the template, the style and the scripts that show it. All of it is
found in the folder: what is not there is left out.
"""

import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from g1_ray.evaluation.confusion import tally
from g1_ray.files import write_text
from g1_ray.report.rollouts import OUTCOMES, TRAINING, read_evaluation, read_training
from g1_ray.report.sheets import BLOCK, Boards, PackedPage, pack_page
from g1_ray.rollout.judge import share
from g1_ray.runs.curves import CURVES, SFT_CURVES, SHARES, games_with_curves, read_metrics, smooth
from g1_ray.runs.reading import games_of

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("base.js", "charts.js", "tables.js", "boards.js", "viewer.js", "list.js")
ROLLOUTS = 10_000
"""Rollouts on a page, where nothing else is said."""


def write_report(folder: str | Path, out: str | Path = "", rollouts: int = ROLLOUTS, workers: int = 0) -> Path:
    """Writes the page of a folder, to report.html in it or to `out`, with up to `rollouts` rollouts; returns its path.

    `workers` processes look at states and answers again; 0: one a core. Raises `ValueError` where nothing is to show.
    """
    folder = Path(folder)
    if rollouts < 1:
        raise ValueError(f"rollouts = {rollouts}: must be 1 or more")
    evaluation = folder / "eval" if (folder / "eval").is_dir() else folder
    parts = ("metrics.jsonl", "trajectories", "moves", "lab.json", "results.json")
    if not any((place / part).exists() for place in {folder, evaluation} for part in parts):
        raise ValueError(f"{folder}: nothing to report on; give the folder of a run, such as runs/quickstart, or of an "
                         "evaluation")  # fmt: skip
    config, told = _json(folder / "config.json") or {}, _json(folder / "report.json") or {}
    lab = _json(evaluation / "lab.json") or {}
    packed, left_out = _rollouts(folder, evaluation, config, rollouts, workers or os.cpu_count() or 1)
    drawn = charts(folder)
    data = {
        "name": config.get("name") or folder.resolve().name,
        "kind": "Training run" if (folder / "metrics.jsonl").is_file() else "Evaluation",
        "summary": summary(config, told, drawn[0]["steps"][-1] if drawn else None),
        "config": config,
        "charts": drawn,
        "results": tables(_json(evaluation / "results.json") or told.get("results")),
        "matrices": [*_matrices(packed.boards), *_lab_matrices(lab)],
        "lab": lab,
        "viewer": {
            **packed.listed,
            "tasks": packed.tasks,
            "outcomes": OUTCOMES,
            "training": TRAINING,
            "block": BLOCK,
            "left_out": left_out,
        },
    }
    path = Path(out) if out else folder / "report.html"
    write_text(path, render(data, packed))
    return path


def render(data: Mapping[str, Any], packed: PackedPage) -> str:
    """The page, with its data, pictures and rollouts in it."""
    parts = {
        "title": html.escape(f"{data['name']}: {data['kind'].lower()}"),
        "style": (PAGE / "report.css").read_text(encoding="utf-8"),
        "script": "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        # A "<" of the data could end the script that it stands in.
        "data": json.dumps(_finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "sheets": _scripts("sheet", packed.sheets),
        "blocks": _scripts("block", packed.blocks),
    }
    template = (PAGE / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _scripts(name: str, texts: Iterable[str]) -> str:
    return "\n".join(f'<script type="text/plain" class="{name}">{text}</script>' for text in texts)


def _finite(value: Any) -> Any:
    """The value for JSON: what is no finite number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _json(path: Path) -> Any:
    """What a JSON file holds; None where there is none. Raises `ValueError` that names a file that is no JSON."""
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}; remove it to have the report without it") from None


# What the folder says in numbers


def summary(config: Mapping[str, Any], report: Mapping[str, Any], steps: int | None) -> list[tuple[str, str]]:
    """The first things to know of a run of `steps` steps: (what, value)."""
    groups, last = report.get("groups") or {}, report.get("last_metrics") or {}
    protocol, model = config.get("protocol") or {}, config.get("model")
    seconds = report.get("training_s") or report.get("seconds")
    told = [
        ("model", model.get("path") if isinstance(model, Mapping) else model),
        ("games", ", ".join(game["name"] for game in games_of(config)) or None),
        ("players", ", ".join(player["name"] for player in config.get("players") or ()) or None),
        ("runs of each", protocol.get("runs")),
        ("moves a run", protocol.get("moves") or ("whole episodes" if protocol else None)),
        ("steps", steps),
        ("training time", f"{seconds / 60:.1f} minutes" if seconds else None),
        ("tokens a second, last step", f"{last['tokens_per_s']:,.0f}" if last.get("tokens_per_s") else None),
        ("groups", ", ".join(f"{groups[k]:,} {k}" for k in ("issued", "trained", "dropped") if k in groups) or None),
        ("books", _books(report) if groups else None),
        ("checkpoint", report.get("checkpoint")),
    ]
    return [(what, str(value)) for what, value in told if value is not None]


def _books(report: Mapping[str, Any]) -> str:
    right = [bool(report.get(name)) for name in ("groups_add_up", "ledger_agrees")]
    return "add up, and the ledger agrees" if all(right) else "do not add up; see report.json and ledger.jsonl"


def charts(folder: Path) -> list[dict[str, Any]]:
    """The curves of a run's metrics: a chart for each metric, with a line for each game, raw and smoothed."""
    metrics = read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []
    games = games_with_curves(metrics)
    titles = CURVES if games else SFT_CURVES
    lab = sorted({key.rpartition("/")[2] for line in metrics for key in line if "/lab_" in key})
    steps = [line["step"] for line in metrics]
    window = max(1, len(steps) // 20)
    drawn = []
    for curve, title in {**titles, **{name: name.replace("_", " ") for name in lab}}.items():
        lines: list[dict[str, Any]] = []
        for game in games or [""]:
            metric = f"{game}/{curve}" if game else curve
            raw = np.array([line.get(metric) for line in metrics], np.float64)
            if not np.isnan(raw).all():
                # What is measured now and then has nothing between to be smoothed over.
                smoothed = smooth(raw, 1 if curve in lab else window)
                lines.append({"name": game or title, "raw": _rounded(raw), "smooth": _rounded(smoothed)})
        if lines:
            values = [value for line in lines for value in line["raw"] if value is not None]
            share = curve in SHARES or (curve in lab and all(0 <= value <= 1 for value in values))
            drawn.append({"title": title, "share": share, "steps": steps, "lines": lines, "window": window})
    return drawn


def _rounded(values: Iterable[float], digits: int = 4) -> list[float | None]:
    return [round(float(value), digits) if math.isfinite(value) else None for value in values]


def tables(results: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Results as tables {"title", "columns", "rows"}, one for each game.

    A cell is a text, a number, [mean, low, high] or null. Columns that are null throughout are left out.
    """
    drawn = []
    for game in dict.fromkeys(row["game"] for row in results or ()):
        its = [{name: _cell(x) for name, x in row.items()} for row in results or () if row["game"] == game]
        columns = [name for name in dict.fromkeys(name for row in its for name in row) if name != "game"]
        columns = [name for name in columns if any(row.get(name) not in (None, "") for row in its)]
        cells = [[row.get(name) for name in columns] for row in its]
        drawn.append({"title": game, "columns": columns, "rows": cells})
    return drawn


def _cell(value: Any) -> Any:
    """What a table shows of a value; None for nothing."""
    if isinstance(value, Mapping):  # such as the causes of unreadable answers
        return ", ".join(f"{name} {share:.3g}" for name, share in value.items()) or None
    if isinstance(value, list):  # a mean and its interval
        return value if all(isinstance(x, int | float) and math.isfinite(x) for x in value) else None
    return _finite(value)


def _matrices(boards: Mapping[tuple[str, str], Boards]) -> list[dict[str, Any]]:
    """What is misread for what, and where, for each player on each game."""
    drawn = []
    for (game, player), its in boards.items():
        truth, told = np.stack(its.truth), np.stack(its.told)
        right = truth == told
        drawn.append(
            {
                "title": f"{game}, {player}",
                "boards": len(truth),
                "here": True,
                "exact": share(right.all(axis=(1, 2)).tolist()),
                "names": list(its.task.renderer.names),
                "counts": tally(truth, told, its.task.new_game().num_kinds).tolist(),
                "cells": [_rounded(row) for row in right.mean(axis=0)],
            }
        )
    return drawn


def _lab_matrices(lab: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "title": f"{its.get('game', name)}, {its.get('player', '')} in the lab",
            "boards": its.get("states"),
            "exact": (its.get("interventions") or {}).get("as is", {}).get("p_acc"),
            "names": its["names"],
            "counts": its["confusion"],
            "cells": its.get("cells"),
        }
        for name, its in lab.items()
        if its.get("names") and its.get("confusion")
    ]


def _rollouts(
    folder: Path, evaluation: Path, config: Mapping[str, Any], most: int, workers: int
) -> tuple[PackedPage, list[str]]:
    """The rollouts of training and the boards of the evaluation, packed; and sentences on what was left out."""
    trained = (folder / "trajectories").is_dir()
    boards, num_boards = read_evaluation(evaluation / "moves", most // 2 if trained else most)
    by_std = ((config.get("algorithm") or {}).get("advantage") or "grpo") == "grpo"
    rollouts, num_rollouts = read_training(folder / "trajectories", most - len(boards), by_std)
    games = games_of(config)
    modules = [game["game"] for game in games if ":" in game["game"]]
    packed = pack_page([*rollouts, *boards], {game["name"]: game["reward"] for game in games}, modules, workers)
    kept = [packed.listed["players"][i] == TRAINING for i in packed.listed["rollouts"].get("player", ())]
    counts = (
        (sum(kept), num_rollouts, "rollouts of training", "drawn evenly over the run"),
        (len(kept) - sum(kept), num_boards, "boards of the evaluation", "drawn evenly from all runs"),
    )
    return packed, [f"{some:,} of {all_:,} {of}, {how}" for some, all_, of, how in counts if some < all_]
