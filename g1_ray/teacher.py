"""Answers to learn from: the board described as it truly is, a working in small steps, a move.

A model of half a million parameters learns a working only if each of its tokens follows from a few others. What they are
is the game's matter: the merges of each line, the cells of one kind. The move follows from them, save where the teacher
errs, which it does at a set rate: there reinforcement learning has something to find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, Protocol

import numpy as np

from envs import Codec, Task
from envs.core import Game
from envs.games.g2048 import DOWN, LEFT, RIGHT, UP, Game2048
from envs.games.shisen import ShisenSho
from envs.rewards import reward_table

ERR_RATE = 0.28
"""How often a teacher errs unless told otherwise: what is learned from it is well short of what play can be."""
UNSURE = "I take a legal move."
"""What somebody thinks who has no idea."""
BEST = "I take the best move."
"""What an oracle thinks of a game that has no working."""


@dataclass(frozen=True)
class Lesson:
    """A teacher's answer to one state."""

    text: str
    """The whole answer, well formed."""
    action: int
    erred: bool
    """Whether the move is wrong on purpose."""


class Thought(NamedTuple):
    """A working, and the moves that it leads to."""

    working: str
    moves: Sequence[int]
    """None where there is no wrong move to be made."""


class Teacher(Protocol):
    """Whoever answers."""

    def answer(self, game: Game, rng: np.random.Generator) -> Lesson:
        """An answer to the state that a game of the teacher's task is in. Draws, if it does, from `rng`."""


class Oracle:
    """Writes out a working, moves rightly, and errs at a rate of `err`, wherever there is a wrong move to make."""

    def __init__(self, task: Task, err: float = ERR_RATE) -> None:
        if not 0 <= err <= 1:
            raise ValueError(f"err = {err}: the rate at which a teacher errs is 0 to 1")
        self.codec = Codec(task)
        self.err = err

    def answer(self, game: Game, rng: np.random.Generator) -> Lesson:
        """The move is drawn from those that the working leads to."""
        erred = bool(rng.random() < self.err)
        thought = think(game, self.codec.names, rng, erred)
        if not thought.moves:
            erred, thought = False, think(game, self.codec.names, rng, False)
        action = int(thought.moves[int(rng.integers(len(thought.moves)))])
        return Lesson(self.codec.write(game.perception(), thought.working, action), action, erred)

    def __call__(self, game: Game, rng: np.random.Generator) -> int:
        """The teacher as a player, to be evaluated like any other."""
        return self.answer(game, rng).action


class Novice:
    """Sees the board, keeps the form, and plays any legal move."""

    def __init__(self, task: Task) -> None:
        self.codec = Codec(task)

    def answer(self, game: Game, rng: np.random.Generator) -> Lesson:
        legal = game.legal_actions()
        action = legal[int(rng.integers(len(legal)))]
        return Lesson(self.codec.write(game.perception(), UNSURE, action), action, False)

    def __call__(self, game: Game, rng: np.random.Generator) -> int:
        """The novice as a player."""
        return self.answer(game, rng).action


def think(game: Game, names: Sequence[str], rng: np.random.Generator, err: bool) -> Thought:
    """The working of a game whose kinds are called `names`, to a right move or to a wrong one."""
    for game_type, working in WORKINGS.items():
        if isinstance(game, game_type):
            return working(game, names, rng, err)
    table, best = reward_table(game), game.oracle()
    return Thought(BEST, [action for action in table.actions if action not in table.best] if err else [best])


def think_2048(game: Game, names: Sequence[str], rng: np.random.Generator, err: bool) -> Thought:
    """The largest tile that a merge makes in each row and in each column; then a move along the best of these lines.

    A wrong move goes along the axis where nothing merges.
    """
    board, cap = game.perception(), game.num_kinds
    rows, columns = ([merged(line.tobytes(), cap) for line in lines] for lines in (board, board.T.copy()))
    across, down = (" | ".join(names[kind] for kind in lines) for lines in (rows, columns))
    working = f"rows {across}\ncolumns {down}"
    # Left before right and up before down: towards one corner, as people play it.
    made = {LEFT: max(rows), UP: max(columns), RIGHT: max(rows), DOWN: max(columns)}
    legal = [action for action in made if action in game.legal_actions()]
    best = max(made.values())
    if err:
        return Thought(working, [action for action in legal if not made[action] and best])
    return Thought(working, [action for action in legal if made[action] == best][:1])


def merged(line: bytes, cap: int) -> int:
    """The largest kind that the merges of a line make, 0 where none do."""
    tiles = [kind for kind in line if kind]
    made, at = 0, 0
    while at + 1 < len(tiles):
        meet = tiles[at] == tiles[at + 1] < cap
        made = max(made, (tiles[at] + 1) * meet)
        at += 1 + meet
    return made


def think_shisen(game: Game, names: Sequence[str], rng: np.random.Generator, err: bool) -> Thought:
    """The board as it is seen from the top, the bottom, the left and the right, until two tiles seen are equal.

    They can be joined around that side. Where no side helps, it is any legal pair. A wrong move is a pair of equal tiles
    that no path joins, or where there is none, a pair of unequal ones.
    """
    assert isinstance(game, ShisenSho)
    board, legal = game.perception(), game.legal_actions()
    flat, cells = board.ravel(), np.arange(board.size).reshape(board.shape)
    lines, right = [], []
    for side, view in (("top", cells.T), ("bottom", cells[::-1].T), ("left", cells), ("right", cells[:, ::-1])):
        seen = [next((cell for cell in line if flat[cell]), None) for line in view.tolist()]
        lines.append(f"{side} {' | '.join(names[0 if cell is None else flat[cell]] for cell in seen)}")
        pairs = combinations([cell for cell in seen if cell is not None], 2)
        right = [game.actions.action(a, b) for a, b in pairs if a != b and flat[a] == flat[b]][:1]
        if right:
            break
    working = "\n".join(lines)
    if not err:
        return Thought(working, right or legal)
    tiles = combinations(np.flatnonzero(flat).tolist(), 2)
    wrong = [(a, b) for a, b in tiles if game.actions.action(a, b) not in legal]
    equal = [(a, b) for a, b in wrong if flat[a] == flat[b]]
    return Thought(working, [game.actions.action(a, b) for a, b in equal or wrong])


WORKINGS: dict[type[Game], Callable[[Game, Sequence[str], np.random.Generator, bool], Thought]] = {
    Game2048: think_2048,
    ShisenSho: think_shisen,
}
"""How each game is thought about."""
PHRASES = (UNSURE, BEST, "rows ", "columns ", "top ", "bottom ", "left ", "right ")
"""Words of the workings that are neither kinds nor cells."""
