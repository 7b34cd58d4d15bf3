"""Swap (match-3): exchange two neighbours so that three or more equal tiles stand in a row or a column.

Matched tiles vanish, the ones above fall, new ones fill the top, until no match stands. Between moves no match ever
stands and at least one swap is legal.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.answers import CellPairs
from envs.core import Board, Game, GameOptions
from envs.options import option
from envs.task import GameSpec, register_game

CASCADE = 20  # rounds of falling tiles after which new tiles are chosen so that the cascade ends
TRIES = 1000  # boards drawn before the options are given up as impossible


@dataclass(frozen=True)
class OptionsSwap(GameOptions):
    """Reasoning options of Swap."""

    rows: int = option(8, "rows of the board", low=4, high=16)
    cols: int = option(8, "columns of the board", low=4, high=16)
    kinds: int = option(12, "kinds of tiles on the board; more kinds, fewer legal swaps", low=4, high=32)
    goal: int = option(0, "matches that win and end the episode; 0: play on", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kinds > self.rows * self.cols // 4:
            raise ValueError(
                f"kinds = {self.kinds}: a {self.rows}x{self.cols} board has legal swaps often enough with at most "
                f"{self.rows * self.cols // 4}"
            )


class Swap(Game):
    """One board of Swap. Gain: 1 for a swap that makes a match, whatever its cascade clears (the paper's count)."""

    options_type = OptionsSwap
    options: OptionsSwap
    actions: CellPairs

    def __init__(self, options: GameOptions | None = None) -> None:
        super().__init__(options)
        self.rows, self.cols = self.options.rows, self.options.cols
        self.num_kinds = self.options.kinds
        self.endless = not self.options.goal
        self.actions = CellPairs(self.rows, self.cols)
        self._board = np.zeros((self.rows, self.cols), np.uint8)

    @classmethod
    def fit(cls, options: Mapping[str, Any], kinds: int) -> dict[str, Any]:
        """Small boards and small tile sets get fewer kinds than twelve."""
        rows, cols = options.get("rows", 8), options.get("cols", 8)
        if "kinds" in options or type(rows) is not int or type(cols) is not int:
            return dict(options)
        return {**options, "kinds": max(4, min(12, rows * cols // 4, kinds))}

    def rules(self, names: Sequence[str]) -> str:
        goal = f"Make {self.options.goal} matches to win." if self.options.goal else "Make a match with every move."
        return (
            f"This is a match-3 game on a {self.rows}x{self.cols} board. A move swaps two tiles that are next to each "
            "other in a row or a column. It is legal only if afterwards three or more equal tiles stand side by side "
            "in a row or in a column. They vanish, the tiles above them fall, and new tiles come in at the top. "
            f"{goal}"
        )

    def oracle(self) -> int:
        """The swap that clears most tiles, falls included, before any unknown tile comes in; then the one that leaves
        most legal swaps among the tiles known."""
        return max(self.legal_actions(), key=self._promise)

    def _promise(self, action: int) -> tuple[int, int]:
        board = swapped(self._board, *self.actions.cells(action))
        cleared = 0
        while (matches := standing_matches(board)).any():
            cleared += int(matches.sum())
            board[matches] = 0
            drop(board)
        return cleared, len(legal_swaps(board))

    def _deal(self) -> None:
        for _ in range(TRIES):
            self._board[...] = self._new_tiles(self._board.size).reshape(self._board.shape)
            while (matches := standing_matches(self._board)).any():
                self._board[matches] = self._new_tiles(int(matches.sum()))
            if len(legal_swaps(self._board)):
                return
        raise RuntimeError(f"no {self.rows}x{self.cols} board with a legal swap in {TRIES} deals of {self.options}")

    def _new_tiles(self, num: int) -> Board:
        return (self.rng.random(num) * self.num_kinds).astype(np.uint8) + np.uint8(1)

    def _find_legal(self) -> tuple[int, ...]:
        return tuple(legal_swaps(self._board).tolist())

    def _apply(self, action: int) -> tuple[float, int]:
        self._board = swapped(self._board, *self.actions.cells(action))
        cleared = rounds = 0
        while (matches := standing_matches(self._board)).any():
            cleared += int(matches.sum())
            rounds += 1
            self._board[matches] = 0
            drop(self._board)
            self._fill(calm=rounds >= CASCADE)
        if not len(legal_swaps(self._board)):
            self._shuffle()
        return 1.0, cleared

    def _fill(self, calm: bool) -> None:
        """New tiles on the empty cells; `calm` ones make no match among themselves or with what lies there."""
        new = self._board == 0
        self._board[new] = self._new_tiles(int(new.sum()))
        while calm and (bad := standing_matches(self._board) & new).any():
            self._board[bad] = self._new_tiles(int(bad.sum()))

    def _shuffle(self) -> None:
        """The same tiles in another order, with a legal swap and no match; a new deal where that can't be found."""
        for _ in range(TRIES):
            board = self.rng.permutation(self._board.ravel()).reshape(self._board.shape)
            if not standing_matches(board).any() and len(legal_swaps(board)):
                self._board = board
                return
        self._deal()

    def won(self) -> bool:
        return 0 < self.options.goal <= self.score

    def _fault_of(self, board: Board) -> str:
        at_rest = board.all() and not standing_matches(board).any()
        return "" if at_rest else "a cell is empty or a match stands, so it is not at rest"


def swapped(board: Board, a: int, b: int) -> Board:
    """A copy of the board with two cells exchanged."""
    board = board.copy()
    board.flat[a], board.flat[b] = board.flat[b], board.flat[a]
    return board


@functools.cache
def _triples(rows: int, cols: int) -> NDArray[np.intp]:
    """[3, triples] the cells of every three in a row or a column."""
    cell = np.arange(rows * cols).reshape(rows, cols)
    across = np.stack([cell[:, :-2], cell[:, 1:-1], cell[:, 2:]]).reshape(3, -1)
    upright = np.stack([cell[:-2], cell[1:-1], cell[2:]]).reshape(3, -1)
    return np.concatenate([across, upright], axis=1)


def standing_matches(board: Board) -> NDArray[np.bool_]:
    """[rows, cols] the tiles that stand in a row or column of three or more equal ones."""
    triples = _triples(*board.shape)
    first, second, third = board.ravel()[triples]
    found = np.zeros(board.shape, np.bool_)
    hit = (first == second) & (second == third) & (first > 0)
    found.ravel()[triples[:, hit]] = True
    return found


def drop(board: Board) -> None:
    """Lets every tile fall as far as it goes, in place."""
    order = np.argsort(board > 0, axis=0, kind="stable")
    board[...] = board[order, np.arange(board.shape[1])]


class _Swaps(NamedTuple):
    """Every neighbour swap twice, once for each tile that moves: cells are places on the board with a frame around."""

    source: NDArray[np.intp]  # [2 * swaps] where the tile comes from
    beside: NDArray[np.intp]  # [6, 2 * swaps] around its new place: two up, two down, and two straight ahead
    action: NDArray[np.intp]  # [swaps]


@functools.cache
def _swaps(rows: int, cols: int) -> _Swaps:
    pairs = CellPairs(rows, cols)
    width = cols + 4  # a frame of two cells
    sources, besides, actions = [], [], []
    for row in range(rows):
        for col in range(cols):
            for step, side in ((1, width), (width, 1)):
                to_row, to_col = (row, col + 1) if step == 1 else (row + 1, col)
                if to_row == rows or to_col == cols:
                    continue
                here = (row + 2) * width + col + 2
                actions.append(pairs.action(row * cols + col, to_row * cols + to_col))
                for source, ahead in ((here, step), (here + step, -step)):
                    new = source + ahead
                    sources.append(source)
                    besides.append(
                        [new - side, new - 2 * side, new + side, new + 2 * side, new + ahead, new + 2 * ahead]
                    )
    by_action = np.argsort(actions)
    order = np.stack([2 * by_action, 2 * by_action + 1], 1).ravel()
    return _Swaps(np.array(sources)[order], np.array(besides)[order].T.copy(), np.array(actions)[by_action])


def legal_swaps(board: Board) -> NDArray[np.intp]:
    """The actions, ascending, of all swaps on `board` [rows, cols] that make a match. No match may stand on it."""
    swaps = _swaps(*board.shape)
    framed = np.zeros((board.shape[0] + 4, board.shape[1] + 4), np.uint8)
    framed[2:-2, 2:-2] = board
    flat = framed.ravel()
    moving = flat[swaps.source]
    up, up2, down, down2, ahead, ahead2 = (flat[swaps.beside] == moving) & (moving > 0)
    makes = (up & up2) | (down & down2) | (up & down) | (ahead & ahead2)
    return swaps.action[makes[::2] | makes[1::2]]


register_game(
    GameSpec(
        name="swap",
        game_type=Swap,
        summary="swap neighbours to line up three",
        perception={"tiles": "shapes"},
        presets={
            "paper": (
                {"rows": 8, "cols": 8, "kinds": 12, "goal": 0, "horizon": 100},
                {"tiles": "shapes", "colors": 4, "shapes": 3},
            )
        },
        levels=(
            {"rows": 6, "cols": 6, "kinds": 6},
            {"rows": 8, "cols": 8, "kinds": 8},
            {"rows": 8, "cols": 8, "kinds": 12},
            {"rows": 12, "cols": 12},
        ),
        gym_name="Swap",
    )
)
