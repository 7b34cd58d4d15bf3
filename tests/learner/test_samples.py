from dataclasses import replace

import numpy as np
import pytest
import toys

from g1_ray.learner.packs import packs_in_order, packs_of, token_weights
from g1_ray.learner.samples import batch_of, fault_of_group, is_flat, samples_of
from g1_ray.types import Group, Rollout, Ticket

PAD = toys.chat().image_token_id


def changed(group: Group, **changes: object) -> Group:
    """The group with its first turn's completion changed."""
    first = group.rollouts[0].turns[0]
    turn = replace(first, completion=replace(first.completion, **changes))
    return replace(group, rollouts=(Rollout((turn,)), *group.rollouts[1:]))


def test_a_turn_becomes_a_sample_of_the_sampled_tokens():
    group = toys.group(1, rewards=(1.0, 0.0, 0.0, 0.0))
    config = toys.config()
    samples = samples_of(group, config.algorithm)
    assert len(samples) == 4
    for rollout, sample in zip(group.rollouts, samples, strict=True):
        prompt, completion = rollout.turns[0].prompt, rollout.turns[0].completion
        np.testing.assert_array_equal(sample.token_ids, [*prompt.token_ids, *completion.token_ids])
        np.testing.assert_array_equal(sample.token_ids[sample.loss_mask], completion.token_ids)
        np.testing.assert_array_equal(sample.inference_logprobs[sample.loss_mask], completion.logprobs)
        assert sample.prefix == len(prompt.token_ids)
        assert not sample.inference_logprobs[~sample.loss_mask].any() and not sample.advantages[~sample.loss_mask].any()
    firsts = [float(sample.advantages[-1]) for sample in samples]
    np.testing.assert_allclose(firsts, [0.75 / 0.5001, *[-0.25 / 0.5001] * 3], rtol=1e-5)  # unbiased std: 0.5


def test_dr_grpo_does_not_divide_by_the_std():
    samples = samples_of(
        toys.group(1, rewards=(1.0, 0.0, 0.0, 0.0)), toys.config(algorithm={"advantage": "dr-grpo"}).algorithm
    )
    np.testing.assert_allclose([s.advantages[-1] for s in samples], [0.75, -0.25, -0.25, -0.25])


def test_turns_that_continue_each_other_are_one_sample():
    group = toys.chain_group(1, size=2, window=3, turns=3)  # nothing ever leaves the window
    samples = samples_of(group, toys.config().algorithm)
    assert len(samples) == 2
    for rollout, sample in zip(group.rollouts, samples, strict=True):
        last = rollout.turns[-1]
        assert len(sample.token_ids) == len(last.prompt.token_ids) + len(last.completion.token_ids)
        assert sample.states == last.prompt.states and len(sample.states) == 3
        sampled = np.concatenate([turn.completion.token_ids for turn in rollout.turns])
        np.testing.assert_array_equal(sample.token_ids[sample.loss_mask], sampled)
        logprobs = np.concatenate([turn.completion.logprobs for turn in rollout.turns])
        np.testing.assert_array_equal(sample.inference_logprobs[sample.loss_mask], logprobs)
        assert len(set(sample.advantages[sample.loss_mask])) == 1
        assert sample.prefix == len(rollout.turns[0].prompt.token_ids)


def test_turns_whose_window_moved_are_samples_of_their_own():
    group = toys.chain_group(1, size=2, window=1, turns=3)
    samples = samples_of(group, toys.config().algorithm)
    assert len(samples) == 6
    assert [sample.prefix > 0 for sample in samples] == [True, False, False] * 2


def test_versions_of_a_sample_are_those_of_its_tokens():
    group = toys.group(1)
    versions = np.arange(len(group.rollouts[0].turns[0].completion.token_ids), dtype=np.int32) + 5
    sample = samples_of(changed(group, versions=versions), toys.config().algorithm)[0]
    assert (sample.min_version, sample.max_version) == (5, int(versions[-1]))


def test_flat_groups_are_left_out_and_counted():
    groups = [toys.group(1), toys.group(2, rewards=(1.0,) * 4)]
    assert [is_flat(group) for group in groups] == [False, True]
    batch = batch_of(groups, 0, toys.config())
    assert {sample.group for sample in batch.samples} == {1} and batch.origin.metrics["flat_groups"] == 1
    kept = batch_of(groups, 0, toys.config(algorithm={"skip_flat_groups": False}))
    assert {sample.group for sample in kept.samples} == {1, 2}
    assert not any(sample.advantages.any() for sample in kept.samples if sample.group == 2)


def test_metrics_of_a_batch():
    group = toys.group(1, version=3, rewards=(1.0, 0.0, 0.0, 0.0))
    turns = [rollout.turns[0] for rollout in group.rollouts]
    turns[1] = replace(turns[1], perception_exact=False)
    turns[2] = replace(turns[2], action=None, cause="no_answer", perception_exact=False)
    turns[3] = replace(turns[3], completion=replace(turns[3].completion, finish_reason="length"))
    group = replace(group, rollouts=tuple(Rollout((turn,)) for turn in turns))
    metrics = batch_of([group], 5, toys.config()).origin.metrics
    assert metrics["reward"] == metrics["reward_game"] == metrics["2048/return"] == 0.25
    assert metrics["p_acc"] == 0.5 and metrics["r_acc"] == 0.5
    assert metrics["unreadable"] == metrics["unreadable_no_answer"] == 0.25
    assert metrics["cut_off"] == 0.25
    assert metrics["staleness_mean"] == metrics["staleness_max"] == 2.0
    assert metrics["answer_tokens"] == np.mean([len(turn.completion.token_ids) for turn in turns])


def test_games_have_metrics_of_their_own():
    other = replace(toys.group(2, rewards=(0.0,) * 4), ticket=Ticket(2, "shisen", 2, 0))
    metrics = batch_of([toys.group(1, rewards=(1.0,) * 4), other], 0, toys.config()).origin.metrics
    assert (metrics["2048/reward"], metrics["shisen/reward"], metrics["reward"]) == (1.0, 0.0, 0.5)


def test_a_good_group_has_no_fault():
    assert fault_of_group(toys.group(1)) == ""
    assert fault_of_group(toys.chain_group(1)) == ""


@pytest.mark.parametrize(
    "what, changes",
    [
        ("log-probability of nan", {"logprobs": np.full(3, np.nan, np.float32)}),
        ("log-probability of 0.5", {"logprobs": np.full(3, 0.5, np.float32)}),
        ("3 tokens, 2 log-probabilities", {"logprobs": np.zeros(2, np.float32)}),
        ("an empty prompt or completion", {"token_ids": np.zeros(0, np.int32)}),
    ],
)
def test_a_bad_completion_is_named(what: str, changes: dict[str, object]):
    good = {
        "token_ids": np.array([30, 31, 32], np.int32),
        "logprobs": np.full(3, -1, np.float32),
        "versions": np.zeros(3, np.int32),
    }
    fault = fault_of_group(changed(toys.group(1), **(good | changes)))
    assert fault.startswith("rollout 0, turn 0: ") and what in fault


def test_a_bad_reward_and_a_rollout_without_turns_are_named():
    group = toys.group(1)
    first = group.rollouts[0].turns[0]
    bad = replace(group, rollouts=(Rollout((replace(first, reward=float("nan")),)), *group.rollouts[1:]))
    assert "a reward of nan" in fault_of_group(bad)
    assert "no turns" in fault_of_group(replace(group, rollouts=(Rollout(), *group.rollouts[1:])))
    gained = replace(group.rollouts[1].turns[0], gain=float("inf"))
    bad = replace(group, rollouts=(group.rollouts[0], Rollout((gained,))))
    assert "a gain of inf" in fault_of_group(bad)


# Weights


def total_weights(**algorithm: object) -> tuple[list[np.ndarray], list[int]]:
    config = toys.config(algorithm=algorithm, rollout={"max_tokens": 20})
    samples = batch_of([toys.group(1), toys.group(2)], 0, config).samples
    return token_weights(samples, config), [int(sample.loss_mask.sum()) for sample in samples]


def test_token_weights_are_a_mean_over_tokens():
    weights, lengths = total_weights()
    np.testing.assert_allclose(np.concatenate(weights), 1 / sum(lengths), rtol=1e-6)


def test_dr_grpo_weights_do_not_depend_on_lengths():
    weights, lengths = total_weights(advantage="dr-grpo")
    np.testing.assert_allclose(np.concatenate(weights), 1 / (len(lengths) * 20), rtol=1e-6)


def test_sequence_weights_are_a_mean_over_answers():
    weights, lengths = total_weights(ratio="sequence")
    for array, length in zip(weights, lengths, strict=True):
        np.testing.assert_allclose(array, np.full(length, 1 / (len(lengths) * length)), rtol=1e-6)


def test_each_turn_of_a_sample_is_an_answer_of_its_own():
    config = toys.config(algorithm={"ratio": "sequence"})
    samples = samples_of(toys.chain_group(1, size=2, window=3, turns=3), config.algorithm)
    assert sum(map(np.sum, token_weights(samples, config))) == pytest.approx(1)
    pack = packs_in_order(samples, 4096, PAD)[0]
    assert pack.num_answers == 6 and len(set(pack.answers.tolist())) == 6


# Packs


def tokens_in(packs, attribute: str) -> list[float]:
    return sorted(value for rank in packs for pack in rank for value in getattr(pack, attribute).tolist())


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("tokens_per_pack", [1, 150, 400, 4096])
def test_packs_hold_every_sampled_token_once(num_ranks: int, tokens_per_pack: int):
    config = toys.config(num_ranks=num_ranks, tokens_per_pack=tokens_per_pack)
    batch = batch_of([toys.group(i) for i in range(5)], 0, config)
    ranks = packs_of(batch, config, PAD)
    assert len(ranks) == num_ranks and len({len(packs) for packs in ranks}) == 1
    expected = sorted(np.concatenate([s.inference_logprobs[s.loss_mask] for s in batch.samples]).tolist())
    assert tokens_in(ranks, "inference_logprobs") == expected
    assert sum(tokens_in(ranks, "weights")) == pytest.approx(1, abs=1e-5)
    for pack in (pack for packs in ranks for pack in packs):
        alone = len(pack.segments) <= 2
        assert len(pack.token_ids) <= tokens_per_pack or alone
        np.testing.assert_array_equal(pack.segments[1:, 0], pack.segments[:-1, 1])
        assert pack.segments[0, 0] == 0 and pack.segments[-1, 1] == len(pack.token_ids)
        assert (pack.token_ids == PAD).sum() == 16 * len(pack.states)


def test_what_a_group_shares_stands_in_a_pack_once():
    config = toys.config()
    batch = batch_of([toys.group(1, size=8)], 0, config)
    [[pack]] = packs_of(batch, config, PAD)
    prefix = batch.samples[0].prefix
    assert len(pack.token_ids) == prefix + sum(len(s.token_ids) - prefix for s in batch.samples)
    assert pack.segments[:, 2].tolist() == [-1] + [0] * 8
    assert pack.states == batch.samples[0].states
    firsts = [int(np.flatnonzero(pack.answers == i)[0]) for i in range(8)]
    assert (pack.predictors[firsts] == prefix - 1).all()  # the end of the prompt gives each first token
    rest = np.setdiff1d(np.arange(len(pack.targets)), firsts)
    np.testing.assert_array_equal(pack.predictors[rest], pack.targets[rest] - 1)


def test_pictures_after_the_prefix_stand_with_their_sample():
    config = toys.config()
    samples = batch_of([toys.chain_group(1, size=2, window=3, turns=3)], 0, config)
    [[pack]] = packs_of(samples, config, PAD)
    first, second = samples.samples
    assert pack.states == (first.states[0], *first.states[1:], *second.states[1:])


def test_ranks_are_balanced():
    config = toys.config(num_ranks=2, tokens_per_pack=300)
    ranks = packs_of(batch_of([toys.group(i) for i in range(12)], 0, config), config, PAD)
    loads = [sum(len(pack.token_ids) for pack in packs) for packs in ranks]
    assert max(loads) < 1.1 * min(loads)


def test_a_rank_without_work_gets_a_pack_that_adds_nothing():
    config = toys.config(num_ranks=3)
    ranks = packs_of(batch_of([toys.group(1)], 0, config), config, PAD)
    assert [len(packs[0].targets) > 0 for packs in ranks] == [True, False, False]
    assert all(len(packs[0].token_ids) and len(packs[0].states) == 1 for packs in ranks)


def test_no_samples_no_packs():
    config = toys.config(num_ranks=2)
    batch = batch_of([toys.group(1, rewards=(1.0,) * 4)], 0, config)
    assert packs_of(batch, config, PAD) == [[], []]
