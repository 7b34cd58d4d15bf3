"""What flows between the parts of the pipeline: small, typed, and whole when made.

    Ticket -> Play -> answers -> Play ... -> Group -> Sample -> Batch

Letters: G answers of a group, P tokens of a prompt, C tokens of a completion. Log-probabilities are in nats, policy
versions count optimizer steps. Pictures do not travel: whoever needs one draws it from the `State`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envs import State

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Ticket:
    """The right to make one group."""

    group: int
    """Counts up over a run and never repeats."""
    game: str
    """Name of the entry in the config's `games`."""
    seed: int
    """What every random draw for this group derives from."""
    version: int
    """Policy version at admission."""
    incarnation: int = 0
    """Times it was issued before; what an older one makes is refused."""
    state: State | None = None
    """Where to start; None: wherever the game's state sources put `seed`."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model sees it."""

    token_ids: Ints
    """[P] with image pads expanded: one for each visual token."""
    states: tuple[State, ...]
    """The pictures, in the order of their pads."""


@dataclass(frozen=True)
class Request:
    """A prompt to answer `num_answers` times."""

    prompt: Prompt
    num_answers: int
    seed: int
    """Answer i is sampled from a generator of its own, seeded by (seed, i)."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. Vision tokens never are."""

    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    max_tokens: int = 256


@dataclass(frozen=True)
class Completion:
    """One answer as sampled."""

    token_ids: Ints
    """[C] with the end token, where the model gave one."""
    logprobs: Floats
    """[C] of each token under the engine's policy, at the sampling temperature."""
    versions: Ints
    """[C] the policy version that sampled each token."""
    finish_reason: str
    """'stop' or 'length'."""


@dataclass(frozen=True)
class Turn:
    """One move of a model: what it saw, what it said and what came of it."""

    prompt: Prompt
    completion: Completion
    text: str
    """The answer, decoded."""
    action: int | None
    """The move as read; None where it could not be."""
    cause: str
    """Why there is no move; '' where there is one."""
    legal: bool
    gain: float
    """In the game's own score."""
    rewards: dict[str, float]
    """Unweighted parts: 'game', 'format', 'perception'."""
    reward: float
    """The weighted sum."""
    perception_exact: bool
    """Whether the board was described without an error."""
    next_state: State


@dataclass(frozen=True)
class Rollout:
    """A model's turns from one start."""

    turns: tuple[Turn, ...] = ()
    over: bool = False
    """Whether the episode ended within it."""

    @property
    def total(self) -> float:
        """The return: the sum of the rewards, undiscounted."""
        return sum(turn.reward for turn in self.turns)


@dataclass(frozen=True)
class Play:
    """A group in the making: its rollouts so far, and the prompts that wait for answers.

    Request i is for rollout i, or where there is but one and no rollout has a turn yet, for all of them.
    """

    ticket: Ticket
    start: State
    rollouts: tuple[Rollout, ...]
    """[G]"""
    requests: tuple[Request, ...]
    waiting: tuple[int, ...] = ()
    """The rollout that each answer is for, in the order of the requests' answers."""


@dataclass(frozen=True)
class Group:
    """G finished rollouts from one and the same start: what advantages are taken over."""

    ticket: Ticket
    start: State
    rollouts: tuple[Rollout, ...]
    """[G]"""

    @property
    def min_version(self) -> int:
        """The oldest policy version that sampled any of its tokens."""
        return min(int(turn.completion.versions.min()) for rollout in self.rollouts for turn in rollout.turns)


@dataclass(frozen=True)
class Sample:
    """A token sequence to train on: one turn, or several of which each one's prompt continues the one before."""

    token_ids: Ints
    """[L] prompt and completion."""
    loss_mask: NDArray[np.bool_]
    """[L] True on tokens that the model sampled."""
    inference_logprobs: Floats
    """[L] 0 where the loss mask is False."""
    advantages: Floats
    """[L] 0 where the loss mask is False."""
    states: tuple[State, ...]
    """Its pictures, in the order of their pads."""
    prefix: int
    """Tokens at the start that all samples with the same `group` share, pictures included: at least the prompt of the
    first turn, where the group has one. 0: nothing is shared."""
    group: int
    min_version: int
    max_version: int


@dataclass(frozen=True)
class Batch:
    """What one optimizer step trains on."""

    version: int
    """The policy version it is to be trained from."""
    samples: tuple[Sample, ...]
    """Those of one group stand together."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the groups it was made from: means of rewards, shares, staleness."""


@dataclass(frozen=True)
class StepReport:
    """What came of a batch."""

    version: int
    """Completed optimizer steps."""
    metrics: dict[str, float]
    """Of the step, the same on all ranks."""
    skipped: str = ""
    """Why no optimizer step was made; '' where one was."""
