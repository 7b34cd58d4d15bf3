"""Many games of one kind, stepped together: what the vectorised environment stands on.

Game i of a batch does exactly what a single game with its seed and actions does, whichever batch it is in.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.core import Bytes, Game, GameOptions, Outcome


class Outcomes(NamedTuple):
    """`Outcome` of B games, an array [B] for each field."""

    legal: NDArray[np.bool_]
    gain: NDArray[np.float64]
    cleared: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]


class GameBatch(ABC):
    """B games. `boards` and `looks` are [B, rows, cols], `scores` and `moves` [B]; all are read, never written."""

    num: int
    boards: NDArray[np.uint8]
    looks: NDArray[np.uint16]
    scores: NDArray[np.float64]
    moves: NDArray[np.int64]

    @abstractmethod
    def reset(self, index: int, seed: int) -> None:
        """Starts a new episode of game `index`."""

    @abstractmethod
    def step(self, actions: NDArray[np.integer], live: NDArray[np.bool_] | None = None) -> Outcomes:
        """One move of every game, or of those that `live` [B] marks; the others stay as they are, all zeros."""

    def checked(self, actions: NDArray[np.integer]) -> NDArray[np.integer]:
        """The actions of a step, [B] integers. Raises `TypeError` or `ValueError` on anything else."""
        actions = np.asarray(actions)
        if not np.issubdtype(actions.dtype, np.integer):
            raise TypeError(f"actions are {actions.dtype}: must be integers")
        if actions.shape != (self.num,):
            raise ValueError(f"actions have the shape {actions.shape}: must be ({self.num},), one for each game")
        return actions

    @abstractmethod
    def legal_actions(self, index: int) -> tuple[int, ...]:
        """`Game.legal_actions` of game `index`."""

    @abstractmethod
    def snapshot(self, index: int) -> bytes:
        """`Game.snapshot` of game `index`."""

    @abstractmethod
    def restore(self, index: int, data: Bytes) -> None:
        """`Game.restore` of game `index`."""


class LoopBatch(GameBatch):
    """Any game, one after the other: the rules cost what they cost, everything around them is shared."""

    def __init__(self, game_type: type[Game], options: GameOptions, num: int) -> None:
        self.num = num
        self.games = [game_type(options) for _ in range(num)]
        shape = (num, self.games[0].rows, self.games[0].cols)
        self.boards = np.zeros(shape, np.uint8)
        self.looks = np.zeros(shape, np.uint16)
        self.scores = np.zeros(num)
        self.moves = np.zeros(num, np.int64)

    def _see(self, index: int) -> None:
        game = self.games[index]
        self.boards[index] = game.perception()
        self.looks[index] = game.looks
        self.scores[index], self.moves[index] = game.score, game.moves

    def reset(self, index: int, seed: int) -> None:
        self.games[index].reset(seed)
        self._see(index)

    def step(self, actions: NDArray[np.integer], live: NDArray[np.bool_] | None = None) -> Outcomes:
        idle = Outcome(False, 0.0, 0, False, False, False)
        rows = [idle] * self.num
        actions = self.checked(actions)
        playing = list(range(self.num)) if live is None else np.flatnonzero(live).tolist()
        if any(self.games[index].over for index in playing):
            raise RuntimeError("an episode is over: call reset(index, seed) or restore(index, snapshot) first")
        for index in playing:
            rows[index] = self.games[index].step(int(actions[index]))
            if rows[index].legal:
                self._see(index)
            else:
                self.moves[index] += 1
        legal, gain, cleared, terminated, truncated, success = zip(*rows, strict=True)
        return Outcomes(
            np.array(legal), np.array(gain), np.array(cleared), np.array(terminated), np.array(truncated),
            np.array(success),
        )  # fmt: skip

    def legal_actions(self, index: int) -> tuple[int, ...]:
        return self.games[index].legal_actions()

    def snapshot(self, index: int) -> bytes:
        return self.games[index].snapshot()

    def restore(self, index: int, data: Bytes) -> None:
        self.games[index].restore(data)
        self._see(index)
