"""From finished groups to what a rank trains on: Group -> Sample -> Batch -> Pack.

What holds, and is tested:

- no text is tokenised: a sample's tokens are those that the engine saw and sampled;
- a pack has no padding, and what the answers of a group share stands in it once;
- the weights of all tokens of all packs of all ranks are what the loss is multiplied with before it is summed: the
  global normalisation is in them, so ranks and packs only add up;
- every rank gets the same number of packs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from envs import State, Task
from g1_ray.config import AlgorithmConfig, RunConfig
from g1_ray.types import Batch, Floats, Group, Ints, Rollout, Sample, Turn

FLAT = 1e-6
"""Returns that differ by no more are the same."""


# Groups


def is_flat(group: Group) -> bool:
    """Whether all its rollouts earn the same: it has no advantages, and teaches nothing (DAPO, arXiv 2503.14476)."""
    totals = [rollout.total for rollout in group.rollouts]
    return max(totals) - min(totals) <= FLAT


def problem_of(group: Group, image_token_id: int | None = None, pads: Callable[[Task], int] | None = None) -> str:
    """What is wrong with a group that must not be trained on: '' for nothing.

    With `image_token_id` and `pads` (the visual tokens of a picture of a task) its pictures are checked too.
    """
    for i, rollout in enumerate(group.rollouts):
        if not rollout.turns:
            return f"rollout {i}: no turns"
        for j, turn in enumerate(rollout.turns):
            problem = _problem_of_turn(turn, image_token_id, pads)
            if problem:
                return f"rollout {i}, turn {j}: {problem}"
    return ""


def _problem_of_turn(turn: Turn, image_token_id: int | None, pads: Callable[[Task], int] | None) -> str:
    prompt, completion = turn.prompt, turn.completion
    length = len(completion.token_ids)
    if not length or not len(prompt.token_ids):
        return "an empty prompt or completion"
    if len(completion.logprobs) != length or len(completion.versions) != length:
        return f"{length} tokens, {len(completion.logprobs)} log-probabilities, {len(completion.versions)} versions"
    if not np.isfinite(completion.logprobs).all() or completion.logprobs.max() > 1e-3:
        worst = completion.logprobs[int(np.argmax(np.nan_to_num(completion.logprobs, nan=np.inf)))]
        return f"a log-probability of {worst}"
    if not np.isfinite(turn.reward):
        return f"a reward of {turn.reward}"
    if image_token_id is not None:
        if (completion.token_ids == image_token_id).any():
            return "an image token was sampled"
        found = int((prompt.token_ids == image_token_id).sum())
        expected = sum(pads(state.task) for state in prompt.states) if pads else found
        if found != expected:
            return f"{found} image pads for pictures of {expected} visual tokens"
    return ""


# Samples


def samples_of(group: Group, config: AlgorithmConfig) -> tuple[Sample, ...]:
    """What there is to train on in a group: a sample a turn, or one for turns that continue each other.

    All tokens that a rollout's model sampled have the advantage of the rollout's return within the group.
    """
    from g1_ray.grpo import group_advantages

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


def batch_of(groups: Sequence[Group], version: int, config: RunConfig) -> Batch:
    """The batch that a step trains on, from groups that have no problem (`problem_of`).

    Flat groups are left out where the config says so, and counted. Metrics that no answer bears on are left out.
    """
    flat = [is_flat(group) for group in groups]
    left_out = flat if config.algorithm.skip_flat_groups else [False] * len(groups)
    samples = tuple(
        sample
        for group, leave_out in zip(groups, left_out, strict=True)
        if not leave_out
        for sample in samples_of(group, config.algorithm)
    )
    metrics = {"groups": float(len(groups)), "flat_groups": float(sum(flat)), "samples": float(len(samples))}
    metrics["tokens"] = float(sum(int(sample.loss_mask.sum()) for sample in samples))
    turns = [turn for group in groups for rollout in group.rollouts for turn in rollout.turns]
    metrics |= _metrics_of_turns(turns, "")
    metrics |= _metrics_of_staleness(turns, version)
    by_game: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_game[group.ticket.game].append(group)
    for game, its in sorted(by_game.items()):
        metrics[f"{game}/groups"] = float(len(its))
        metrics[f"{game}/return"] = float(np.mean([rollout.total for group in its for rollout in group.rollouts]))
        metrics[f"{game}/flat_groups"] = float(sum(map(is_flat, its)))
        metrics |= _metrics_of_turns([t for group in its for r in group.rollouts for t in r.turns], f"{game}/")
    return Batch(version, samples, metrics)


def _metrics_of_turns(turns: Sequence[Turn], scope: str) -> dict[str, float]:
    """P_acc: share of boards read without an error. R_acc: of these, the share whose move the game rewards."""
    if not turns:
        return {}
    exact = [turn for turn in turns if turn.perception_exact]
    metrics = {
        "reward": float(np.mean([turn.reward for turn in turns])),
        "gain": float(np.mean([turn.gain for turn in turns])),
        "legal": float(np.mean([turn.legal for turn in turns])),
        "p_acc": len(exact) / len(turns),
        "answer_tokens": float(np.mean([len(turn.completion.token_ids) for turn in turns])),
        "cut_off": float(np.mean([turn.completion.finish_reason == "length" for turn in turns])),
        "unreadable": float(np.mean([turn.action is None for turn in turns])),
    }
    if exact:
        metrics["r_acc"] = float(np.mean([turn.rewards.get("game", 0.0) > 0 for turn in exact]))
    for part in sorted({part for turn in turns for part in turn.rewards}):
        metrics[f"reward_{part}"] = float(np.mean([turn.rewards.get(part, 0.0) for turn in turns]))
    for cause, count in sorted(Counter(turn.cause for turn in turns if turn.action is None).items()):
        metrics[f"unreadable_{cause}"] = count / len(turns)
    return {scope + name: value for name, value in metrics.items()}


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


# Packs


@dataclass(frozen=True)
class Pack:
    """A micro-batch of L tokens in S segments, of which T tokens were sampled, in answers (turns) of their own.

    A token sees those before it in its own segment, and all of its segment's parent: what the samples of a group share
    is a segment, and the rest of each sample is another one whose parent it is.
    """

    token_ids: Ints
    """[L]"""
    segments: Ints
    """[S, 3] start, end and parent (-1: none) of each; one after the other they are the whole pack."""
    states: tuple[State, ...]
    """The pictures, in the order of their pads."""
    targets: Ints
    """[T] where the sampled tokens stand."""
    predictors: Ints
    """[T] where the token before each one stands: it may be the last one of the parent."""
    inference_logprobs: Floats
    """[T]"""
    advantages: Floats
    """[T]"""
    weights: Floats
    """[T] what a token's loss is multiplied with; the sum over a batch's packs is the loss."""
    answers: Ints
    """[T] the answer each one belongs to, counted from 0 within the pack."""

    @property
    def num_answers(self) -> int:
        """The answers in the pack."""
        return int(self.answers[-1]) + 1 if len(self.answers) else 0


def answers_in(sample: Sample) -> Ints:
    """[T] which of the sample's answers, from 0, each of its sampled tokens belongs to."""
    starts = sample.loss_mask & ~np.concatenate([[False], sample.loss_mask[:-1]])
    numbers: Ints = (np.cumsum(starts)[sample.loss_mask] - 1).astype(np.int32)
    return numbers


def token_weights(samples: Sequence[Sample], config: RunConfig) -> list[Floats]:
    """What the loss of each sampled token [T] of each sample is multiplied with, so that the sum over all is the loss.

    Token ratios: 1 / (sampled tokens of the batch): the mean over tokens of DAPO (arXiv 2503.14476, equation 8).
    Dr. GRPO (arXiv 2503.20783): 1 / (answers x max_tokens), which does not depend on any length.
    Sequence ratios (GSPO, arXiv 2507.18071, equation 5): the mean over answers of their mean over tokens.
    """
    answers = [answers_in(sample) for sample in samples]
    num_answers = sum(int(numbers[-1]) + 1 for numbers in answers if len(numbers))
    num_tokens = sum(map(len, answers))
    if config.algorithm.ratio == "sequence":
        return [(1 / (num_answers * np.bincount(numbers)[numbers])).astype(np.float32) for numbers in answers]
    if config.algorithm.advantage == "dr-grpo":
        num_tokens = num_answers * config.rollout.max_tokens
    return [np.full(len(numbers), 1 / num_tokens, np.float32) for numbers in answers]


Block = list[int]
"""Samples of one group that stand in one pack together, by their place in the batch."""


def packs_of(batch: Batch, config: RunConfig, image_token_id: int) -> list[list[Pack]]:
    """The packs of each rank. Every rank has the same number of them: the collectives of FSDP have to match.

    A pack has at most `tokens_per_pack` tokens, unless a single sample is longer. A rank that would have fewer packs
    gets some with no sampled tokens, which add nothing. No packs for a batch without samples.
    """
    samples = batch.samples
    num_ranks, limit = config.learner.num_ranks, config.learner.tokens_per_pack
    if not samples:
        return [[] for _ in range(num_ranks)]
    plan = _plan(samples, _blocks(samples, limit), limit, num_ranks)
    weights = token_weights(samples, config)
    shortest = min(range(len(samples)), key=lambda i: (len(samples[i].token_ids), i))
    nothing = replace(samples[shortest], loss_mask=np.zeros_like(samples[shortest].loss_mask))
    idle = _pack([[nothing]], [[np.zeros(0, np.float32)]], image_token_id)
    return [
        [
            _pack([[samples[i] for i in b] for b in blocks], [[weights[i] for i in b] for b in blocks], image_token_id)
            if blocks
            else idle
            for blocks in packs
        ]
        for packs in plan
    ]


def _blocks(samples: Sequence[Sample], limit: int) -> list[Block]:
    """Samples with one prefix together, cut where they are more than `limit` tokens."""
    families: dict[tuple[int, int], Block] = defaultdict(list)
    for i, sample in enumerate(samples):
        # A sample with no prefix is a family of its own.
        families[(sample.group, sample.prefix) if sample.prefix else (-1, i)].append(i)
    blocks = []
    for family in families.values():
        block: Block = []
        for i in family:
            if block and _size(samples, [*block, i]) > limit:
                blocks.append(block)
                block = []
            block.append(i)
        blocks.append(block)
    return blocks


def _size(samples: Sequence[Sample], block: Block) -> int:
    prefix = samples[block[0]].prefix
    return prefix + sum(len(samples[i].token_ids) - prefix for i in block)


def _plan(samples: Sequence[Sample], blocks: list[Block], limit: int, num_ranks: int) -> list[list[list[Block]]]:
    """For each rank, for each of its packs, the blocks in it.

    Longest first into the least filled pack (LPT, Graham 1969), with as few packs as that allows; then the packs are
    dealt out in the same way.
    """
    sizes = [_size(samples, block) for block in blocks]
    order = sorted(range(len(blocks)), key=lambda i: -sizes[i])
    num_packs = min(-(-sum(sizes) // (limit * num_ranks)), -(-len(blocks) // num_ranks))
    while True:
        packs: list[list[int]] = [[] for _ in range(num_packs * num_ranks)]
        fill = [0] * len(packs)
        for i in order:
            least = fill.index(min(fill))
            packs[least].append(i)
            fill[least] += sizes[i]
        if all(total <= limit or len(pack) == 1 for total, pack in zip(fill, packs, strict=True)):
            break
        num_packs += 1
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for number in sorted(range(len(packs)), key=lambda i: -fill[i]):
        rank = min((r for r in range(num_ranks) if len(ranks[r]) < num_packs), key=lambda r: (loads[r], r))
        ranks[rank].append(number)
        loads[rank] += fill[number]
    return [[[blocks[i] for i in packs[number]] for number in numbers] for numbers in ranks]


def packs_in_order(samples: Sequence[Sample], tokens_per_pack: int, image_token_id: int) -> list[Pack]:
    """Packs of samples one after the other, each on its own, with weights of 1: for log-probabilities alone."""
    packs: list[list[Sample]] = []
    fill = tokens_per_pack
    for sample in samples:
        if fill + len(sample.token_ids) > tokens_per_pack:
            packs.append([])
            fill = 0
        packs[-1].append(replace(sample, prefix=0))
        fill += len(sample.token_ids)
    ones = [[[np.ones(int(sample.loss_mask.sum()), np.float32)] for sample in pack] for pack in packs]
    return [_pack([[sample] for sample in pack], its, image_token_id) for pack, its in zip(packs, ones, strict=True)]


def _pack(blocks: list[list[Sample]], weights: list[list[Floats]], image_token_id: int) -> Pack:
    token_ids: list[NDArray[np.int32]] = []
    segments: list[tuple[int, int, int]] = []
    states: list[State] = []
    targets: list[NDArray[np.int64]] = []
    predictors: list[NDArray[np.int64]] = []
    answers: list[Ints] = []
    at = num_answers = 0
    for block in blocks:
        prefix, parent = block[0].prefix, -1
        if prefix:
            parent = len(segments)
            segments.append((at, at + prefix, -1))
            token_ids.append(block[0].token_ids[:prefix])
            states += block[0].states[: _pictures_in_prefix(block[0], image_token_id)]
            at += prefix
        parent_end = at - 1
        for sample in block:
            tail = sample.token_ids[prefix:]
            places = np.flatnonzero(sample.loss_mask[prefix:])
            segments.append((at, at + len(tail), parent))
            token_ids.append(tail)
            states += sample.states[_pictures_in_prefix(sample, image_token_id) :]
            targets.append(places + at)
            predictors.append(np.where(places == 0, parent_end, places + at - 1))
            numbers = answers_in(sample) + num_answers
            answers.append(numbers)
            num_answers = int(numbers[-1]) + 1 if len(numbers) else num_answers
            at += len(tail)
    whole = [sample for block in blocks for sample in block]
    return Pack(
        token_ids=np.concatenate(token_ids),
        segments=np.array(segments, np.int32),
        states=tuple(states),
        targets=np.concatenate(targets).astype(np.int32),
        predictors=np.concatenate(predictors).astype(np.int32),
        inference_logprobs=np.concatenate([sample.inference_logprobs[sample.loss_mask] for sample in whole]),
        advantages=np.concatenate([sample.advantages[sample.loss_mask] for sample in whole]),
        weights=np.concatenate([array for arrays in weights for array in arrays]),
        answers=np.concatenate(answers).astype(np.int32),
    )


def _pictures_in_prefix(sample: Sample, image_token_id: int) -> int:
    """All pictures of a sample are of one task, so each has as many pads."""
    pads = sample.token_ids == image_token_id
    total = int(pads.sum())
    return int(pads[: sample.prefix].sum()) * len(sample.states) // total if total else 0
