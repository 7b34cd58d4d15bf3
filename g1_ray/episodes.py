"""Runs of a player: played, counted, and played back from their seeds and actions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from envs import PLAYERS, Task
from envs.core import Game


@dataclass(frozen=True)
class Run:
    """One run of a player on a task. Boards that end within it are followed by fresh ones, as in the paper."""

    seed: int
    seeds: tuple[int, ...]
    """The seed of each board played."""
    actions: tuple[tuple[int, ...], ...]
    """The actions on each board."""
    score: float
    """The sum over the boards."""
    legal: int
    """Legal moves."""
    successes: int
    """Boards that were won."""
    kinds: int
    """The largest kind ever on a board: in 2048, the exponent of the largest tile."""

    @property
    def moves(self) -> int:
        """Moves made in all."""
        return sum(len(actions) for actions in self.actions)


def seed_of(*words: object) -> int:
    """A seed that depends on what it is for, and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "little") >> 1


def play(task: Task, player: str, seed: int, moves: int = 0) -> Run:
    """Plays `moves` moves, on fresh boards as boards end, or one episode where `moves` is 0.

    All players see the same first board for a seed.
    """
    game = task.new_game()
    rng = np.random.default_rng(seed_of("player", player, seed))
    choose = PLAYERS[player]
    seeds, actions = [seed], [[]]  # type: tuple[list[int], list[list[int]]]
    game.reset(seed)
    score, legal, successes, kinds, made = 0.0, 0, 0, int(game.perception().max()), 0
    while made < moves if moves else not game.over:
        if game.over:
            seeds.append(seed_of("board", seed, len(seeds)))
            actions.append([])
            game.reset(seeds[-1])
        action = choose(game, rng)
        outcome = game.step(action)
        actions[-1].append(action)
        made += 1
        score += outcome.gain
        legal += outcome.legal
        successes += outcome.success
        if outcome.legal:
            kinds = max(kinds, int(game.perception().max()))
    return Run(seed, tuple(seeds), tuple(map(tuple, actions)), score, legal, successes, kinds)


def replay(task: Task, run: Run) -> Iterator[tuple[Game, int | None]]:
    """The run again, board by board: the game before each move with the move, and at each board's end with None.

    The game is the same object throughout; look at it before going on.
    """
    game = task.new_game()
    for seed, actions in zip(run.seeds, run.actions, strict=True):
        game.reset(seed)
        for action in actions:
            yield game, action
            game.step(action)
        yield game, None
