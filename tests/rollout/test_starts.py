import numpy as np
import pytest

from envs import PLAYERS, State, Task
from envs.rewards import reward_table, score, ternary
from g1_ray.config import StatesConfig
from g1_ray.rollout.starts import draw, draw_state

G2048 = Task.make("2048", reasoning={"size": 3})
SHISEN = Task.make("shisen", reasoning={"rows": 3, "cols": 4})
TASKS = [G2048, SHISEN, Task.make("swap", reasoning={"rows": 5, "cols": 5})]
MIXES = {
    "fresh": StatesConfig(fresh=1, random_walk=0),
    "random_walk": StatesConfig(),
    "oracle_backward": StatesConfig(oracle_backward=1, random_walk=0),
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("source", MIXES)
def test_same_seed_same_state_and_never_over(task: Task, source: str) -> None:
    states = [draw_state(task, MIXES[source], seed, ternary) for seed in range(6)]
    assert states == [draw_state(task, MIXES[source], seed, ternary) for seed in range(6)]
    assert len({state.data for state in states}) == 6
    assert all(not state.game().over for state in states)
    assert all(draw(task, MIXES[source], seed, ternary).source == source for seed in range(3))


def test_sources_follow_their_weights() -> None:
    mix = StatesConfig(fresh=1, random_walk=3)
    sources = [draw(G2048, mix, seed, ternary).source for seed in range(200)]
    assert 0.15 < sources.count("fresh") / 200 < 0.35
    assert set(sources) == {"fresh", "random_walk"}


def test_fresh_is_a_start_and_walks_are_as_long_as_likely() -> None:
    assert all(draw_state(G2048, MIXES["fresh"], seed, ternary).game().moves == 0 for seed in range(5))
    moves = [draw_state(G2048, StatesConfig(max_walk=9), seed, ternary).game().moves for seed in range(300)]
    counts = np.bincount(moves, minlength=10)
    assert len(counts) == 10 and counts.min() > 10
    # A board of 12 tiles is cleared in 6 moves: walks that would go on stand for all their states.
    moves = [draw_state(SHISEN, StatesConfig(max_walk=40), seed, ternary).game().moves for seed in range(300)]
    assert np.bincount(moves).max() < 150


def test_backward_states_are_near_the_end() -> None:
    for seed in range(5):
        game = draw_state(SHISEN, MIXES["oracle_backward"], seed, ternary).game()
        steps = 0
        while not game.over:
            game.step(game.oracle())
            steps += 1
        assert 1 <= steps <= 8


def test_open_states_have_something_to_choose() -> None:
    mix = StatesConfig(open_only=True)
    for seed in range(20):
        rewards = reward_table(draw_state(G2048, mix, seed, ternary).game(), ternary).rewards
        assert rewards.min() < rewards.max()
    assert any(
        np.ptp(reward_table(draw_state(G2048, StatesConfig(), seed, ternary).game(), ternary).rewards) == 0
        for seed in range(20)
    )


def test_no_open_states() -> None:
    with pytest.raises(ValueError, match="shisen: none of 200 states is open.*open_only = false"):
        draw_state(SHISEN, StatesConfig(open_only=True), 0, score)


def test_policy_states_come_from_the_policy() -> None:
    mix = StatesConfig(random_walk=0, policy=1)
    with pytest.raises(ValueError, match="2048: no source of states has a weight"):
        draw_state(G2048, mix, 0, ternary)
    # Greedy play merges more than chance does, so its boards hold larger tiles after as many moves.
    played = [draw(G2048, mix, seed, ternary, PLAYERS["greedy"]) for seed in range(60)]
    assert {drawn.source for drawn in played} == {"policy"}
    walked = [draw(G2048, StatesConfig(max_walk=60), seed, ternary).state for seed in range(60)]

    def mean_score(states: list[State]) -> float:
        return float(np.mean([state.game().score for state in states]))

    assert mean_score([drawn.state for drawn in played]) > mean_score(walked)


def test_policy_weight_falls_to_the_others() -> None:
    mix = StatesConfig(fresh=1, random_walk=0, policy=5)
    assert draw_state(G2048, mix, 0, ternary) == draw_state(G2048, MIXES["fresh"], 0, ternary)
