"""From finished groups to what a step trains on: Group -> Sample -> Batch. Packs are made from there: `packs`.

No text is tokenised: a sample's tokens are those that the engine saw and sampled.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from g1_ray.config import AlgorithmConfig, RunConfig
from g1_ray.rollout.judge import accuracies
from g1_ray.rollout.patterns import patterns_of, thinking_of
from g1_ray.runs.curves import PATTERNS
from g1_ray.types import Batch, Group, Origin, Rollout, Sample, Turn

FLAT = 1e-6
"""Returns that differ by no more are the same."""
EPS = 1e-4
"""What is added to a group's standard deviation."""


# Groups


def is_flat(group: Group) -> bool:
    """Whether all its rollouts earn the same: it has no advantages, and teaches nothing (DAPO, arXiv 2503.14476)."""
    totals = [rollout.total for rollout in group.rollouts]
    return max(totals) - min(totals) <= FLAT


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
    Metrics that no answer bears on are left out.
    """
    more = Counter(forgotten or {})
    flat = [is_flat(group) for group in groups]
    left_out = flat if config.algorithm.skip_flat_groups else [False] * len(groups)
    trained = [group for group, leave_out in zip(groups, left_out, strict=True) if not leave_out]
    samples = tuple(sample for group in trained for sample in samples_of(group, config.algorithm))
    counts = len(groups) + more.total(), sum(flat) + more.total(), len(samples)
    metrics = dict(zip(("groups", "flat_groups", "samples"), map(float, counts), strict=True))
    metrics["tokens"] = float(sum(int(sample.loss_mask.sum()) for sample in samples))
    turns = [turn for group in groups for turn in group.turns]
    metrics |= _metrics_of_turns(turns, "")
    metrics |= _metrics_of_staleness(turns, version)
    by_game: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_game[group.ticket.game].append(group)
    for game, its in sorted(by_game.items()):
        metrics[f"{game}/groups"] = float(len(its) + more[game])
        metrics[f"{game}/return"] = float(np.mean([rollout.total for group in its for rollout in group.rollouts]))
        metrics[f"{game}/flat_groups"] = float(sum(map(is_flat, its)) + more[game])
        metrics |= _metrics_of_turns([turn for group in its for turn in group.turns], f"{game}/")
        metrics |= _metrics_of_patterns(its, f"{game}/")
    oldest = min((group.min_version for group in trained), default=version)
    return Batch(version, samples, Origin(metrics, oldest, taken_at))


def _metrics_of_turns(turns: Sequence[Turn], scope: str) -> dict[str, float]:
    """Means and shares; R_acc only where a board was read without an error."""
    if not turns:
        return {}
    p_acc, r_acc = accuracies([turn.perception_exact for turn in turns], [turn.gain > 0 for turn in turns])
    metrics = {
        "reward": float(np.mean([turn.reward for turn in turns])),
        "gain": float(np.mean([turn.gain for turn in turns])),
        "legal": float(np.mean([turn.legal for turn in turns])),
        "p_acc": p_acc,
        "answer_tokens": float(np.mean([len(turn.completion.token_ids) for turn in turns])),
        "cut_off": float(np.mean([turn.completion.finish_reason == "length" for turn in turns])),
        "unreadable": float(np.mean([turn.action is None for turn in turns])),
    }
    if p_acc:
        metrics["r_acc"] = r_acc
    for part in sorted({part for turn in turns for part in turn.rewards}):
        metrics[f"reward_{part}"] = float(np.mean([turn.rewards.get(part, 0.0) for turn in turns]))
    for cause, count in sorted(Counter(turn.cause for turn in turns if turn.action is None).items()):
        metrics[f"unreadable_{cause}"] = count / len(turns)
    return {scope + name: value for name, value in metrics.items()}


def _metrics_of_patterns(groups: Sequence[Group], scope: str) -> dict[str, float]:
    """Shares of a game's answers whose thinking has each pattern."""
    names = groups[0].start.task.renderer.names
    found = [patterns_of(thinking_of(turn.text), names) for group in groups for turn in group.turns]
    return {f"{scope}pattern_{name}": float(np.mean([name in its for its in found])) for name in PATTERNS}


def _metrics_of_staleness(turns: Sequence[Turn], version: int) -> dict[str, float]:
    """Over the sampled tokens, in optimizer steps; and the share of answers that more than one policy sampled."""
    if not turns:
        return {}
    staleness = version - np.concatenate([turn.completion.versions for turn in turns])
    several = [turn.completion.versions.min() != turn.completion.versions.max() for turn in turns]
    return {
        "staleness_mean": float(staleness.mean()),
        "staleness_max": float(staleness.max()),
        "several_versions": float(np.mean(several)),
    }
