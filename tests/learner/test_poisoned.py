"""Poisoned samples on their way through the buffer into the learner, beside a run in which they never were."""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import toys

from g1_ray.config import AsyncConfig, RunConfig
from g1_ray.learner.learner import Learner
from g1_ray.pipeline.parcels import opened, parcel_of, sealed_batch
from g1_ray.pipeline.replay_buffer import ReplayBuffer
from g1_ray.types import Batch, Completion, Fate, Group, Rollout, Ticket, Turn


def with_answer(turn: Turn, **changes: object) -> Turn:
    return replace(turn, completion=replace(turn.completion, **changes))


def empty(turn: Turn) -> Turn:
    none = np.zeros(0, np.int32)
    return replace(turn, completion=Completion(none, np.zeros(0, np.float32), none, "stop"))


POISONS: dict[str, Callable[[Turn], Turn | None]] = {
    "a reward of nan": lambda turn: replace(turn, reward=float("nan"), rewards={"game": float("nan")}),
    "a reward of inf": lambda turn: replace(turn, reward=float("inf")),
    "a gain of nan": lambda turn: replace(turn, gain=float("nan")),
    "a log-probability of nan": lambda turn: with_answer(turn, logprobs=turn.completion.logprobs * np.float32("nan")),
    "a log-probability of inf": lambda turn: with_answer(turn, logprobs=turn.completion.logprobs + np.float32("inf")),
    "a log-probability of 2.0": lambda turn: with_answer(turn, logprobs=np.full_like(turn.completion.logprobs, 2.0)),
    "log-probabilities,": lambda turn: with_answer(turn, logprobs=turn.completion.logprobs[1:]),
    "an empty prompt or completion": empty,
    "no turns": lambda turn: None,
}
"""The reason that is given, and what is done to a sample's turn; None takes it away."""


def poisoned(group: Group, places: Sequence[int], kind: str) -> Group:
    turns = [rollout.turns for rollout in group.rollouts]
    for place in places:
        turn = POISONS[kind](turns[place][0])
        turns[place] = (turn,) if turn else ()
    return replace(group, rollouts=tuple(map(Rollout, turns)))


def batches(config: RunConfig, groups: Iterator[Group], fates: list[Fate]) -> Iterator[Batch]:
    """The batches that a buffer makes of groups, each in the place of a ticket."""
    buffer = ReplayBuffer(config, lambda fate, group: fates.append(fate))
    loop, version = asyncio.new_event_loop(), 0
    try:
        for group in groups:
            (ticket,) = loop.run_until_complete(buffer.admit(1))
            loop.run_until_complete(buffer.put([parcel_of(replace(group, ticket=ticket), config)]))
            if len(buffer._waiting) == config.rollout.groups_per_step:
                taken, _, _ = loop.run_until_complete(buffer.take(version))
                yield opened(sealed_batch(taken, version))
                version += 1
                loop.run_until_complete(buffer.release(version))
    finally:
        loop.close()


@pytest.mark.parametrize("samples", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_tenth_of_the_samples_poisoned_is_quarantined_and_the_rest_trains_as_if_it_had_never_been(samples):
    rng = random.Random(0)
    size, kinds = 4, list(POISONS)
    bad = rng.sample(range(samples), samples // 10)
    places = {number: [i % size for i in bad if i // size == number] for number in {i // size for i in bad}}
    kind_of = {number: kinds[at % len(kinds)] for at, number in enumerate(sorted(places))}
    config = toys.config(rollout={"groups_per_step": 16, "group_size": size})
    # All answers are of version 0, and none of them is to be too old.
    config = config.model_copy(update={"asynchrony": AsyncConfig(max_staleness=samples // size)})

    def made(number: int) -> Group:
        return replace(toys.group(number, size), ticket=Ticket(number, "2048", number, 0))

    def mixed() -> Iterator[Group]:
        for number in range(samples // size):
            group = made(number)
            yield poisoned(group, places[number], kind_of[number]) if number in places else group

    def clean() -> Iterator[Group]:
        yield from (made(number) for number in range(samples // size) if number not in places)

    losses, fates = [], []
    for source in (mixed(), clean()):
        booked: list[Fate] = []
        learner = Learner(config, 0, 1)
        learner.setup(toys.free_address())
        reports = [learner.step(batch) for batch in batches(config, source, booked)]
        learner.close()
        losses.append([report.metrics["loss"] for report in reports])
        fates.append([fate for fate in booked if fate.fate == "quarantined"])
    assert len(losses[0]) == (samples // size - len(places)) // 16 >= 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and np.isfinite(losses[0]).all()  # sums on several threads
    assert not fates[1]
    assert [fate.group for fate in fates[0]] == sorted(places)  # every poisoned one, and no other
    assert all(kind_of[fate.group] in fate.reason for fate in fates[0])
