"""From finished groups to what a step trains on: Group -> Sample -> Batch. Packs are made from there: `packs`.

No text is tokenised: a sample's tokens are those that the engine saw and sampled.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from g1_ray.config import AlgorithmConfig, RunConfig
from g1_ray.learner.tally import origin_of, tally_of
from g1_ray.rollout.judge import differ
from g1_ray.types import Batch, Group, Rollout, Sample, Turn

EPS = 1e-4
"""What is added to a group's standard deviation."""


# Groups


def is_flat(group: Group) -> bool:
    """Whether all its rollouts earn the same: it has no advantages, and teaches nothing (DAPO, arXiv 2503.14476)."""
    return not differ([rollout.total for rollout in group.rollouts])


def fault_of_group(group: Group) -> str:
    """What is wrong with a group that must not be trained on: '' for nothing."""
    for i, rollout in enumerate(group.rollouts):
        if not rollout.turns:
            return f"rollout {i}: no turns"
        for j, turn in enumerate(rollout.turns):
            if fault := _fault_of_turn(turn):
                return f"rollout {i}, turn {j}: {fault}"
    return ""


def _fault_of_turn(turn: Turn) -> str:
    prompt, completion = turn.prompt, turn.completion
    length = len(completion.token_ids)
    if not length or not len(prompt.token_ids):
        return "an empty prompt or completion"
    if len(completion.logprobs) != length or len(completion.versions) != length:
        return f"{length} tokens, {len(completion.logprobs)} log-probabilities, {len(completion.versions)} versions"
    if not np.isfinite(completion.logprobs).all() or completion.logprobs.max() > 1e-3:
        worst = completion.logprobs[int(np.argmax(np.nan_to_num(completion.logprobs, nan=np.inf)))]
        return f"a log-probability of {worst}"
    for name, value in (("reward", turn.reward), ("gain", turn.gain)):
        if not np.isfinite(value):
            return f"a {name} of {value}"
    return ""


# Samples


def group_advantages(returns: NDArray[np.floating], divide_by_std: bool) -> NDArray[np.float32]:
    """Advantages [..., G] of the returns [..., G] of groups.

    (r - mean) / (std + 1e-4) with the unbiased std: GRPO, DeepSeekMath, arXiv 2402.03300, section 4.1.2; without the
    division: Dr. GRPO, arXiv 2503.20783, equation 3.
    """
    centred = returns - returns.mean(-1, keepdims=True)
    if divide_by_std:
        centred = centred / (returns.std(-1, ddof=1, keepdims=True) + EPS)
    return centred.astype(np.float32)


def trained_on(group: Group, config: AlgorithmConfig) -> tuple[Sample, ...]:
    """The samples of a group; none of a flat one where the config leaves those out."""
    return () if config.skip_flat_groups and is_flat(group) else samples_of(group, config)


def samples_of(group: Group, config: AlgorithmConfig) -> tuple[Sample, ...]:
    """What there is to train on in a group: a sample a turn, or one for turns that continue each other.

    All tokens that a rollout's model sampled have the advantage of the rollout's return within the group.
    """
    totals = np.array([rollout.total for rollout in group.rollouts], np.float64)
    advantages = group_advantages(totals, divide_by_std=config.advantage == "grpo")
    first = group.rollouts[0].turns[0].prompt
    shared = all(
        rollout.turns[0].prompt.states == first.states
        and np.array_equal(rollout.turns[0].prompt.token_ids, first.token_ids)
        for rollout in group.rollouts
    )
    samples: list[Sample] = []
    for rollout, advantage in zip(group.rollouts, advantages, strict=True):
        for number, turns in enumerate(_chains(rollout)):
            prefix = len(first.token_ids) if shared and number == 0 else 0
            samples.append(_sample_of(turns, float(advantage), prefix, group.ticket.group))
    return tuple(samples)


def _chains(rollout: Rollout) -> Iterator[list[Turn]]:
    """The turns, cut where a prompt is not the continuation of the prompt and the completion before it."""
    chain: list[Turn] = []
    for turn in rollout.turns:
        if chain:
            so_far = np.concatenate([chain[-1].prompt.token_ids, chain[-1].completion.token_ids])
            shown = chain[-1].prompt.states
            goes_on = np.array_equal(turn.prompt.token_ids[: len(so_far)], so_far)
            if not goes_on or turn.prompt.states[: len(shown)] != shown:
                yield chain
                chain = []
        chain.append(turn)
    yield chain


def _sample_of(turns: Sequence[Turn], advantage: float, prefix: int, group: int) -> Sample:
    token_ids = np.concatenate([turns[-1].prompt.token_ids, turns[-1].completion.token_ids])
    loss_mask = np.zeros(len(token_ids), np.bool_)
    inference_logprobs = np.zeros(len(token_ids), np.float32)
    for turn in turns:
        start = len(turn.prompt.token_ids)
        sampled = slice(start, start + len(turn.completion.token_ids))
        loss_mask[sampled] = True
        inference_logprobs[sampled] = turn.completion.logprobs
    return Sample(
        token_ids=token_ids.astype(np.int32),
        loss_mask=loss_mask,
        inference_logprobs=inference_logprobs,
        advantages=np.where(loss_mask, np.float32(advantage), np.float32(0)),
        states=turns[-1].prompt.states,
        prefix=prefix,
        group=group,
        min_version=min(int(turn.completion.versions.min()) for turn in turns),
        max_version=max(int(turn.completion.versions.max()) for turn in turns),
    )


# Batches


def batch_of(
    groups: Sequence[Group],
    version: int,
    config: RunConfig,
    taken_at: float = 0.0,
    forgotten: Mapping[str, int] | None = None,
) -> Batch:
    """The batch that a step trains on, from groups without a fault (`fault_of_group`); `taken_at`: Unix time, s.

    Flat groups are left out where the config says so, and counted; `forgotten` ones, by game, are counted only.
    """
    samples = [trained_on(group, config.algorithm) for group in groups]
    tallies = [tally_of(group, its, config.rollout.screen_size) for group, its in zip(groups, samples, strict=True)]
    origin = origin_of(tallies, version, taken_at, forgotten)
    return Batch(version, tuple(sample for its in samples for sample in its), origin)
