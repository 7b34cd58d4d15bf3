"""What the scores say in words."""

import numpy as np
import pytest

from g1_ray.evaluation.results import Mean, bootstrap_mean, difference_of, verdict


def line(game, player, mean, low, high, runs=30):
    return {"game": game, "player": player, "score": [mean, low, high], "runs": runs}


@pytest.mark.parametrize(
    "now, said",
    [
        ((30, 28, 32), "2048, T=1: G1 is better than cold start by 20.0 [17.2, 22.8]: 30.0 after 10.0"),
        ((1, 0.5, 1.5), "2048, T=1: G1 is worse than cold start by 9.00 [6.94, 11.06]: 1.00 after 10.0"),
        ((11, 8, 14), "2048, T=1: G1 and cold start are level, no difference that 30 runs can tell: 11.0 after 10.0"),
        ((10, 10, 10), "2048, T=1: G1 and cold start are level, no difference that 30 runs can tell: 10.0 after 10.0"),
    ],
)
def test_the_verdict_claims_what_the_intervals_carry(now, said):
    lines = [line("2048", "cold start, T=1", 10, 8, 12), line("2048", "G1, T=1", *now)]
    assert verdict(lines, "G1", "cold start") == [said]


def test_the_verdict_has_a_line_for_each_game_and_way_of_asking():
    ways = [f"{name}{way}" for name in ("base", "G1", "G10") for way in ("", ", T=1", ", greedy")]
    lines = [line(game, player, len(player), 1, 99) for game in ("2048", "swap") for player in (*ways, "oracle")]
    told = [text.partition(":")[0] for text in verdict(lines, "G1", "base")]
    assert told == [f"{game}{way}" for game in ("2048", "swap") for way in ("", ", T=1", ", greedy")]
    assert verdict(lines, "G1", "nobody") == verdict(lines, "nobody", "base") == []


def test_the_interval_of_a_difference_holds_it_as_often_as_it_should():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        one, other = (bootstrap_mean(rng.exponential(scale, 40).tolist(), 500) for scale in (3, 2))
        hits += difference_of(one, other).low < 1 < difference_of(one, other).high
    assert 0.90 < hits / 400 < 0.97
    assert difference_of(Mean(2, 1, 4), Mean(2, 2, 2)) == (0, -1, 2)
