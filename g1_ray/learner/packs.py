"""From a batch to what a rank runs its model on: Sample -> Pack.

What holds, and is tested:

- a pack has no padding, and what the answers of a group share stands in it once;
- the weights of all tokens of all packs of all ranks are what the loss is multiplied with before it is summed: the
  global normalisation is in them, so ranks and packs only add up;
- every rank gets the same number of packs.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from envs import State
from g1_ray.config import RunConfig
from g1_ray.types import Batch, Floats, Ints, Sample


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
