"""The curves of a run, from its metrics.jsonl: reward, P_acc and R_acc of every game, as a picture and as a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CURVES = {
    "reward": "reward",
    "p_acc": "P_acc: board read without an error",
    "r_acc": "R_acc: right move given a right board",
}
"""Last part of the metric's name, which is <game>/<this> -> title."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's metrics.jsonl, one for each step."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the folder of a run, such as runs/quickstart")
    return [json.loads(line) for line in path.read_text().splitlines()]


def games_in(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The games that a run's metrics speak of."""
    return sorted({key.rpartition("/")[0] for line in metrics for key in line if key.endswith("/reward")})


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean [N] over a window centred at each of the values [N], shorter at the ends; NaN is left out."""
    half = window // 2
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def save_curves(folder: str | Path) -> Path:
    """Writes curves.png and curves.csv into a run folder; returns the picture's path.

    The picture shows the values and their mean over a twentieth of the run. Raises `ValueError` where there is nothing.
    """
    folder = Path(folder)
    metrics = read_metrics(folder)
    games = games_in(metrics)
    if not games:
        raise ValueError(f"{folder / 'metrics.jsonl'}: no step has been trained yet")
    columns = [f"{game}/{curve}" for game in games for curve in CURVES]
    with (folder / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", *columns])
        table.writerows([line["step"], *(line.get(column) for column in columns)] for line in metrics)
    _draw(folder / "curves.png", metrics, games)
    return folder / "curves.png"


def _draw(path: Path, metrics: Sequence[Mapping[str, Any]], games: Sequence[str]) -> None:
    from matplotlib.figure import Figure  # without pyplot: no display, nothing global

    figure = Figure(figsize=(4 * len(CURVES), 3.4), layout="constrained")
    steps = np.array([line["step"] for line in metrics])
    window = max(1, len(steps) // 20)
    for axes, (curve, title) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for i, game in enumerate(games):
            # A step in which no answer bears on a metric lacks it.
            values = np.array([line.get(f"{game}/{curve}") for line in metrics], np.float64)
            axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=1)
            axes.plot(steps, smooth(values, window), color=f"C{i}", label=game)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        if curve != "reward":
            axes.set_ylim(-0.02, 1.02)
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)
