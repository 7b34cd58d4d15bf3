"""Rewards of single moves, and the reward of every legal move of a state.

A reward is a function of an `Outcome` alone, so the same move in the same state always earns the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.core import Game, Outcome
from envs.registry import Registry

Reward = Callable[[Outcome], float]


def paper(outcome: Outcome) -> float:
    """+1 for a move that scores, -1 for any other, legal or not (G1, arXiv 2505.13426, game reward)."""
    return 1.0 if outcome.gain > 0 else -1.0


def ternary(outcome: Outcome) -> float:
    """+1 for a move that scores, 0 for a legal one that does not, -1 for an illegal or unreadable one."""
    if not outcome.legal:
        return -1.0
    return 1.0 if outcome.gain > 0 else 0.0


def score(outcome: Outcome) -> float:
    """What the move adds to the game's own score."""
    return float(outcome.gain)


def cleared(outcome: Outcome) -> float:
    """Tiles that left the board: merges in 2048, 2 in Shisen-Sho, the whole cascade in Swap."""
    return float(outcome.cleared)


REWARDS: Registry[Reward] = Registry("reward", ternary=ternary, paper=paper, score=score, cleared=cleared)
reward_named = REWARDS.find


@dataclass(frozen=True)
class RewardTable:
    """The legal actions of a state with what each would do: A actions, ascending."""

    actions: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    rewards: NDArray[np.float64]
    """[A]"""

    @property
    def regrets(self) -> NDArray[np.float64]:
        """[A] how much less than the best legal action each earns; 0 for the best."""
        return self.rewards.max(initial=-np.inf) - self.rewards

    @property
    def best(self) -> tuple[int, ...]:
        """The actions that earn most."""
        return tuple(np.array(self.actions, np.intp)[self.regrets == 0].tolist())


def reward_table(game: Game, reward: Reward = ternary) -> RewardTable:
    """What every legal action of the state earns, found by trying each on a fork. The game itself is left alone."""
    data = game.snapshot()
    trial = game.fork()
    outcomes = []
    for action in game.legal_actions():
        trial.restore(data)
        outcomes.append(trial.step(action))
    return RewardTable(game.legal_actions(), tuple(outcomes), np.array([reward(outcome) for outcome in outcomes]))
