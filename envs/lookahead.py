"""The worth of a move by what it leads to: random legal moves follow it, a few times, and what they earn counts too.

Monte-Carlo rollouts (Tesauro and Galperin, 1996, On-line policy improvement using Monte-Carlo search): a policy that
learns to take the best move by the returns of random play is better than random play, and in 2048 than the greedy one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from envs.core import Game
from envs.players import random_legal
from envs.rewards import Reward, RewardTable, reward_named, reward_table

PLAYOUTS = 8
"""Times that play goes on after a move."""


def look_ahead(game: Game, moves: int, reward: Reward) -> Mapping[int, float]:
    """Legal action -> its return, with that of up to `moves` random legal moves after it, the mean over the playouts.

    As a share of the best action's return, which gets 1: returns of different states can be compared. The new tiles of
    a playout are its own, and the same after each action. The same state always gives the same; it is left alone.
    """
    trial, data = game.fork(), game.snapshot()
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    returns = {}
    for action in game.legal_actions():
        total = 0.0
        for playout in range(PLAYOUTS):
            trial.restore(data)
            rng = trial.rng = np.random.Generator(np.random.PCG64([seed, playout]))
            total += reward(trial.step(action))
            for _ in range(moves):
                if trial.over:
                    break
                total += reward(trial.step(random_legal(trial, rng)))
        returns[action] = total / PLAYOUTS
    best = max(returns.values(), default=0.0)
    return {action: 1 - (best - value) / (abs(best) or 1.0) for action, value in returns.items()}


@dataclass(frozen=True)
class Worth:
    """What legal moves earn: the reward of that name, or, with moves `ahead`, what `look_ahead` makes of it."""

    reward: str = "ternary"
    ahead: int = 0

    def table(self, game: Game) -> RewardTable:
        """As `reward_table` makes it, with rewards that look ahead."""
        reward = reward_named(self.reward)
        table = reward_table(game, reward)
        if not self.ahead:
            return table
        return replace(table, rewards=np.array([*look_ahead(game, self.ahead, reward).values()]))

    def __str__(self) -> str:
        return f"{self.reward}, {self.ahead} ahead" if self.ahead else self.reward


TERNARY = Worth()
"""What moves earn where nobody says otherwise."""
