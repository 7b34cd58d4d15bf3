"""Answers begun for a model: the board is described already, rightly or with errors, and the model goes on from there.

What it has to see is taken out of the question, or led astray; what is left is reasoning.
"""

import numpy as np

from envs import Codec
from envs.core import Board

THINK = "<think>\n"
"""Answers are begun up to here: a tokenizer may join what stands before it with it."""


def described(codec: Codec, board: Board, wrong: int, rng: np.random.Generator) -> str:
    """The beginning of an answer that describes a board [rows, cols], with so many cells of it wrong."""
    told = board.copy()
    for cell in rng.choice(board.size, min(wrong, board.size), replace=False).tolist():
        others = [kind for kind in range(1, len(codec.names)) if kind != board.flat[cell]]
        told.flat[cell] = others[int(rng.integers(len(others)))]
    return f"<perception>\n{codec.describe(told)}\n</perception>\n{THINK}"
