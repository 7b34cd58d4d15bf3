"""How boards are misread: which kind of tile is taken for which, and in which cells."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs import Codec, State

Counts = NDArray[np.int64]
Told = NDArray[np.int16]
"""[rows, cols] the kind that an answer tells for each cell; -1: missing, or a word that is no kind's name."""


def misread(states: Sequence[State], texts: Sequence[str]) -> tuple[Counts, NDArray[np.float64]]:
    """Of answers to states of one task: cells [kinds + 1, kinds + 2] by true kind (row; 0 is empty) and told kind, and
    the share [rows, cols] of the states in which each cell is told right.

    The last column counts cells that are missing or told in unknown words. A row of the board whose description has
    another number of cells is missing as a whole, and so is a board with another number of rows.
    """
    if not states or len({state.task for state in states}) > 1:
        raise ValueError(f"{len(states)} states of {len({s.task for s in states})} tasks: give states of one task")
    codec = Codec(states[0].task)
    truth = np.stack([state.game().perception() for state in states])
    told = np.stack([told_board(codec, told_words(codec, text)) for _, text in zip(states, texts, strict=True)])
    return tally(truth, told, states[0].task.new_game().num_kinds), (truth == told).mean(axis=0)


def tally(truth: NDArray[np.integer], told: NDArray[np.integer], num_kinds: int) -> Counts:
    """Counts [kinds + 1, kinds + 2] of cells by true kind and told kind, given as arrays [..., rows, cols]."""
    columns = np.where(told < 0, num_kinds + 1, told)
    places = truth.astype(np.int64).ravel() * (num_kinds + 2) + columns.ravel()
    return np.bincount(places, minlength=(num_kinds + 1) * (num_kinds + 2)).reshape(num_kinds + 1, num_kinds + 2)


def told_words(codec: Codec, text: str) -> list[list[str]]:
    """The board that an answer describes: words in lower case, row by row, as many as there are."""
    return codec.table(codec.read(text).perception or "")


def told_board(codec: Codec, words: Sequence[Sequence[str]]) -> Told:
    """The kinds that a description, in words, tells for the cells of the board."""
    kind_of = {name.lower(): kind for kind, name in enumerate(codec.names)}
    told = np.full((codec.rows, codec.cols), -1, np.int16)
    if len(words) == codec.rows:
        for row, cells in zip(told, words, strict=True):
            if len(cells) == codec.cols:
                row[:] = [kind_of.get(cell, -1) for cell in cells]
    return told
