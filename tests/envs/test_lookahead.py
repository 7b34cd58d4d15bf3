"""Moves are worth what play after them earns."""

import numpy as np
import pytest

from envs import Task
from envs.lookahead import look_ahead
from envs.players import greedy, random_legal
from envs.rewards import REWARDS, reward_table, score


@pytest.mark.parametrize("name", ["2048", "shisen", "swap"])
@pytest.mark.parametrize("reward", REWARDS.values())
def test_the_best_legal_move_gets_one_and_the_state_is_left_alone(name, reward):
    task = Task.make(name, reasoning=0)
    for seed in range(5):
        game = task.new_game()
        game.reset(seed)
        before = game.snapshot()
        values = look_ahead(game, 5, reward)
        assert tuple(values) == game.legal_actions() and max(values.values()) == 1
        assert game.snapshot() == before and values == look_ahead(game, 5, reward)


def test_without_moves_it_is_the_move_s_own_reward_as_a_share():
    game = Task.make("2048").new_game()
    game.reset(3)
    rng = np.random.default_rng(0)
    for _ in range(40):
        table = reward_table(game, score)
        shares = table.rewards / (table.rewards.max() or 1) + (table.rewards.max() == 0)
        assert list(look_ahead(game, 0, score).values()) == pytest.approx(shares.tolist())
        game.step(random_legal(game, rng))


def test_who_takes_the_best_move_by_it_beats_greedy_play():
    def played(choose, seed):
        game = Task.make("2048", preset="paper").new_game()
        game.reset(seed)
        while not game.over:
            game.step(choose(game))
        return game.score

    def ahead(game):
        values = look_ahead(game, 4, score)
        return max(values, key=values.__getitem__)

    far, near = ([played(choose, seed) for seed in range(4)] for choose in (ahead, lambda game: greedy(game, None)))
    assert np.mean(far) > np.mean(near) + 50
