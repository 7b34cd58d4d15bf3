"""A page that shows a folder: a training run's or an evaluation's. One HTML file that needs nothing but a browser.

What it holds is data in JSON; page/ has the template, the style and the scripts that show it. All of it is
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

from g1_ray.config_text import flat
from g1_ray.evaluation.confusion import tally
from g1_ray.evaluation.lab import COLUMNS
from g1_ray.evaluation.results import verdict
from g1_ray.files import write_text
from g1_ray.report.charts import charts, rounded
from g1_ray.report.facts import Told, clips, facts, grids, tables, variants_in, verdict_of
from g1_ray.report.rollouts import OUTCOMES, TRAINING, read_evaluation, read_training
from g1_ray.report.sheets import BLOCK, Boards, PackedPage, pack_page
from g1_ray.rollout.judge import share
from g1_ray.runs.reading import check_games, games_of, worth_of

PAGE = Path(__file__).parent / "page"
STYLES = ("base.css", "report.css")
SCRIPTS = ("dom.js", "base.js", "charts.js", "tables.js", "clips.js", "tiles.js", "boards.js", "viewer.js", "list.js")
ROLLOUTS = 10_000
"""Rollouts on a page, where nothing else is said."""


def write_report(folder: str | Path, out: str | Path = "", rollouts: int = ROLLOUTS, workers: int = 0) -> Path:
    """Writes the page of a folder, to report.html in it or to `out`, with up to `rollouts` rollouts; returns its path.

    `workers` processes look at states and answers again; 0: one a core. Raises `ValueError` where nothing is to show.
    """
    folder = Path(folder)
    if rollouts < 1:
        raise ValueError(f"rollouts = {rollouts}: must be 1 or more")
    told = Told.read(folder)
    packed, left_out = _rollouts(told, rollouts, workers or os.cpu_count() or 1)
    shown, texts, too_many = clips(told.evaluation)
    data = _data(
        told.name,
        "Training run" if (folder / "metrics.jsonl").is_file() else "Evaluation",
        [told],
        verdict=verdict_of(told),
        summary=facts(told),
        config=told.config,
        results=tables(told.results),
        grids=grids(told.results),
        clips=shown,
        clips_left_out=too_many,
        matrices=[*_matrices(packed.boards), *_lab_matrices(told.lab)],
        lab=list(told.lab.items()),
        viewer={
            **packed.listed,
            "tasks": packed.tasks,
            "outcomes": OUTCOMES,
            "training": TRAINING,
            "block": BLOCK,
            "left_out": left_out,
        },
    )
    path = Path(out) if out else folder / "report.html"
    write_text(path, render(data, packed.sheets, packed.blocks, texts))
    return path


def write_comparison(folders: Sequence[str | Path], out: str | Path = "") -> Path:
    """Writes a page of several runs or evaluations side by side, to comparison.html beside the first or to `out`.

    Their curves lie over each other, their tables are joined. Raises `ValueError` where one has nothing to show.
    """
    all_told = [Told.read(Path(folder)) for folder in folders]
    names = [told.name for told in all_told]
    if len(set(names)) < len(names):
        names = [str(told.folder) for told in all_told]
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(names)}: the same folder twice; give each once")
    called = dict(zip(names, all_told, strict=True))
    data = _data(
        ", ".join(names),
        "Side by side",
        all_told,
        names=names,
        verdict=_verdicts(called),
        compared=_compared(called),
        results=tables([{**line, "run": name} for name, told in called.items() for line in told.results]),
        lab=[(f"{run}, {name}", its) for run, told in called.items() for name, its in told.lab.items()],
    )
    path = Path(out) if out else all_told[0].folder.resolve().parent / "comparison.html"
    write_text(path, render(data))
    return path


def _data(name: str, kind: str, all_told: Sequence[Told], names: Sequence[str] = (), **parts: Any) -> dict[str, Any]:
    """What the page is drawn from; what is not among `parts` is left out of it."""
    metrics = {run: told.metrics for run, told in zip(names or [name], all_told, strict=True)}
    empty: dict[str, list[Any]] = {
        part: []
        for part in ("verdict", "summary", "compared", "results", "grids", "clips", "clips_left_out", "matrices", "lab")
    }
    return {
        "name": name,
        "kind": kind,
        "columns": COLUMNS,
        "variants": [game for told in all_told for game in variants_in(told.results)],
        "steps": [[line["step"] for line in lines] for lines in metrics.values()],
        "charts": charts(metrics),
        **empty,
        "config": {},
        "viewer": {"rollouts": {}, "players": []},
        **parts,
    }


def _verdicts(called: Mapping[str, Told]) -> list[str]:
    """What the models are worth beside that of the first run, and what training changed in each."""
    (first, _), *others = called.items()
    of = {name: [_renamed(line, told.label, name) for line in told.results] for name, told in called.items()}
    beside = [line for name, _ in others for line in verdict([*of[first], *of[name]], name, first)]
    return beside + [f"{name}: {line}" for name, told in called.items() for line in verdict_of(told)]


def _renamed(line: Mapping[str, Any], label: str, name: str) -> dict[str, Any]:
    way = line["player"].removeprefix(label)
    is_it = line["player"].startswith(label) and (not way or way.startswith(", "))
    return {**line, "player": name + way if is_it else f"{line['player']} of {name}"}


def _compared(called: Mapping[str, Told]) -> list[dict[str, Any]]:
    """Tables of the facts of each run, and of the options in which they differ."""
    said = {name: dict(facts(told)) for name, told in called.items()}
    options = {name: flat(told.config) for name, told in called.items()}
    drawn = []
    for title, of, same in (("At a glance", said, True), ("Options that differ", options, False)):
        rows = [
            [what, *(its.get(what, "") for its in of.values())]
            for what in dict.fromkeys(k for its in of.values() for k in its)
        ]
        rows = [row for row in rows if same or len(set(row[1:])) > 1]
        if rows:
            drawn.append({"title": title, "columns": [{"name": name} for name in ("", *called)], "rows": rows})
    return drawn


def render(
    data: Mapping[str, Any], sheets: Iterable[str] = (), blocks: Iterable[str] = (), clips: Iterable[str] = ()
) -> str:
    """The page, with its data, pictures, rollouts and clips in it."""
    parts = {
        "title": html.escape(f"{data['name']}: {data['kind'].lower()}"),
        "style": _joined(STYLES),
        "script": _joined(SCRIPTS),
        # A "<" of the data could end the script that it stands in.
        "data": json.dumps(_finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "sheets": _scripts("sheet", sheets),
        "blocks": _scripts("block", blocks),
        "clips": _scripts("clip", clips),
    }
    template = (PAGE / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _joined(names: Iterable[str]) -> str:
    return "\n".join((PAGE / name).read_text(encoding="utf-8") for name in names)


def _scripts(name: str, texts: Iterable[str]) -> str:
    return "\n".join(f'<script type="text/plain" class="{name}">{text}</script>' for text in texts)


def _finite(value: Any) -> Any:
    """The value for JSON: what is no finite number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


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
                "cells": [rounded(row) for row in right.mean(axis=0)],
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


def _rollouts(told: Told, most: int, workers: int) -> tuple[PackedPage, list[str]]:
    """The rollouts of training and the boards of the evaluation, packed; and sentences on what was left out."""
    folder, config = told.folder, told.config
    trained = (folder / "trajectories").is_dir()
    boards, num_boards = read_evaluation(told.evaluation / "moves", most // 2 if trained else most)
    by_std = ((config.get("algorithm") or {}).get("advantage") or "grpo") == "grpo"
    rollouts, num_rollouts = read_training(folder / "trajectories", most - len(boards), by_std)
    games = games_of(config)
    check_games(games, folder / "config.json")
    named = [game[what].rpartition(":")[0] for game in games for what in ("game", "reward")]
    modules = list(dict.fromkeys(filter(None, named)))
    packed = pack_page([*rollouts, *boards], {game["name"]: worth_of(game) for game in games}, modules, workers)
    kept = [packed.listed["players"][i] == TRAINING for i in packed.listed["rollouts"].get("player", ())]
    counts = (
        (sum(kept), num_rollouts, "rollouts of training", "drawn evenly over the run"),
        (len(kept) - sum(kept), num_boards, "boards of the evaluation", "drawn evenly from all runs"),
    )
    return packed, [f"{some:,} of {all_:,} {of}, {how}" for some, all_, of, how in counts if some < all_]
