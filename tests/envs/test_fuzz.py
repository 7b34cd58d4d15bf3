"""Random and hostile actions: no crash, and what must hold of a board holds after each."""

import random

import numpy as np
import pytest

from envs import Task, game_names
from envs.games.swap import standing_matches


def invariant(name, game):
    """What must hold of a board of this game, at any moment."""
    board = game.perception()
    if name == "2048":
        return int((1 << board.astype(np.int64))[board > 0].sum())  # the mass; checked against the moves made
    if name == "swap":
        assert board.min() >= 1 and not standing_matches(board).any() and (game.over or game.legal_actions())
        return 0
    counts = np.bincount(board.ravel())[1:]
    assert (counts % 2 == 0).all()
    return int(counts.sum()) + 2 * int(game.score)  # a pair for every point


def deep_invariant(task, game):
    """What costs more to check: a restored copy is the same game, with the same choices and the same next move."""
    data, twin = game.snapshot(), task.new_game()
    twin.restore(data)
    assert twin.snapshot() == data and twin.legal_actions() == game.legal_actions()
    if not game.over:
        other, action = game.fork(), game.legal_actions()[0]
        assert (
            twin.step(action) == other.step(action) and twin.snapshot() == other.snapshot() and game.snapshot() == data
        )


def play_hostile(task, num_actions, seed):
    """`num_actions` actions, most of them nonsense; returns how many were legal."""
    name, game, rng = task.name, task.new_game(), random.Random(seed)
    size, legal_moves, deals = game.actions.num, 0, 0
    game.reset(seed)
    before = invariant(name, game)
    for number in range(num_actions):
        if game.over:
            deals += 1
            game.reset(seed + 10**6 * deals)
            before = invariant(name, game)
        legal = game.legal_actions()
        draw = rng.random()
        if draw < 0.2:
            action = rng.choice((int, np.int64, np.int32, np.intp))(rng.choice(legal))
        elif draw < 0.7:
            action = rng.randrange(size)
        elif draw < 0.9:
            action = rng.randint(-3 * size, 3 * size)
        else:
            action = rng.choice([None, -1, size, 2**31, 2**63, -(2**63), 10**100, np.int64(size), np.uint8(255), True])
        moves = game.moves
        outcome = game.step(action)
        assert outcome.legal == (action is not None and action in legal)
        assert game.moves == moves + 1
        if outcome.legal:
            legal_moves += 1
            after = invariant(name, game)
            assert after - before in ((2, 4) if name == "2048" else (0,))
            before = after
        else:
            assert outcome[1:3] == (0, 0) and (game.over or game.legal_actions() is legal)
        if number % 50 == 0:
            deep_invariant(task, game)
    assert invariant(name, game) == before
    return legal_moves


@pytest.mark.parametrize("name", game_names())
def test_hostile_actions(name):
    assert play_hostile(Task.make(name), 20_000, 0) > 3000


@pytest.mark.parametrize("name, level", [(name, level) for name in game_names() for level in (0, 2, 3)])
def test_hostile_actions_at_other_levels(name, level):
    assert play_hostile(Task.make(name, reasoning=level), 2000, level) > 300


def test_hostile_actions_up_to_a_goal():
    assert play_hostile(Task.make("2048", reasoning={"goal": 32, "horizon": 0}), 5000, 2) > 1000
    assert play_hostile(Task.make("swap", reasoning={"goal": 5, "horizon": 0}), 5000, 2) > 800


@pytest.mark.fuzz
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", game_names())
def test_a_million_hostile_actions(name):
    assert play_hostile(Task.make(name), 1_000_000, 1) > 150_000
