"""Group-relative policy optimisation: the maths, without state, and the table of losses.

LOSSES["mine"] = my_loss    in a module of your own, for algorithm.loss = "module:mine"

Which policy is the old one. Answers are sampled by an engine whose weights may be some steps behind and whose kernels
round differently, and every batch is trained on once. PPO's ratio of new to old policy, with the old one taken as the
learner at the start of the step, would then be 1 in value, and its clip would never act. So the ratio here is taken
against the policy that really sampled the token, whose log-probability came along with it:

    r = pi_learner / pi_inference = (pi_learner / pi_old) * (pi_old / pi_inference)

The first factor carries the gradient, the second, equal to r in value, corrects for staleness and for the mismatch
of the kernels. r is clipped as in PPO, which keeps the learner near the policy that made the data, and as a weight it
is truncated at `tis_cap` (truncated importance sampling), which bounds the one case that PPO's minimum leaves open:
a token of negative advantage that has become much likelier. Clipping off (clip_low = 1, a huge clip_high) leaves
plain truncated importance sampling, which is the decoupled loss of AReaL (arXiv 2505.24298, equation 5) for one
update a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from envs.registry import Registry
from g1_ray.config import AlgorithmConfig

MAX_LOG_RATIO = 20.0
"""Ratios are bounded at its exponential, 5e8: float32 ends at e^88.7, and the sum of their squares must fit too."""


def ratios_of(log_ratios: torch.Tensor) -> torch.Tensor:
    """exp of log-ratios [T], bounded in value, and in gradient with it, which is the value's own.

    Bounded importance weights, Ionides, 'Truncated importance sampling' (J. Comput. Graph. Stat. 17, 2008): without,
    one token whose ratio overflows is an inf here and, truncated, inf x 0 = NaN in the loss of its whole batch.
    """
    bounded = log_ratios.detach().float().clamp(max=MAX_LOG_RATIO)
    return (bounded + (log_ratios - log_ratios.detach())).exp()


def k3_kl(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Estimate [T] of KL(policy, reference) a token, unbiased for tokens of the policy and never negative.

    exp(d) - d - 1 with d = reference - policy: Schulman, 'Approximating KL divergence' (2020), k3.
    """
    difference = reference_logprobs - logprobs
    return ratios_of(difference) - difference - 1


def answer_log_ratios(log_ratios: torch.Tensor, answers: torch.Tensor, num_answers: int) -> torch.Tensor:
    """Each token's log-ratio replaced by the mean over its answer: the sequence ratio of GSPO.

    Group Sequence Policy Optimization, arXiv 2507.18071, equation 7. `log_ratios` [T]; `answers` [T] numbers the
    answer of each token, below `num_answers`.
    """
    zeros = log_ratios.new_zeros(num_answers)
    sums = zeros.index_add(0, answers, log_ratios)
    counts = zeros.index_add(0, answers, torch.ones_like(log_ratios))
    return (sums / counts.clamp(min=1))[answers]


@dataclass(frozen=True)
class Tokens:
    """What a loss is a function of: T sampled tokens of a pack."""

    logprobs: torch.Tensor
    """[T] under the policy that is trained, with gradient, e.g. [-0.1, -2.3, -0.9]."""
    inference_logprobs: torch.Tensor
    """[T] under the policy that sampled them, e.g. [-0.1, -2.2, -0.9]."""
    advantages: torch.Tensor
    """[T] e.g. [1.2, 1.2, -0.7]."""
    answers: torch.Tensor
    """[T] the answer that each belongs to, e.g. [0, 0, 1]."""
    num_answers: int
    """E.g. 2."""


@dataclass(frozen=True)
class Losses:
    """The loss of tokens, and what there is to say about them."""

    losses: torch.Tensor
    """[T] to be weighted (`Pack.weights`) and summed, e.g. [-1.2, -1.1, 0.7]."""
    ratios: torch.Tensor
    """[T] policy / inference policy, without gradient, e.g. [1.0, 0.9, 1.0]."""
    clipped_low: torch.Tensor
    """[T] True where the lower bound takes the gradient away."""
    clipped_high: torch.Tensor
    """[T] the same for the upper bound."""
    tis_weights: torch.Tensor
    """[T] the ratios as truncated, e.g. [1.0, 0.9, 1.0]."""


def clip(tokens: Tokens, config: AlgorithmConfig) -> Losses:
    """The policy loss -min(w A, clip(w, 1 - low, 1 + high) A) of each token [T].

    PPO, arXiv 1707.06347, equation 7, with DAPO's separate bounds (arXiv 2503.14476, equation 10). w is the
    ratio r against the inference policy (see the module), of each token or of each whole answer (GSPO), with its weight
    truncated: value min(r, cap) and gradient min(r, cap) * grad log pi (TIS, Yao et al. 2025, 'Your efficient RL
    framework secretly brings you off-policy RL training').
    """
    log_ratios, advantages = tokens.logprobs - tokens.inference_logprobs, tokens.advantages
    if config.ratio == "sequence":
        log_ratios = answer_log_ratios(log_ratios, tokens.answers, tokens.num_answers)
    ratios = ratios_of(log_ratios)
    values = ratios.detach()
    truncated = values.clamp(max=config.tis_cap) if config.tis_cap else values
    weighted = ratios * (truncated / values.clamp(min=torch.finfo(values.dtype).tiny))
    low, high = 1 - config.clip_low, 1 + config.clip_high
    losses = -torch.minimum(weighted * advantages, weighted.clamp(low, high) * advantages)
    weights = weighted.detach()  # what a cap below 1 + clip_high keeps within the bounds is not clipped
    return Losses(
        losses=losses,
        ratios=values,
        clipped_low=(weights < low) & (advantages < 0),
        clipped_high=(weights > high) & (advantages > 0),
        tis_weights=truncated,
    )


Loss = Callable[[Tokens, AlgorithmConfig], Losses]
LOSSES: Registry[Loss] = Registry("algorithm.loss", clip=clip)
"""By the name in the config. GRPO, Dr. GRPO and GSPO are parameters: `advantage` and `ratio` (see `packs.token_weights`
for their normalisation), TIS is `tis_cap`."""


def effective_sample_share(sum_of_ratios: float, sum_of_squares: float, num_tokens: float) -> float:
    """(sum r)^2 / (n sum r^2), from 1 (on-policy) down to 1/n: Kish's effective sample size over n tokens."""
    return sum_of_ratios**2 / (num_tokens * sum_of_squares) if sum_of_squares > 0 else 0.0
