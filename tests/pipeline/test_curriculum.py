"""What groups are about: by weights, and by what can be learned."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from envs import State, Task
from g1_ray.config import STATE_SOURCES, RunConfig
from g1_ray.pipeline.curriculum import AGAIN, Curriculum, Lesson, lesson_of, spread
from g1_ray.rollout.starts import draw_state
from g1_ray.runs.curves import SOURCES
from g1_ray.seeds import seed_of
from g1_ray.types import Completion, Group, Prompt, Rollout, Ticket, Turn

TASK = Task.make("2048", reasoning={"size": 3})
IDS = np.array([1, 2], np.int32)
COMPLETION = Completion(IDS, np.zeros(2, np.float32), np.zeros(2, np.int32), "stop")
GROUP_SIZE, GROUPS = 8, 4


def config_of(kind="learnability", games=None, **curriculum) -> RunConfig:
    usual = {"game": "2048", "reasoning": {"size": 3}, "states": {"random_walk": 1, "fresh": 1, "policy": 2}}
    return RunConfig(
        name="t",
        model={"path": "m"},
        games=games or [usual],
        curriculum={"kind": kind, **curriculum},
        rollout={"groups_per_step": GROUPS, "group_size": GROUP_SIZE},
        asynchrony={"max_staleness": 1},
    )


class World:
    """Where a policy succeeds at a state with a chance that the state has, and learns from open groups alone."""

    def __init__(self, config: RunConfig, share_open: float = 0.15, learns: float = 0.0, seed: int = 0):
        self.config, self.curriculum = config, Curriculum(config)
        self.share_open, self.learns, self.seed, self.number, self.version = share_open, learns, seed, 0, 0
        self.learned: dict[bytes, float] = {}
        self.starts: list[tuple[str, str, State]] = []
        self.open: list[bool] = []

    def chance(self, state: State) -> float:
        rng = np.random.default_rng(seed_of("chance", self.seed, state.to_bytes().hex()))
        chance = rng.uniform(0.2, 0.8) if rng.random() < self.share_open else float(rng.integers(2))
        return min(1.0, chance + self.learned.get(state.to_bytes(), 0.0)) if chance else 0.0

    def group(self) -> Group:
        number, self.number = self.number, self.number + 1
        start = self.curriculum.draw(number, np.random.default_rng(seed_of("group", self.seed, number)))
        mix = self.config.games[0].states
        state = start.state or draw_state(TASK, mix.only(start.source), seed_of("s", self.seed, number), lambda o: 0)
        game = state.game()
        game.step(game.legal_actions()[0])
        after = State.of(TASK, game)
        rng = np.random.default_rng(seed_of("answers", self.seed, number))
        won = rng.random(GROUP_SIZE) < self.chance(state)
        turns = [
            Turn(
                Prompt(IDS, (state,)), COMPLETION, "", 0, "", True, 0.0, {"game": float(each)}, float(each), True, after
            )
            for each in won
        ]
        self.starts.append((start.game, start.source, state))
        self.open.append(0 < sum(won) < GROUP_SIZE)
        if self.open[-1]:
            self.learned[state.to_bytes()] = self.learned.get(state.to_bytes(), 0.0) + self.learns
        ticket = Ticket(number, start.game, number, self.version, state=start.state, source=start.source)
        return Group(ticket, state, tuple(Rollout((turn,), after.game().over) for turn in turns))

    def steps(self, num: int) -> None:
        for _ in range(num):
            groups = [self.group() for _ in range(GROUPS)]
            self.curriculum.learn([lesson_of(group, self.config.games[0]) for group in groups[::-1]], self.version)
            self.version += 1

    def share(self, since: int = 0) -> float:
        return float(np.mean(self.open[since:]))


def test_spread_is_that_of_two_outcomes_and_of_more():
    assert spread([1.0] * 8) == 0
    assert spread([0.0, 0.0, 1.0, 1.0]) == pytest.approx(0.5) == pytest.approx(2 * 0.5 * 0.5)
    assert spread([0.0] * 7 + [1.0]) == pytest.approx(2 * 1 / 8 * 7 / 8)
    assert spread([0.0, 1.0, 2.0, 3.0]) == pytest.approx(0.75)
    assert spread([0.3, 0.1 + 0.2]) == 0


@pytest.mark.parametrize("seed", range(2))
def test_open_outcomes_are_asked_for_more_than_by_weights(seed):
    worlds = {kind: World(config_of(kind), learns=0.05, seed=seed) for kind in ("weights", "learnability")}
    for world in worlds.values():
        world.steps(100)
    by_weights, by_learnability = (worlds[kind].share(100) for kind in worlds)
    assert by_learnability > 2 * by_weights, (by_learnability, by_weights)
    assert Counter(source for _, source, _ in worlds["weights"].starts).keys() == {"random_walk", "fresh", "policy"}


def test_no_source_ends_for_ever_and_a_share_explores():
    world = World(config_of(explore=0.3), share_open=0.0)  # nothing to learn anywhere
    world.steps(150)
    told = Counter(source for _, source, _ in world.starts)
    assert min(told["random_walk"], told["fresh"], told["policy"]) > 30 and not told[AGAIN]
    world.share_open = 1.0
    world.steps(150)
    again = Counter(source for _, source, _ in world.starts[600:])[AGAIN] / 600
    assert 0.4 < again < 0.75  # never more than is left by the share that explores


def test_a_state_is_not_asked_about_twice_at_once():
    world = World(config_of(explore=0.0), share_open=1.0)
    world.steps(60)
    last: dict[bytes, int] = {}
    for number, (_, source, state) in enumerate(world.starts):
        if source == AGAIN:
            assert number - last[state.to_bytes()] >= world.config.capacity
        last[state.to_bytes()] = number


def test_what_is_solved_is_let_go_and_what_is_old_is_asked_anew():
    curriculum = Curriculum(config_of(half_life=4.0))
    start = draw_state(TASK, config_of().games[0].states, 1, lambda outcome: 0)

    def lesson(number: int, *totals: float) -> Lesson:
        turns = [replace(World(config_of()).group().turns[0], reward=total) for total in totals]
        ticket = Ticket(number, "2048", number, 0, source="random_walk")
        return lesson_of(Group(ticket, start, tuple(Rollout((turn,)) for turn in turns)), curriculum.config.games[0])

    curriculum.learn([lesson(0, 0, 1, 0, 1)], 0)
    (known,) = curriculum._known["2048"].values()
    assert known.chance(0, 0.1, 4.0) == 0.5 and known.chance(4, 0.1, 4.0) == pytest.approx(0.3)
    for number in range(1, 5):
        curriculum.learn([lesson(number, 1, 1, 1, 1)], number)
    assert not curriculum._known["2048"]


def test_a_game_that_is_solved_leaves_its_share_to_the_other():
    options = {"game": "2048", "reasoning": {"size": 3}}
    curriculum = Curriculum(config_of(games=[{**options, "name": "a"}, {**options, "name": "b"}]))
    for record in (curriculum._records[game, "random_walk"] for game in ("a", "b")):
        for _ in range(64):
            record.see(0.5 if record is curriculum._records["a", "random_walk"] else 0.0)
    rng = np.random.default_rng(0)
    share = np.mean([curriculum.draw(number, rng).game == "b" for number in range(600)])
    assert 0.05 < share < 0.25


@pytest.mark.parametrize("kind", ["weights", "learnability"])
def test_it_goes_on_as_if_it_had_not_stopped(kind):
    whole, first = (World(config_of(kind), share_open=0.5, seed=4) for _ in range(2))
    whole.steps(60)
    first.steps(30)
    second = Curriculum(first.config)
    second.load_state_dict(json.loads(json.dumps(first.curriculum.state_dict())))
    first.curriculum = second
    first.steps(30)
    assert first.starts == whole.starts
    told = whole.curriculum.metrics()
    assert set(SOURCES) == {*STATE_SOURCES, AGAIN}  # each has curves
    assert told == second.metrics() and 0 < told["2048/open_random_walk"] < 0.5
