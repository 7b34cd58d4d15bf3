"""What flows between the parts of the pipeline: small, typed, and whole when made.

    Ticket -> OpenGroup -> Completions -> OpenGroup ... -> Group -> Sample -> Batch -> StepReport

Letters: G answers of a group, P tokens of a prompt, C tokens of a completion, L tokens of a sample. Log-probabilities
are in nats, policy versions and staleness count optimizer steps. Pictures do not travel: whoever needs one draws it
from the `State`.
"""

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
    """Counts up over a run and never repeats, e.g. 4711."""
    game: str
    """Name of the entry in the config's `games`, e.g. "shisen"."""
    seed: int
    """What every random draw for this group derives from, e.g. 3518437208883201171."""
    version: int
    """Policy version at admission, e.g. 3."""
    incarnation: int = 0
    """Times it was issued before, e.g. 1 after a failed tick; what an older one makes is refused."""
    state: State | None = None
    """Where to start; None: wherever the game's state sources put `seed`."""
    source: str = ""
    """The one of them that the state comes from, e.g. "random_walk" (`pipeline.curriculum`); '': any."""


@dataclass(frozen=True)
class Picture:
    """A picture that no state draws: one that somebody sent."""

    pixels: bytes
    """RGB, row by row."""
    height: int
    """In pixels, e.g. 112."""
    width: int


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model sees it."""

    token_ids: Ints
    """[P] image pads expanded: one for each visual token, e.g. [5, 3, 6, 6, 6, 6, 6, 6, 6, 6, 6, 4, 270, 2]."""
    states: tuple[State, ...]
    """The pictures, in the order of their pads, e.g. one for each turn that the prompt shows."""
    pictures: tuple[Picture, ...] = ()
    """Those of a prompt without states: engines answer it, and nobody trains on it."""

    @property
    def shown(self) -> tuple[State | Picture, ...]:
        """The pictures, whatever draws them."""
        return self.states or self.pictures


@dataclass(frozen=True)
class Request:
    """A prompt to answer `num_answers` times."""

    prompt: Prompt
    num_answers: int
    """E.g. 8 for the first turn of a group, then 1 for each of its rollouts."""
    seed: int
    """Answer i is sampled from a generator of its own, seeded by (seed, i)."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. Vision tokens never are."""

    temperature: float = 1.0
    """E.g. 1.0; 0: greedy."""
    top_p: float = 1.0
    """Nucleus sampling, e.g. 0.9; 1: off."""
    max_tokens: int = 256
    """Longest answer, e.g. 160."""


@dataclass(frozen=True)
class Completion:
    """One answer as sampled."""

    token_ids: Ints
    """[C] with the end token, where the model gave one, e.g. [61, 62, 2]."""
    logprobs: Floats
    """[C] of each token under the engine's policy, at the run's temperature, e.g. [-0.1, -2.3, 0.0]."""
    versions: Ints
    """[C] policy version of each token, e.g. [3, 3, 4]."""
    finish_reason: str
    """'stop', or 'length' where it was cut off."""


@dataclass(frozen=True)
class Turn:
    """One move of a model: what it saw, what it said and what came of it."""

    prompt: Prompt
    completion: Completion
    text: str
    """The answer, decoded, e.g. "<perception>...</perception> <think>...</think> <answer>up</answer>"."""
    action: int | None
    """The move as read, e.g. 2; None where it could not be."""
    cause: str
    """Why there is no move, e.g. "malformed"; '' where there is one."""
    legal: bool
    gain: float
    """In the game's own score, e.g. 8.0."""
    rewards: dict[str, float]
    """Unweighted parts, e.g. {"game": 1.0, "format": 1.0, "perception": 0.89}."""
    reward: float
    """The weighted sum, e.g. 1.89."""
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
class OpenGroup:
    """A group in the making: its rollouts so far, and the prompts that wait for answers.

    Request i is for rollout i, or where there is but one, for all those that have no turn yet.
    """

    ticket: Ticket
    start: State
    rollouts: tuple[Rollout, ...]
    """[G]"""
    requests: tuple[Request, ...]
    waiting: tuple[int, ...] = ()
    """The rollout that each answer is for, in the order of the requests' answers, e.g. (0, 2, 3): 1 is over."""


@dataclass(frozen=True)
class Group:
    """G finished rollouts from one and the same start: what advantages are taken over."""

    ticket: Ticket
    start: State
    rollouts: tuple[Rollout, ...]
    """[G]"""

    @property
    def turns(self) -> list[Turn]:
        """Of all rollouts, one after the other."""
        return [turn for rollout in self.rollouts for turn in rollout.turns]

    @property
    def min_version(self) -> int:
        """The oldest policy version that sampled any of its tokens; the ticket's, where there are none."""
        versions = [turn.completion.versions for turn in self.turns if len(turn.completion.versions)]
        return min((int(its.min()) for its in versions), default=self.ticket.version)


@dataclass(frozen=True)
class Spoiled:
    """A group whose game raised, or hung: it goes through the rest of its tick as it is, and spoils no other."""

    ticket: Ticket
    reason: str
    """In one line, e.g. "observe: ZeroDivisionError: division by zero"."""
    requests: tuple[Request, ...] = ()
    """None."""


@dataclass(frozen=True)
class Fate:
    """What became of a group: a line of the ledger."""

    group: int
    """E.g. 4711."""
    game: str
    """E.g. "shisen"."""
    fate: str
    """'trained', 'dropped' or 'quarantined'."""
    reason: str
    """E.g. "flat" or "stale" of a dropped one; '' of a trained one."""
    step: int
    """Optimizer steps completed at that time, e.g. 12."""
    staleness: int
    """Of its oldest token, in optimizer steps, e.g. 1."""


@dataclass(frozen=True)
class Sample:
    """A token sequence to train on: one turn, or several of which each one's prompt continues the one before."""

    token_ids: Ints
    """[L] prompt and completion, e.g. [5, 3, 6, 4, 2, 61, 62, 2]."""
    loss_mask: NDArray[np.bool_]
    """[L] True on tokens that the model sampled, e.g. [F, F, F, F, F, T, T, T]."""
    inference_logprobs: Floats
    """[L] 0 where the loss mask is False, e.g. [0, 0, 0, 0, 0, -0.1, -2.3, 0.0]."""
    advantages: Floats
    """[L] 0 where the loss mask is False, e.g. [0, 0, 0, 0, 0, 1.2, 1.2, 1.2]."""
    states: tuple[State, ...]
    """Its pictures, in the order of their pads."""
    prefix: int
    """Tokens at the start that all samples with the same `group` share, pictures included, e.g. 5: at least the prompt
    of the first turn, where the group has one. 0: nothing is shared."""
    group: int
    """E.g. 4711."""
    min_version: int
    """Of its tokens, e.g. 3."""
    max_version: int
    """E.g. 4."""


@dataclass(frozen=True)
class Origin:
    """What a batch was made of: goes with it through the step, and comes back with the step's report."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Of its groups: means of rewards, shares, staleness, e.g. {"groups": 48.0, "shisen/p_acc": 0.97}."""
    min_version: int = 0
    """The oldest policy version that sampled a token of it, e.g. 2."""
    taken_at: float = 0.0
    """Unix time, s, e.g. 1764201600.0."""


@dataclass(frozen=True)
class Batch:
    """What one optimizer step trains on."""

    version: int
    """The policy version it is to be trained from, e.g. 3."""
    samples: tuple[Sample, ...]
    """Those of one group stand together."""
    origin: Origin = Origin()


@dataclass(frozen=True)
class StepReport:
    """What came of a batch."""

    version: int
    """Completed optimizer steps, e.g. 4."""
    metrics: dict[str, float]
    """Of the step, the same on all ranks, e.g. {"loss": 0.02, "grad_norm": 0.7}."""
    origin: Origin
    """Of the batch."""
    skipped: str = ""
    """Why no optimizer step was made, e.g. "no samples in the batch"; '' where one was."""
