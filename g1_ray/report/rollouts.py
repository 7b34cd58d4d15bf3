"""Rollouts for a page that shows them: chosen from a run's or an evaluation's folder, and looked at again.

rows of a folder -> ShownRollout -> SeenBlock, block by block -> PackedPage (sheets.py)
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from envs import Codec, State, Task
from envs.core import Board, Looks
from envs.lookahead import TERNARY, Worth
from g1_ray.evaluation.confusion import Told, told_board, told_words
from g1_ray.learner.samples import group_advantages
from g1_ray.runs.layouts import MOVES, TURNS, state_in
from g1_ray.runs.trajectories import files_in

TRAINING = "training"
"""The player of a training run's rollouts."""
OUTCOMES = ("won", "scores", "scoreless", "illegal", "unreadable")
"""What can come of a turn; a scoreless move is legal."""

_TRAINING_COLUMNS = (
    "game group rollout turn state versions finish_reason text action action_text cause legal gain reward reward_game "
    "reward_format reward_perception perception_exact over"
).split()
_MOVES_COLUMNS = (
    "game player seed board move state text action action_text cause legal gain reward_game regret perception_exact "
    "perception_share over success prompt_tokens tokens seconds"
).split()


@dataclass(frozen=True)
class ShownRollout:
    """A rollout of training, or a board of an evaluation."""

    game: str
    player: str
    number: int
    """Of the group, or the seed of the run."""
    place: int
    """Of the rollout in its group, or of the board in its run."""
    rows: list[dict[str, Any]]
    """Its turns."""
    advantage: float | None = None
    """Within its group."""


def evenly(total: int, most: int) -> NDArray[np.intp]:
    """Up to `most` of the numbers 0..total-1, evenly drawn, the first and the last among them where there are two."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(np.intp)


def read_training(folder: Path, most: int, divide_by_std: bool) -> tuple[list[ShownRollout], int]:
    """About `most` rollouts of a folder of trajectories, in whole groups drawn evenly over the run; how many it has."""
    files = files_in(folder)
    if not files:
        return [], 0
    heads = pa.concat_tables([TURNS.table(file, ["group", "rollout"]) for file in files])
    if not len(heads):
        return [], 0
    keys = np.unique(np.stack([column.to_numpy() for column in heads.columns], 1), axis=0)
    groups, sizes = np.unique(keys[:, 0], return_counts=True)
    chosen = groups[evenly(len(groups), max(1, most // int(sizes.max())))]
    kept = pc.field("group").isin(chosen.tolist())
    rows = [row for file in files for row in TURNS.rows(file, _TRAINING_COLUMNS, kept)]
    rows.sort(key=lambda row: (row["group"], row["rollout"], row["turn"]))
    played: list[ShownRollout] = []
    for number, group in itertools.groupby(rows, lambda row: row["group"]):
        rollouts = [list(its) for _, its in itertools.groupby(group, lambda row: row["rollout"])]
        totals = np.array([sum(row["reward"] for row in rollout) for rollout in rollouts])
        advantages = group_advantages(totals, divide_by_std).tolist() if len(totals) > 1 else [None]
        for its, advantage in zip(rollouts, advantages, strict=True):
            played.append(ShownRollout(its[0]["game"], TRAINING, number, its[0]["rollout"], its, advantage))
    return played, len(keys)


def read_evaluation(folder: Path, most: int) -> tuple[list[ShownRollout], int]:
    """Up to `most` boards of a folder of moves, drawn evenly from all players' runs; how many it has."""
    files = files_in(folder)
    keys = []  # of each file: its boards' (seed, board)
    for path in files:
        heads = MOVES.table(path, ["seed", "board"])
        pairs = np.stack([column.to_numpy() for column in heads.columns], 1)
        keys.append(np.unique(pairs, axis=0))
    total = sum(map(len, keys))
    chosen = evenly(total, most)
    played, first = [], 0
    for path, its in zip(files, keys, strict=True):
        here = chosen[(chosen >= first) & (chosen < first + len(its))] - first
        first += len(its)
        boards = {tuple(its[place]) for place in here.tolist()}
        wanted = pc.field("seed").isin([int(seed) for seed, _ in boards])
        rows = [row for row in MOVES.rows(path, _MOVES_COLUMNS, wanted) if (row["seed"], row["board"]) in boards]
        rows.sort(key=lambda row: (row["seed"], row["board"], row["move"]))
        for (seed, board), moves in itertools.groupby(rows, lambda row: (row["seed"], row["board"])):
            turns = list(moves)
            played.append(ShownRollout(turns[0]["game"], turns[0]["player"], seed, board, turns))
    return played, total


# Looking at them again


@dataclass(frozen=True)
class SeenState:
    """A state, as the page shows it."""

    task: Task
    board: Board
    looks: Looks
    moves: list[tuple[float, list[str]]]
    """Rewards, the best first, and the legal moves that earn them."""


@dataclass(frozen=True)
class SeenBlock:
    """A block of rollouts with what is in their states and answers."""

    states: list[SeenState]
    turns: list[list[dict[str, Any]]]
    """Of each rollout, as the page's JSON has them; "state" is a number in `states`."""
    told: list[list[Told | None]]
    """The board that each turn tells; None where no board was asked for."""


def look_at(block: Sequence[ShownRollout], worths: Mapping[str, Worth]) -> SeenBlock:
    """Looks at the states and reads the answers of some rollouts again. `worths`: game -> what its moves earn in
    training; in an evaluation nothing looks ahead."""
    examined = SeenBlock([], [], [])
    known: dict[tuple[bytes, Worth], int] = {}
    codecs: dict[Task, Codec] = {}
    for played in block:
        examined.turns.append([])
        examined.told.append([])
        worth = worths.get(played.game, TERNARY)
        worth = worth if played.player == TRAINING else replace(worth, ahead=0)
        standing = -1  # the state before the next turn, where the last one left it as it was
        for row in played.rows:
            number = standing if standing >= 0 else known.get((row["state"], worth), -1)
            if number < 0:
                number = known[row["state"], worth] = len(examined.states)
                examined.states.append(_seen(state_in(row), worth))
            seen = examined.states[number]
            codec = codecs.get(seen.task) or codecs.setdefault(seen.task, Codec(seen.task))
            told = told_words(codec, row["text"]) if row["perception_exact"] is not None else None
            examined.told[-1].append(None if told is None else told_board(codec, told))
            examined.turns[-1].append(_turn(row, number, codec, told))
            standing = -1 if row["legal"] else number
    return examined


def _seen(state: State, worth: Worth) -> SeenState:
    game = state.game()
    table = worth.table(game)
    moves: dict[float, list[str]] = {}
    for action, earned in zip(table.actions, table.rewards.tolist(), strict=True):
        moves.setdefault(earned, []).append(game.actions.write(action))
    return SeenState(state.task, game.perception(), game.looks, sorted(moves.items(), reverse=True))


def _turn(row: Mapping[str, Any], number: int, codec: Codec, told: list[list[str]] | None) -> dict[str, Any]:
    """A turn as the page's JSON has it; what there is nothing to say of is left out."""
    answer = codec.read(row["text"])
    values = {
        "move": row["action_text"],
        "cause": row["cause"],
        "outcome": _outcome(row),
        "gain": row["gain"],
        "reward": row.get("reward"),
        "reward_game": row["reward_game"],
        "reward_format": row.get("reward_format"),
        "share": row.get("perception_share", row.get("reward_perception")),
        "exact": row["perception_exact"],
        # A description without end is cut off well beyond the board's size.
        "told": None if row["perception_exact"] else [line[: 4 * codec.cols] for line in told or ()][: 4 * codec.rows],
        "thinking": answer.thinking,
        "answer": answer.body,
        "text": row["text"],
        "tokens": row["tokens"] if "tokens" in row else len(row["versions"]),
        "prompt_tokens": row.get("prompt_tokens"),
        "seconds": row.get("seconds"),
        "cut": row.get("finish_reason") == "length" or None,
        "versions": [row["versions"][0], row["versions"][-1]] if row.get("versions") else None,
    }
    values = {name: _rounded(x) if isinstance(x, float) else x for name, x in values.items()}
    return {"state": number, **{name: x for name, x in values.items() if x not in (None, "") and x != []}}


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _outcome(row: Mapping[str, Any]) -> int:
    """Which of `OUTCOMES` came of a turn. That a board was won is found by playing its last move again."""
    if row["action"] is None:
        return 4
    won = row.get("success")
    if won is None and row["over"] and row["legal"]:
        won = state_in(row).game().step(row["action"]).success
    return 0 if won else 1 if row["gain"] > 0 else 2 if row["legal"] else 3
