"""Answers to learn from: the board described as it truly is, a working in small steps, a move.

A model of half a million parameters learns a working only if each of its tokens follows from a few others. What these
are is the game's matter: the merges of each line, what a side of the board shows. The move follows from them, save
where the teacher errs, which it does at a set rate: there reinforcement learning has something to find.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from envs import Codec, Task
from envs.core import Board, Game
from envs.games.g2048 import DOWN, LEFT, RIGHT, UP, Game2048
from envs.games.shisen import ShisenSho
from envs.games.swap import Swap
from envs.rewards import reward_table

ERR_RATE = 0.5
"""How often a teacher errs unless told otherwise: what is learned from it is well short of what play can be."""
SMALL = 16
"""Cells of the largest board of Shisen-Sho whose working tells where both of two like tiles are, and then that they are
the same. On larger ones a model learns that too late."""
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


class Teacher(ABC):
    """Whoever answers; a player, too, to be evaluated like any other."""

    @abstractmethod
    def answer(self, game: Game, rng: np.random.Generator) -> Lesson:
        """An answer to the state that a game of the teacher's task is in. Draws, if it does, from `rng`."""

    def __call__(self, game: Game, rng: np.random.Generator) -> int:
        return self.answer(game, rng).action


class Oracle(Teacher):
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


def explain(game: Game, names: Sequence[str], action: int, rng: np.random.Generator) -> Thought:
    """The working that leads to a move that somebody made, be it a right one or a wrong one, or else `UNSURE`."""
    for err in (False, True):
        thought = think(game, names, rng, err)
        if action in thought.moves:
            return Thought(thought.working, [action])
    return Thought(UNSURE, [action])


def think(game: Game, names: Sequence[str], rng: np.random.Generator, err: bool) -> Thought:
    """The working of a game whose kinds are called `names`, to a right move or to a wrong one."""
    for game_type, working in WORKINGS.items():
        if isinstance(game, game_type):
            return working(game, names, rng, err)
    table, best = reward_table(game), game.oracle()
    return Thought(BEST, [action for action in table.actions if action not in table.best] if err else [best])


def think_2048(game: Game, names: Sequence[str], rng: np.random.Generator, err: bool) -> Thought:
    """The largest tile that a merge makes in each row and in each column; then a move along the best of these lines.

    Where nothing merges, the first tile of each line that a move would slide: left, or else up, and so on. A wrong move
    goes along the axis where nothing merges, if the other has a merge.
    """
    board, cap, legal = game.perception(), game.num_kinds, game.legal_actions()
    rows, columns = ([merged(line.tobytes(), cap) for line in lines] for lines in (board, board.T.copy()))
    lines = [_line("rows", rows, names), _line("columns", columns, names)]
    made = {LEFT: max(rows), UP: max(columns), RIGHT: max(rows), DOWN: max(columns)}
    best = max(made.values())
    # Left before right and up before down: towards one corner, as people play it.
    right = [action for action in made if action in legal and made[action] == best][:1]
    if not best:
        views = {LEFT: board, UP: board.T, RIGHT: board[:, ::-1], DOWN: board[::-1].T}
        for action, view in views.items():
            lines.append(_line(game.actions.write(action), [sliding(line) for line in view.tolist()], names))
            if action in right:
                break
    wrong = [action for action in made if action in legal and not made[action] and best]
    return Thought("\n".join(lines), wrong if err else right)


def _line(label: str, kinds: Sequence[int], names: Sequence[str]) -> str:
    return f"{label} {' | '.join(names[kind] for kind in kinds)}"


def sliding(line: Sequence[int]) -> int:
    """The first kind in a line that has an empty cell before it, 0 if there is none."""
    return next((kind for at, kind in enumerate(line) if kind and 0 in line[:at]), 0)


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
    """The tiles seen from the left, or else also from the top, the right, the bottom, up to one that is like another of
    its side: these two.

    They can be joined around that side. Where no side helps, it is the first two of the tiles told that can be joined
    all the same, or else any legal pair. A wrong move takes, with the first of the two, a tile that it can't be joined
    to.
    """
    assert isinstance(game, ShisenSho)
    board, legal, action_of = game.perception(), game.legal_actions(), game.actions.action
    flat, cells = board.ravel(), np.arange(board.size).reshape(board.shape)
    views = {"left": cells, "top": cells.T, "right": cells[:, ::-1], "bottom": cells[::-1].T}
    words: list[str] = []
    told: list[int] = []
    pair: tuple[int, int] | None = None
    for side, view in views.items():
        seen = [int(line[flat[line] > 0][0]) for line in view if flat[line].any()]
        pair = first_pair(seen, flat)
        words.append(side)
        shown = seen[: seen.index(pair[1]) + 1] if pair else seen
        told += shown
        for cell in shown:
            words += [names[flat[cell]], place(cell, game.cols)]
        if pair:
            break
    at_the_tile = pair and board.size > SMALL
    if not pair:
        ways = ((other, cell) for at, cell in enumerate(told) for other in told[:at] if other != cell)
        joined = (way for way in ways if action_of(*way) in legal)
        pair = next(joined, None) or game.actions.cells(legal[int(rng.integers(len(legal)))])
    a, b = pair
    # Of "cat (4, 1)" it becomes "cat same (4, 1)" and where the other is; else both places follow.
    places = [place(cell, game.cols) for cell in (a, b)]
    words[len(words) - bool(at_the_tile) :] = ["same", *(places[::-1] if at_the_tile else places)]
    working = " ".join(words)
    if not err:
        return Thought(working, [action_of(a, b)])
    others = (action_of(a, tile) for tile in np.flatnonzero(flat).tolist() if tile != a)
    return Thought(working, [action for action in others if action not in legal])


def first_pair(cells: Sequence[int], flat: Board) -> tuple[int, int] | None:
    """The first of `cells` whose tile is like that of an earlier one: the earlier one, and it."""
    earlier: dict[int, int] = {}
    for cell in cells:
        like = earlier.setdefault(int(flat[cell]), cell)
        if like != cell:
            return like, cell
    return None


def place(cell: int, cols: int) -> str:
    """The row and the column of a cell."""
    return f"({cell // cols}, {cell % cols})"


def think_swap(game: Game, names: Sequence[str], rng: np.random.Generator, err: bool) -> Thought:
    """Three cells in line after three, rows first, each three called by its middle one, up to one that can be matched:
    the odd one of them and the like tile beside it.

    Where two of three are alike it tells the odd one, the kind that should be there, and what stands beside it, not in
    line: above, left, right, below. A wrong move brings another neighbour there.
    """
    assert isinstance(game, Swap)
    flat, legal, action_of = game.perception().ravel(), game.legal_actions(), game.actions.action
    words: list[str] = []
    for line in _threes(game.rows, game.cols):
        words.append(place(line[1], game.cols))
        odd = _odd_one(flat[list(line)].tolist())
        if odd is None:
            words.append("-")
            continue
        spot, kind = line[odd], flat[line[odd - 1]]
        words += [place(spot, game.cols), names[kind]]
        near = _beside(spot, game.rows, game.cols)
        for tile in near:
            if tile in line:
                continue
            words.append(names[flat[tile]])
            if flat[tile] == kind:
                a, b = sorted((spot, tile))
                working = " ".join([*words, "same", place(a, game.cols), place(b, game.cols)])
                moves = [action_of(spot, cell) for cell in near] if err else [action_of(a, b)]
                return Thought(working, [move for move in moves if (move in legal) is not err])
    raise AssertionError("a board of Swap always has a legal swap")


@functools.cache
def _threes(rows: int, cols: int) -> list[tuple[int, int, int]]:
    """All three cells in line, those in rows first."""
    cells = np.arange(rows * cols).reshape(rows, cols)
    lines = (line for view in (cells, cells.T) for line in view.tolist())
    return [(line[at], line[at + 1], line[at + 2]) for line in lines for at in range(len(line) - 2)]


@functools.cache
def _beside(cell: int, rows: int, cols: int) -> list[int]:
    """The neighbours of a cell: above, left, right, below."""
    row, col = divmod(cell, cols)
    near = [(row - 1, col), (row, col - 1), (row, col + 1), (row + 1, col)]
    return [r * cols + c for r, c in near if 0 <= r < rows and 0 <= c < cols]


def _odd_one(kinds: Sequence[int]) -> int | None:
    """Which of three kinds differs from the other two, if just one does."""
    odd = [at for at in range(3) if kinds.count(kinds[at]) == 1]
    return odd[0] if len(odd) == 1 else None


WORKINGS: dict[type[Game], Callable[[Game, Sequence[str], np.random.Generator, bool], Thought]] = {
    Game2048: think_2048,
    ShisenSho: think_shisen,
    Swap: think_swap,
}
"""How each game is thought about."""
PHRASES = (UNSURE, BEST, "- ", *(f"{word} " for word in "rows columns left up right down top bottom same".split()))
"""Words of the workings that are neither kinds nor cells."""
