"""The classic players: baselines and teachers for every game."""

from collections.abc import Callable

import numpy as np

from envs.core import Game
from envs.rewards import reward_table, score

Choose = Callable[[Game, np.random.Generator], int]
"""Chooses an action of a game whose episode is not over; draws, if it does, from the generator given."""


def uniform(game: Game, rng: np.random.Generator) -> int:
    """Any action at all, legal or not: the paper's Random."""
    return int(rng.random() * game.actions.num)


def random_legal(game: Game, rng: np.random.Generator) -> int:
    """Any legal action."""
    legal = game.legal_actions()
    return legal[int(rng.random() * len(legal))]


def greedy(game: Game, rng: np.random.Generator) -> int:
    """The action that adds most to the score at once; the first of these."""
    table = reward_table(game, score)
    return table.actions[int(table.rewards.argmax())]


def oracle(game: Game, rng: np.random.Generator) -> int:
    """The game's own best play."""
    return game.oracle()


PLAYERS: dict[str, Choose] = {"uniform": uniform, "random-legal": random_legal, "greedy": greedy, "oracle": oracle}
