"""Players, reward tables, runs and intervals."""

import numpy as np
import pytest

from envs import PLAYERS, REWARDS, Task, game_names, reward_table
from g1_ray.evaluation.play import play
from g1_ray.evaluation.results import bootstrap_mean


@pytest.mark.parametrize("name", game_names())
def test_the_oracle_is_near_the_top_and_garbage_scores_nothing(name):
    """200 seeds a game; garbage is an answer that can't be read."""
    top = {"2048": 25.0, "shisen": 18, "shisen-photos": 18, "swap": 20}[name]
    task = Task.make(name, reasoning={"horizon": 18 if "shisen" in name else 20})
    scores = []
    for seed in range(200):
        run = play(task, "oracle", PLAYERS["oracle"], seed)
        scores.append(run.score)
        assert run.legal == 1
        game = task.new_game()
        game.reset(seed)
        while not game.over:
            assert game.step(None).gain == 0
        assert game.score == 0
    if name == "2048":
        assert np.mean(scores) > 3 * top
    else:
        assert scores == [top] * 200


@pytest.mark.parametrize("name", game_names())
def test_reward_tables_are_made_on_forks(name):
    game = Task.make(name).new_game()
    game.reset(7)
    for _ in range(5):
        before = game.snapshot()
        for reward in REWARDS.values():
            table = reward_table(game, reward)
            assert game.snapshot() == before
            assert table.actions == game.legal_actions()
            assert table.regrets.min() == 0 and table.best
            for action, value, outcome in zip(table.actions, table.rewards, table.outcomes, strict=True):
                twin = game.fork()
                assert twin.step(action) == outcome and reward(outcome) == value
                assert (action in table.best) == (value == table.rewards.max())
        game.step(table.best[0])


def test_the_table_of_a_finished_game_is_empty():
    game = Task.make("2048", reasoning={"horizon": 1}).new_game()
    game.reset(0)
    game.step(None)
    table = reward_table(game)
    assert table.actions == table.best == () and len(table.rewards) == 0


def test_greedy_takes_the_largest_merge():
    game = Task.make("2048").new_game()
    rng = np.random.default_rng(0)
    for seed in range(30):
        game.reset(seed)
        for _ in range(30):
            gains = {a: game.fork().step(a).gain for a in game.legal_actions()}
            chosen = PLAYERS["greedy"](game, rng)
            assert gains[chosen] == max(gains.values())
            game.step(chosen)


def test_uniform_reaches_every_action_and_random_legal_every_legal_one():
    game, rng = Task.make("2048").new_game(), np.random.default_rng(0)
    game.reset(0)
    assert {PLAYERS["uniform"](game, rng) for _ in range(200)} == {0, 1, 2, 3}
    assert {PLAYERS["random-legal"](game, rng) for _ in range(200)} == set(game.legal_actions())


def test_bootstrap_intervals_cover_the_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_mean(rng.normal(5, 2, 60).tolist(), 1000)[1:]
        hits += low <= 5 <= high
    assert 178 <= hits <= 199
    assert bootstrap_mean([3.0, 3.0]) == (3, 3, 3)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])
