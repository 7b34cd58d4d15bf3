"""How one may think about a board who is good at nothing: what a base model, before any game was taught, brings along.

    none      no thought
    places    the tiles of a row or a column, each where it stands (localisation)
    kinds     where the tiles of one kind stand (enumeration)
    partial   the game's working, broken off before it comes to a move
    working   the game's working, whole

All that is told of the board is true. The move seldom follows from it: reinforcement learning has a style to find that
helps, and has to learn to heed it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from envs import Codec, Task
from envs.answers import CellPairs
from envs.core import Game
from envs.games.g2048 import DOWN, LEFT, RIGHT, UP, Game2048
from envs.teacher import UNSURE, Lesson, Teacher, Thought, merged, place, think

FOLLOW = 0.25
"""How often a move follows from what was thought, where that leads to one."""


class Generalist(Teacher):
    """Describes the board, thinks in a style drawn by its share, and moves by that at a rate of `follow`, else at
    random among the legal moves."""

    def __init__(self, task: Task, shares: Mapping[str, float], follow: float = FOLLOW) -> None:
        if not 0 <= follow <= 1:
            raise ValueError(f"follow = {follow}: the rate at which a move follows from the thinking is 0 to 1")
        check_shares(shares)
        self.codec, self.follow, self._styles = Codec(task), follow, list(shares)
        self._shares = np.array([*shares.values()]) / sum(shares.values())

    def answer(self, game: Game, rng: np.random.Generator) -> Lesson:
        """`erred`: the move does not follow from the thinking, though one would."""
        style = STYLES[self._styles[int(rng.choice(len(self._styles), p=self._shares))]]
        if not game.perception().any():
            style = none  # there is nothing to tell of
        thought = style(game, self.codec.names, rng)
        follows = rng.random() < self.follow
        moves = thought.moves if follows and thought.moves else game.legal_actions()
        action = int(moves[int(rng.integers(len(moves)))])
        text = self.codec.write(game.perception(), thought.working, action)
        return Lesson(text, action, bool(thought.moves) and action not in thought.moves)


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises `ValueError` where they are not shares of styles."""
    if unknown := next((name for name in shares if name not in STYLES), ""):
        raise ValueError(f"styles: no style {unknown!r}; there are {', '.join(STYLES)}")
    if not 0 < sum(shares.values()) < float("inf") or any(share < 0 for share in shares.values()):
        raise ValueError(f"styles = {dict(shares)}: shares must not be below 0, and one must be above")


def none(game: Game, names: Sequence[str], rng: np.random.Generator) -> Thought:
    """No thought, so any legal move."""
    return Thought(UNSURE, ())


def places(game: Game, names: Sequence[str], rng: np.random.Generator) -> Thought:
    """The tiles of a row or a column, with where each of them is; moves of these."""
    board = game.perception()
    flat, cells = board.ravel(), np.arange(board.size).reshape(board.shape)
    lines = [(line, view is cells) for view in (cells, cells.T) for line in view if flat[line].any()]
    line, is_row = lines[int(rng.integers(len(lines)))]
    told = [int(cell) for cell in line if flat[cell]]
    words = "\n".join(f"{place(cell, game.cols)} {names[flat[cell]]}" for cell in told)
    if isinstance(game, Game2048):
        along = (LEFT, RIGHT) if is_row else (UP, DOWN)
        merges = merged(flat[line].tobytes(), game.num_kinds)
        return Thought(words, [action for action in along if merges and action in game.legal_actions()])
    return Thought(words, _among(game, told))


def kinds(game: Game, names: Sequence[str], rng: np.random.Generator) -> Thought:
    """Where the tiles of a kind are; moves of these."""
    flat = game.perception().ravel()
    there, counts = np.unique(flat[flat > 0], return_counts=True)
    several = there[counts > 1]
    of = several if len(several) else there
    kind = int(of[int(rng.integers(len(of)))])
    told = np.flatnonzero(flat == kind).tolist()
    return Thought(" ".join([names[kind], *(place(cell, game.cols) for cell in told)]), _among(game, told))


def partial(game: Game, names: Sequence[str], rng: np.random.Generator) -> Thought:
    """The working without its conclusion, or where it has none, the first line of it."""
    thought = think(game, names, rng, False)
    told, conclusion, _ = thought.working.rpartition(" same ")
    return Thought(told if conclusion else thought.working.partition("\n")[0], thought.moves)


def working(game: Game, names: Sequence[str], rng: np.random.Generator) -> Thought:
    """The game's working."""
    return think(game, names, rng, False)


def _among(game: Game, cells: Sequence[int]) -> list[int]:
    """The legal moves of `cells` alone, or else those that have one of them; none where moves are not of cells."""
    if not isinstance(game.actions, CellPairs):
        return []
    pairs = {action: set(game.actions.cells(action)) for action in game.legal_actions()}
    inside = [action for action, pair in pairs.items() if pair <= set(cells)]
    return inside or [action for action, pair in pairs.items() if pair & set(cells)]


STYLES: dict[str, Callable[[Game, Sequence[str], np.random.Generator], Thought]] = {
    "none": none,
    "places": places,
    "kinds": kinds,
    "partial": partial,
    "working": working,
}
"""Each by its name."""
SHARES = {"none": 0.2, "places": 0.15, "kinds": 0.15, "partial": 0.2, "working": 0.3}
"""Of a base model's thoughts, unless told otherwise."""
