"""Which tiles are taken for which."""

import numpy as np
import pytest

from envs import Codec, State, Task
from g1_ray.evaluation.confusion import misread


@pytest.fixture(scope="module")
def task():
    return Task.make("shisen", reasoning={"rows": 4, "cols": 4}, perception={"tile_px": 28})


def state_of(task, seed):
    game = task.new_game()
    game.reset(seed)
    return State.of(task, game)


def answer(codec, board, changes=(), drop=None, rows=None):
    """A description of the board with some words changed, a cell dropped, or only its first rows."""
    words = [[codec.names[kind] for kind in row] for row in board.tolist()]
    for (row, column), word in changes:
        words[row][column] = word
    if drop:
        del words[drop[0]][drop[1]]
    told = "\n".join(" | ".join(line) for line in words[:rows])
    return f"<perception>\n{told}\n</perception><think>hm</think><answer>(0, 0) (0, 1)</answer>"


def test_what_is_told_right_is_on_the_diagonal(task):
    codec, states = Codec(task), [state_of(task, seed) for seed in range(5)]
    boards = [state.game().perception() for state in states]
    counts = misread(states, [answer(codec, board).upper() for board in boards])[0]
    kinds = len(codec.names) - 1
    assert counts.shape == (kinds + 1, kinds + 2) and counts.sum() == 5 * 16
    assert counts[:, :-1].trace() == 80 and counts[0].sum() == 0  # no cell of a fresh board is empty
    assert counts.sum(1).tolist() == np.bincount(np.ravel(boards), minlength=kinds + 1).tolist()
    assert misread(states, [answer(codec, board) for board in boards])[1].tolist() == [[1.0] * 4] * 4


def test_what_is_told_wrong_is_counted_where_it_belongs(task):
    codec, state = Codec(task), state_of(task, 1)
    board = state.game().perception()
    true, other = int(board[0, 0]), int(board[0, 0]) % 4 + 1
    text = answer(codec, board, [((0, 0), codec.names[other]), ((0, 1), "-"), ((1, 2), "zebra")])
    counts = misread([state], [text])[0]
    assert counts[true, other] == 1 and counts[board[0, 1], 0] == 1 and counts[board[1, 2], -1] == 1
    assert counts[:, :-1].trace() == 13 and counts.sum() == 16
    assert np.argwhere(misread([state], [text])[1] == 0).tolist() == [[0, 0], [0, 1], [1, 2]]


@pytest.mark.parametrize(
    "given, missing",
    [({"drop": (2, 1)}, 4), ({"rows": 3}, 16), ({"rows": 0}, 16)],
    ids=["a row that is short", "a row too few", "an empty description"],
)
def test_what_has_another_shape_is_missing(task, given, missing):
    codec, state = Codec(task), state_of(task, 2)
    counts = misread([state], [answer(codec, state.game().perception(), **given)])[0]
    assert counts[:, -1].sum() == missing and counts[:, :-1].trace() == 16 - missing


@pytest.mark.parametrize("text", ["", "left", "<perception>", "x" * (1 << 17)])
def test_answers_that_describe_nothing_miss_every_cell(task, text):
    assert misread([state_of(task, 3)], [text])[0][:, -1].sum() == 16


def test_states_are_of_one_task(task):
    with pytest.raises(ValueError, match="0 states of 0 tasks"):
        misread([], [])[0]
    with pytest.raises(ValueError, match="2 states of 2 tasks: give states of one task"):
        misread([state_of(task, 0), state_of(Task.make("2048"), 0)], ["", ""])[0]
