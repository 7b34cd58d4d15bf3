"""What is known of queues holds for the simulation: bounds are reached where one part is slow, and never passed."""

from dataclasses import replace

import pytest

from jobs.bench.simulate import setup_of, simulated
from jobs.bench.simulation import Costs, Setup, Simulation, bounds, needed

FREE = Costs(0, 0, 0, 0, 0, 0)
REAL = Costs(2e-3, 1e-3, 4e-4, 6e-4, 2e-3, 37_000)


def test_engines_alone_are_as_fast_as_their_lanes():
    setup = Setup(lanes=16, groups_per_tick=2, answer_s=0.5)
    assert bounds(FREE, setup)["engine"] == 64
    assert Simulation(FREE, setup).run(50, 5).groups_s == pytest.approx(64, rel=0.02)


@pytest.mark.parametrize("who", ["driver_tick", "buffer_tick", "buffer_group", "env_tick", "env_group"])
def test_the_slowest_part_bounds_all_and_a_second_one_doubles_that(who):
    setup = Setup(lanes=64, groups_per_tick=1, answer_s=0.01)
    costs = replace(FREE, **{who: 0.01})
    for number in (1, 2):
        its = replace(setup, drivers=number, buffers=number, env_workers=number)
        assert min(bounds(costs, its).values()) == pytest.approx(100 * number)
        result = Simulation(costs, its).run(50, 10)
        assert result.groups_s == pytest.approx(100 * number, rel=0.04)
        assert max(result.busy.values()) == pytest.approx(1, abs=0.04)
    assert max(needed(costs, setup, 130).values()) == 2


def test_cores_that_all_share_bound_them_together():
    setup = Setup(lanes=64, groups_per_tick=1, answer_s=0.1, env_workers=4, cores=2)
    costs = Costs(4e-3, 3e-3, 0, 3e-3, 0, 0)
    assert min(bounds(costs, setup).values()) == pytest.approx(200)
    assert 160 < Simulation(costs, setup).run(50, 10).groups_s < 201


def test_a_learner_that_is_slow_holds_lanes_back_and_never_too_many_groups_are_under_way():
    setup = Setup(lanes=64, groups_per_tick=1, answer_s=0.1, groups_per_step=20, step_s=0.8, sync_s=0.2)
    simulation = Simulation(REAL, setup)
    assert simulation.run(100, 20).groups_s == pytest.approx(20, rel=0.05) == bounds(REAL, setup)["learner"]
    assert 0 <= simulation.waiting <= 60 and 0 <= simulation.slots <= 60


def test_many_gpus_need_more_groups_a_tick_and_what_would_be_enough_is_told():
    one, many = (simulated(REAL, "short", 2.0, 64, each) for each in (1, 32))
    assert one["by"] == one["busiest"] == "driver" and one["of what GPUs could"] < 0.8
    assert many["of what GPUs could"] > 0.95 and one["enough for 70 % load"].startswith("drivers 2 buffers 2")
    assert setup_of(2.0, 8, 1).lanes == 6 * 32
