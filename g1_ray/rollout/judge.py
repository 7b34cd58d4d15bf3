"""What an answer comes to: read, its description compared with the board, its move played, the move rewarded.

The one judgement there is: training, evaluation, the lab and `g1-ray explain` all look at answers with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from envs import Answer, Codec, Game, Outcome, PerceptionScore
from envs.core import Board
from envs.rewards import Reward

FLAT = 1e-6
"""Returns that differ by no more are the same."""


@dataclass(frozen=True)
class Judgement:
    """Of one answer to one board."""

    answer: Answer
    """As read, e.g. with action 2, or the cause "malformed"."""
    seen: PerceptionScore
    """The described board against the true one, e.g. 8 cells right, 1 wrong."""
    outcome: Outcome
    """Of the move, e.g. legal with a gain of 8."""
    reward: float
    """The game's part, unweighted, e.g. 1.0."""

    @property
    def parts(self) -> dict[str, float]:
        """What a reward is the weighted sum of, e.g. {"game": 1.0, "format": 1.0, "perception": 0.89}."""
        return {"game": self.reward, "format": float(self.answer.well_formed), "perception": self.seen.share}


def judge(
    codec: Codec,
    game: Game,
    text: str,
    reward: Reward,
    board: Board | None = None,
    worth: Mapping[int, float] | None = None,
) -> Judgement:
    """Judges an answer to the board of a game, and plays its move there.

    `board` [rows, cols]: what the description is compared with, where that is not the game's own board. `worth`: what
    each legal action earns, where that is not the reward of its outcome.
    """
    answer = codec.read(text)
    seen = codec.score_perception(answer.perception, game.perception() if board is None else board)
    outcome = game.step(answer.action)
    if worth is not None and outcome.legal and answer.action is not None:
        return Judgement(answer, seen, outcome, worth[answer.action])
    return Judgement(answer, seen, outcome, float(reward(outcome)))


def differ(returns: Sequence[float]) -> bool:
    """Whether the answers of a group earn differently."""
    return max(returns) - min(returns) > FLAT


class Accuracies(NamedTuple):
    """P_acc and R_acc of the paper (G1, arXiv 2505.13426, section 4); NaN where there is nothing to take them of."""

    p_acc: float
    """Share of the boards that were described without an error."""
    r_acc: float
    """Of these, the share whose move scores."""


def accuracies(exact: Sequence[bool], scores: Sequence[bool]) -> Accuracies:
    """Of answers: whether each describes its board without an error, and whether its move scores."""
    return Accuracies(share(exact), share([scored for scored, right in zip(scores, exact, strict=True) if right]))


def share(values: Sequence[bool]) -> float:
    """The share that is true; NaN of none."""
    return float(np.mean(values)) if values else float("nan")
