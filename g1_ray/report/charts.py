"""The curves of a page: a chart for each metric, in it a line for each game of one run, or for each of several runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from g1_ray.runs.curves import GAME_CURVES, RUN_CURVES, SFT_CURVES, SHARES, curve_of, games_with_curves, smooth

Metrics = Sequence[Mapping[str, Any]]
"""The lines of a metrics.jsonl."""


def charts(runs: Mapping[str, Metrics]) -> list[dict[str, Any]]:
    """Charts {"group", "title", "share", "lines"} of runs by name; charts and lines without a value are left out.

    A line {"name", "run", "raw", "smooth"} has a value for each step of the run of that number, null where there is
    none; `share`: all of them are between 0 and 1.
    """
    drawn = []
    for group, title, curve, lines in _wanted(runs):
        its = [line for name, run, metric in lines if (line := _line(name, run, metric, runs))]
        if its:
            values = [value for line in its for value in line["raw"] if value is not None]
            share = curve in SHARES or ("lab_" in curve and all(0 <= value <= 1 for value in values))
            drawn.append({"group": group, "title": title, "share": share, "lines": its})
    return drawn


def _wanted(runs: Mapping[str, Metrics]) -> Iterable[tuple[str, str, str, list[tuple[str, str, str]]]]:
    """Group, title and metric of each chart, and its lines: what each is called, its run, its metric there."""
    games = list(dict.fromkeys(game for metrics in runs.values() for game in games_with_curves(metrics)))
    names = {key.rpartition("/")[2] for metrics in runs.values() for line in metrics for key in line if "/lab_" in key}
    lab = {name: name.replace("_", " ") for name in sorted(names - set(GAME_CURVES))}
    for curve, title in {**GAME_CURVES, **lab}.items():
        if len(runs) == 1:
            yield "Play", title, curve, [(game, run, f"{game}/{curve}") for game in games for run in runs]
        else:
            for game in games:
                yield "Play", f"{game}: {title}", curve, [(run, run, f"{game}/{curve}") for run in runs]
    for curve, title in {**SFT_CURVES, **(RUN_CURVES if games else {})}.items():
        yield "Training", title, curve, [(run, run, curve) for run in runs]


def _line(name: str, run: str, metric: str, runs: Mapping[str, Metrics]) -> dict[str, Any] | None:
    raw = curve_of(runs[run], metric)
    known = ~np.isnan(raw)
    if not known.any():
        return None
    # What is measured now and then has nothing between to be smoothed over.
    smoothed = smooth(raw, max(1, len(raw) // 20)) if known.mean() > 0.5 else raw
    return {"name": name, "run": list(runs).index(run), "raw": rounded(raw), "smooth": rounded(smoothed)}


def rounded(values: Iterable[float], digits: int = 4) -> list[float | None]:
    """The values with so many digits that say something; None for what is no finite number."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]
