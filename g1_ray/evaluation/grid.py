"""Generalisation: the variants of a game that a player was not trained on, and the heat map of how it does on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.task import PERCEPTION_LEVELS, Task
from g1_ray.config import GameConfig
from g1_ray.evaluation.results import Result

SIZES = ("size", "rows", "cols")
"""Options that say how large a board is."""


def variants(game: GameConfig) -> list[GameConfig]:
    """The game, and what it can be turned into: held-out tiles, a smaller and a larger board, perturbed pictures.

    They are called `<name>`, `<name>+heldout`, ... What can't be (no 1x1 boards, a tile set with no held-out half) is
    left out. An axis that is given as a level is first spelled out.
    """
    task = game.task()
    base = game.model_dump() | {"preset": "", "reasoning": _given(game, 0), "perception": _given(game, 1)}
    made = {game.name: game}
    for name, axis, changes in _changes(task):
        values = {"preset": game.preset, axis: base[axis] | changes, "name": f"{game.name}.{name}"}
        try:
            variant = GameConfig.model_validate(base | values)
        except ValueError:
            continue
        if variant.task() != task:
            made.setdefault(variant.name, variant)
    return list(made.values())


def _given(game: GameConfig, axis: int) -> dict[str, Any]:
    """The options of an axis, every one of them where it is given as a level."""
    task = game.task()
    value = (game.reasoning, game.perception)[axis]
    if isinstance(value, int):
        return (task.reasoning, task.perception)[axis].as_dict()
    return dict(value or {})


def _changes(task: Task) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, axis and options of what one might think of; of those with one name the first that can be is taken."""
    reasoning = task.reasoning.as_dict()
    sizes = [name for name in SIZES if name in reasoning]
    changes: list[tuple[str, str, dict[str, Any]]] = [("heldout", "perception", {"split": "heldout"})]
    for name, steps in (("smaller", (-1, -2)), ("larger", (1,)), ("larger2", (2,))):
        for step in steps:
            changes.append((name, "reasoning", {size: reasoning[size] + step for size in sizes}))
            changes.append((name, "reasoning", {size: reasoning[size] + step for size in sizes[-1:]}))
    levels = enumerate(PERCEPTION_LEVELS)
    return changes + [(f"perturbed{level}", "perception", dict(options)) for level, options in levels if options]


def save_grid(path: Path, results: Sequence[Result]) -> None:
    """A heat map of the share of moves that score, in %: players by games."""
    from matplotlib.figure import Figure

    games = list(dict.fromkeys(result.game for result in results))
    players = list(dict.fromkeys(result.player for result in results))
    values = np.full((len(players), len(games)), np.nan)
    for result in results:
        values[players.index(result.player), games.index(result.game)] = result.scoring.mean
    figure = Figure(figsize=(2.5 + 0.9 * len(games), 1.8 + 0.5 * len(players)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(games)), games, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(players)), players, fontsize=8)
    for (row, col), value in np.ndenumerate(values):
        if value == value:
            axes.text(col, row, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black")
    figure.colorbar(image, label="moves that score, %")
    figure.savefig(path, dpi=110)
