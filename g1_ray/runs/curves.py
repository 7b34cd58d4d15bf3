"""The curves of a run, from its metrics.jsonl, as a picture and as a table.

Of reinforcement learning the reward, P_acc and R_acc of every game; of a cold start the loss and the tokens foretold.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g1_ray.files import part_of, read_lines, written
from g1_ray.runs.shapes import Step

CURVES = {
    "reward": "reward",
    "p_acc": "P_acc: board read without an error",
    "r_acc": "R_acc: right move given a right board",
}
"""Last part of the metric's name, which is <game>/<this> -> title."""
LAB_CURVES = {
    "lab_p_acc": "lab: P_acc",
    "lab_r_acc": "lab: R_acc",
    "lab_reward_rate": "lab: moves that score",
    "lab_reward_rate_true_perception": "lab: moves that score, given the true board",
}
"""Of runs that look into the lab now and then (eval.lab_every)."""
SOURCES = {
    "fresh": "at starts",
    "random_walk": "on random walks",
    "policy": "where its moves led",
    "oracle_backward": "at the oracle's ends",
    "again": "at known states",
}
"""Where states come from (`pipeline.curriculum`) -> title."""
PATTERNS = {
    "none": "no pattern",
    "localisation": "a tile with its place",
    "enumeration": "places or number of a kind",
    "line_by_line": "line after line",
    "check": "a check at the end",
}
"""What thinking may look like, as `rollout.patterns` tells it -> title."""
GAME_CURVES = {
    **CURVES,
    "legal": "legal moves",
    "unreadable": "unreadable answers",
    "answer_tokens": "tokens of an answer",
    **{f"pattern_{name}": f"thinking: {title}" for name, title in PATTERNS.items()},
    "eval_score": "evaluation: score",
    "eval_scoring": "evaluation: moves that score",
    "eval_p_acc": "evaluation: P_acc",
    **{f"open_{source}": f"how far answers differ {title}" for source, title in SOURCES.items()},
    **{f"share_{source}": f"share of all groups {title}" for source, title in SOURCES.items()},
    "known": "states to come back to",
    **LAB_CURVES,
}
"""All that a page shows of each game."""
RUN_CURVES = {
    "loss": "loss",
    "kl": "KL from the first policy, nats a token",
    "inference_kl": "KL of engines and learner, nats a token",
    "entropy": "entropy, nats a token",
    "grad_norm": "norm of the gradient",
    "clip_low": "tokens clipped below",
    "clip_high": "tokens clipped above",
    "ess": "effective share of the samples",
    "lr": "learning rate",
    "informative_groups": "informative groups: answers earn differently",
    "staleness_mean": "staleness, mean, in steps",
    "staleness_max": "staleness, most, in steps",
    "tokens_per_s": "tokens a second",
    "step_s": "seconds a step",
    "canary_nats": "canary: engines less learner, nats",
}
"""All that a page shows of a run as a whole."""
SFT_CURVES = {"loss": "loss, nats a token", "token_acc": "share of tokens foretold"}
SHARES = (
    *(f"pattern_{name}" for name in PATTERNS),
    *(f"{kind}_{source}" for kind in ("open", "share") for source in SOURCES),
    *"p_acc r_acc token_acc legal eval_scoring eval_p_acc informative_groups ess".split(),
    *LAB_CURVES,
)
"""Curves between 0 and 1."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's metrics.jsonl, one for each step."""
    path = part_of(folder, "metrics.jsonl")
    if not path.exists():
        raise ValueError(f"{path}: there is no such file; give the folder of a run, such as runs/quickstart")
    return read_lines(path, Step)


def games_with_curves(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The games that a run's metrics speak of."""
    return sorted({key.rpartition("/")[0] for line in metrics for key in line if key.endswith("/reward")})


def curve_of(metrics: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """The values [N] of a metric in N steps, NaN where a step lacks it. `informative_groups` is reckoned: not flat."""
    if name == "informative_groups":
        groups, flat = curve_of(metrics, "groups"), curve_of(metrics, "flat_groups")
        return 1 - flat / np.where(groups > 0, groups, np.nan)
    return np.array([line.get(name) for line in metrics], np.float64)


def best_rewards(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The highest mean reward of each game, over a window of a twentieth of the run."""
    window = max(1, len(metrics) // 20)
    means = {game: smooth(curve_of(metrics, f"{game}/reward"), window) for game in games_with_curves(metrics)}
    return {game: float(np.nanmax(mean)) for game, mean in means.items() if not np.isnan(mean).all()}


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
    """Writes curves.png and curves.csv into a run's or a cold start's folder; returns the picture's path.

    The table has the patterns of thinking, too. The picture shows the values and their mean over a twentieth of the
    run. Raises `ValueError` where there is nothing.
    """
    folder = Path(folder)
    metrics = read_metrics(folder)
    if not metrics:
        raise ValueError(f"{folder / 'metrics.jsonl'}: no step has been trained yet")
    games = games_with_curves(metrics)
    if games:
        examined = any(key.rpartition("/")[2] in LAB_CURVES for line in metrics for key in line)
        curves = {**CURVES, **LAB_CURVES} if examined else CURVES
        names = {game: {curve: f"{game}/{curve}" for curve in curves} for game in games}
    else:
        curves, names = SFT_CURVES, {"": {curve: curve for curve in SFT_CURVES}}
    known = {name for line in metrics for name in line}
    patterns = [name for game in games for pattern in PATTERNS if (name := f"{game}/pattern_{pattern}") in known]
    columns = [name for line in names.values() for name in line.values()] + patterns
    with written(folder / "curves.csv") as beside, beside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", *columns])
        table.writerows([line["step"], *(line.get(column) for column in columns)] for line in metrics)
    draw_curves(folder / "curves.png", curves, {label: (metrics, its) for label, its in names.items()})
    return folder / "curves.png"


Lines = Mapping[str, tuple[Sequence[Mapping[str, Any]], Mapping[str, str]]]
"""Label -> the metrics of a run, and curve -> metric."""


def draw_curves(path: Path, curves: Mapping[str, str], lines: Lines) -> None:
    """Writes a picture with a plot for each of `curves` (curve -> title), with a line in it for each of `lines`."""
    from matplotlib.figure import Figure  # without pyplot: no display, nothing global

    rows, columns = -(-len(curves) // 4), min(len(curves), 4)
    figure = Figure(figsize=(4 * columns, 3.4 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(curves) :]:
        axes.set_visible(False)
    for axes, (curve, title) in zip(places, curves.items(), strict=False):
        for i, (label, (metrics, metric)) in enumerate(lines.items()):
            steps = np.array([line["step"] for line in metrics])
            # A step in which no answer bears on a metric lacks it.
            values = curve_of(metrics, metric[curve])
            known, window = ~np.isnan(values), max(1, len(steps) // 20)
            axes.plot(steps[known], values[known], color=f"C{i}", alpha=0.25, linewidth=1)
            axes.plot(steps[known], smooth(values, window)[known], color=f"C{i}", label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        if curve in SHARES:
            axes.set_ylim(-0.02, 1.02)
    if any(lines):  # below, where it hides no line
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(lines)))
    figure.savefig(path, dpi=110)
