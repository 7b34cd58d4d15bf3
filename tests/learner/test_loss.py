import functools
import math
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from g1_ray.config import AlgorithmConfig
from g1_ray.learner.loss import Tokens, answer_log_ratios, clip, effective_sample_share, k3_kl
from g1_ray.learner.samples import group_advantages


def log(*ratios: float) -> torch.Tensor:
    return torch.tensor(ratios).log()


def test_advantages_worked_by_hand():
    returns = np.array([1.0, 0.0, 0.0, 1.0])
    std = math.sqrt(4 * 0.25 / 3)  # unbiased
    expected = np.array([0.5, -0.5, -0.5, 0.5])
    np.testing.assert_allclose(group_advantages(returns, True), expected / (std + 1e-4), rtol=1e-6)
    np.testing.assert_allclose(group_advantages(returns, False), expected)


def test_a_flat_group_has_no_advantages():
    np.testing.assert_array_equal(group_advantages(np.full(4, 0.7), True), np.zeros(4))


def surrogate_of(ratios: list[float], advantages: list[float], **options: object):
    inference = torch.full((len(ratios),), -1.5)
    logprobs = (inference + torch.tensor(ratios).log()).requires_grad_()
    config = AlgorithmConfig(**({"clip_low": 0.2, "clip_high": 0.28, "tis_cap": 2.0} | options))
    answers = torch.zeros(len(ratios), dtype=torch.long)
    made = clip(Tokens(logprobs, inference, torch.tensor(advantages), answers, 1), config)
    made.losses.sum().backward()
    return made, logprobs.grad


def test_the_clipped_surrogate_worked_by_hand():
    """Ratio, advantage -> loss, gradient with respect to the log-probability."""
    cases = [
        (1.0, 1.0, -1.0, -1.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 1.0, -1.28, 0.0),  # above the upper bound: no more push up
        (1.5, -1.0, 1.5, 1.5),  # but still a push down
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),  # below the lower bound: no more push down
        (5.0, -1.0, 2.0, 2.0),  # truncated: the weight is the cap, and so is the gradient
    ]
    ratios, advantages, losses, gradients = (list(column) for column in zip(*cases, strict=True))
    made, gradient = surrogate_of(ratios, advantages)
    torch.testing.assert_close(made.losses.detach(), torch.tensor(losses))
    torch.testing.assert_close(gradient, torch.tensor(gradients))
    assert made.clipped_high.tolist() == [False, False, True, False, False, False, False]
    assert made.clipped_low.tolist() == [False, False, False, False, False, True, False]
    torch.testing.assert_close(made.tis_weights, torch.tensor(ratios).clamp(max=2.0))


def test_without_a_cap_the_weight_is_the_ratio():
    made, gradient = surrogate_of([5.0], [-1.0], tis_cap=0.0)
    torch.testing.assert_close(made.losses.detach(), torch.tensor([5.0]))
    torch.testing.assert_close(gradient, torch.tensor([5.0]))


@pytest.mark.parametrize("tis_cap", [0.0, 0.7, 1.1, 1.27, 2.0])
def test_the_clipped_are_those_whose_gradient_is_gone(tis_cap: float):
    """Also where the cap keeps a weight within the bounds that its ratio is beyond: that token is still trained."""
    ratios, advantages = [0.1, 0.75, 0.9, 1.0, 1.2, 1.5, 5.0, 300.0] * 2, [1.0] * 8 + [-1.0] * 8
    made, gradient = surrogate_of(ratios, advantages, tis_cap=tis_cap)
    assert (made.clipped_low | made.clipped_high).tolist() == (gradient == 0).tolist()
    assert made.clipped_high.any() == (tis_cap in (0.0, 2.0))


@pytest.mark.parametrize("tis_cap", [0.0, 2.0])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_a_ratio_beyond_float32_gives_no_nan(ratio: str, tis_cap: float):
    """A token that has become likelier by e^89 and more, between others; its push down is as strong as the bound."""
    apart = torch.tensor([0.0, 89.0, 1000.0, -1000.0])
    logprobs = apart.clone().requires_grad_()
    config = AlgorithmConfig(tis_cap=tis_cap, ratio=ratio)
    made = clip(Tokens(logprobs, torch.zeros(4), torch.tensor([-1.0, -1.0, -1.0, -1.0]), torch.arange(4), 4), config)
    made.losses.sum().backward()
    assert made.losses.isfinite().all() and (made.ratios**2).sum().isfinite() and logprobs.grad.isfinite().all()
    bound = tis_cap or math.exp(20)
    assert logprobs.grad.tolist() == pytest.approx([1.0, bound, bound, 0.0], rel=1e-5)
    logprobs = apart.clone().requires_grad_()
    kl = k3_kl(logprobs, torch.zeros(4))
    kl.sum().backward()
    assert kl.isfinite().all() and logprobs.grad.isfinite().all() and logprobs.grad[3] < 0 < logprobs.grad[1]


def test_a_vanished_ratio_gives_no_nan():
    made, gradient = surrogate_of([1e-30, 1e-30], [1.0, -1.0])
    assert made.losses.isfinite().all() and gradient.isfinite().all()


def test_the_sequence_ratio_is_the_geometric_mean_of_each_answer():
    answers = torch.tensor([0, 0, 1, 1, 1])
    means = answer_log_ratios(log(1.0, 4.0, 8.0, 1.0, 1.0), answers, 2).exp()
    torch.testing.assert_close(means, torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0]))


def test_k3_is_zero_for_equal_policies_and_right_on_average():
    """The mean over the policy's own tokens is the KL divergence."""
    torch.testing.assert_close(k3_kl(torch.zeros(3), torch.zeros(3)), torch.zeros(3))
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.25, 0.25])
    divergence = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * k3_kl(policy.log(), reference.log())).sum(), divergence)


def test_effective_sample_share():
    assert effective_sample_share(4.0, 4.0, 4) == 1.0
    assert effective_sample_share(8.0, 64.0, 4) == 0.25  # one token has all the weight
    assert effective_sample_share(0.0, 0.0, 4) == 0.0


# Against TRL


@functools.cache
def trl_trainer() -> Any:
    """TRL's trainer; its loss needs no vLLM, whose import takes longest."""
    utils = pytest.importorskip("trl.import_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "is_vllm_available", lambda *args, **kwargs: False)
        from trl.trainer.grpo_trainer import GRPOTrainer
    return GRPOTrainer


def trl_loss(inputs: dict[str, torch.Tensor], logprobs: torch.Tensor, **options: object) -> torch.Tensor:
    """TRL's own loss code, on an object that has just what it looks at."""
    accelerator = SimpleNamespace(
        num_processes=1, reduce=lambda tensor, reduction: tensor, gather=lambda tensor: tensor
    )
    settings = dict(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, torch.zeros_like(logprobs), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        loss_type="dapo",
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=10,
        accelerator=accelerator,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    return trl_trainer()._compute_loss(SimpleNamespace(**(settings | options)), None, inputs)


def random_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (6, 8)
    lengths = torch.tensor([8, 5, 3, 8, 1, 6])
    mask = (torch.arange(8) < lengths[:, None]).int()
    inference = -3 * torch.rand(shape, generator=generator)
    logprobs = (inference + 0.5 * torch.randn(shape, generator=generator)).requires_grad_()
    inputs = {
        "prompt_ids": torch.zeros(6, 2, dtype=torch.long),
        "prompt_mask": torch.ones(6, 2, dtype=torch.long),
        "completion_ids": torch.zeros(shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.randn(6, generator=generator),
        "old_per_token_logps": inference,
        "ref_per_token_logps": logprobs.detach() + 0.3 * torch.randn(shape, generator=generator),
        "num_items_in_batch": mask.sum(),
    }
    return inputs, logprobs


def our_loss(
    inputs: dict[str, torch.Tensor], logprobs: torch.Tensor, weights: torch.Tensor, kl_coef: float, **options: object
) -> torch.Tensor:
    mask = inputs["completion_mask"].bool()
    answers = torch.arange(len(mask))[:, None].expand(mask.shape)[mask]
    advantages = inputs["advantages"][:, None].expand(mask.shape)[mask]
    config = AlgorithmConfig(**({"clip_low": 0.2, "clip_high": 0.28, "tis_cap": 0.0} | options))
    tokens = Tokens(logprobs[mask], inputs["old_per_token_logps"][mask], advantages, answers, len(mask))
    made = clip(tokens, config)
    losses = made.losses + kl_coef * k3_kl(logprobs[mask], inputs["ref_per_token_logps"][mask])
    return (losses * weights.expand(mask.shape)[mask]).sum()


def assert_same(inputs, logprobs, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours, theirs = (torch.autograd.grad(loss, logprobs, retain_graph=True)[0] for loss in (ours, theirs))
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_token_mean_equals_trl(kl_coef: float):
    inputs, logprobs = random_batch()
    weights = 1 / inputs["completion_mask"].sum()
    ours = our_loss(inputs, logprobs, weights, kl_coef)
    assert_same(inputs, logprobs, ours, trl_loss(inputs, logprobs, beta=kl_coef))


def test_dr_grpo_equals_trl():
    inputs, logprobs = random_batch()
    ours = our_loss(inputs, logprobs, torch.tensor(1 / (6 * 10)), 0.0)
    assert_same(inputs, logprobs, ours, trl_loss(inputs, logprobs, loss_type="dr_grpo"))


def test_sequence_ratio_equals_trl():
    inputs, logprobs = random_batch()
    weights = 1 / (6 * inputs["completion_mask"].sum(1, keepdim=True))
    ours = our_loss(inputs, logprobs, weights, 0.0, ratio="sequence", clip_low=0.05, clip_high=0.05)
    theirs = trl_loss(
        inputs, logprobs, importance_sampling_level="sequence", loss_type="grpo", epsilon_low=0.05, epsilon_high=0.05
    )
    assert_same(inputs, logprobs, ours, theirs)


def test_truncated_importance_sampling_without_clipping_equals_trl():
    """TRL's ratio is that to the learner at the start of the step, 1 in value, times the truncated weight."""
    inputs, logprobs = random_batch()
    weights = (logprobs.detach() - inputs["old_per_token_logps"]).exp().clamp(max=1.2)
    own = inputs | {"old_per_token_logps": logprobs.detach(), "importance_sampling_ratio": weights}
    theirs = trl_loss(own, logprobs, use_vllm=True, vllm_importance_sampling_correction=True)
    ours = our_loss(
        inputs, logprobs, 1 / inputs["completion_mask"].sum(), 0.0, clip_low=1.0, clip_high=1e6, tis_cap=1.2
    )
    assert_same(inputs, logprobs, ours, theirs)


def test_advantages_equal_trl():
    nanstd = sys.modules[trl_trainer().__module__].nanstd
    returns = np.random.default_rng(0).normal(size=(5, 8))
    rewards = torch.tensor(returns)
    theirs = (rewards - rewards.nanmean(1, keepdim=True)) / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    np.testing.assert_allclose(group_advantages(returns, True), theirs, atol=1e-5)
