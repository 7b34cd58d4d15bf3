"""Shisen-Sho: take away pairs of equal tiles that a path with at most two turns joins.

The path runs through empty cells or around the outside of the board.

How a path is found, for all pairs at once: number the rows with the two outside ones. From tile a, the rows that can be
reached up and down its own column are a bit mask; so are those of tile b, and so are the rows in which nothing lies
between the two columns. The pair is joined when the three have a bit in common (a path vertical-horizontal-vertical),
or the same holds with rows and columns exchanged. Straight lines and single turns are special cases of these.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.answers import CellPairs
from envs.core import Board, Game, GameOptions, Looks
from envs.options import option
from envs.task import GameSpec, register_game

DEALS = 20  # random deals tried for a board that can be cleared, before one is built backwards
BRANCHES = 300  # positions the solver opens before it gives a deal up
ORACLE_BRANCHES = 3000  # and on behalf of the oracle, whose board may be the result of somebody else's moves


@dataclass(frozen=True)
class OptionsShisen(GameOptions):
    """Reasoning options of Shisen-Sho."""

    rows: int = option(6, "rows of the board", low=2, high=16)
    cols: int = option(6, "columns of the board", low=2, high=16)
    copies: int = option(4, "tiles of each kind on a board, an even number that divides rows * cols", low=2, high=64)
    kinds: int = option(
        0,
        "kinds that boards are dealt from; each has rows * cols / copies of them; 0: no more than that",
        low=0,
        high=128,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        cells = self.rows * self.cols
        if self.copies % 2 or cells % self.copies:
            raise ValueError(
                f"copies = {self.copies}: must be even and divide the {self.rows} x {self.cols} = {cells} cells"
            )
        if self.kinds == 0:
            object.__setattr__(self, "kinds", cells // self.copies)
        if self.kinds < cells // self.copies:
            raise ValueError(
                f"kinds = {self.kinds}: a {self.rows}x{self.cols} board with {self.copies} copies of each kind needs "
                f"at least {cells // self.copies}"
            )


class ShisenSho(Game):
    """One board of Shisen-Sho. Every board that is dealt can be cleared. Gain: 1 for a pair taken away.

    The episode ends, without success, when no pair is left that can be joined: bad play can lead there.
    """

    options_type = OptionsShisen
    options: OptionsShisen
    actions: CellPairs

    def __init__(self, options: GameOptions | None = None) -> None:
        super().__init__(options)
        self.rows, self.cols = self.options.rows, self.options.cols
        self.num_kinds = self.options.kinds
        self.num_alike = self.options.copies
        self.actions = CellPairs(self.rows, self.cols)
        self._board = np.zeros((self.rows, self.cols), np.uint8)

    @classmethod
    def fit(cls, options: Mapping[str, Any], kinds: int) -> dict[str, Any]:
        """A tile set with too few kinds for four copies of each gets more copies."""
        rows, cols = options.get("rows", 6), options.get("cols", 6)
        if "copies" in options or type(rows) is not int or type(cols) is not int:
            return dict(options)
        cells = rows * cols
        fitting = [copies for copies in range(4, 65, 2) if cells % copies == 0 and cells // copies <= kinds]
        return {**options, "copies": fitting[0]} if fitting else dict(options)

    def rules(self, names: Sequence[str]) -> str:
        return (
            f"This is Shisen-Sho on a {self.rows}x{self.cols} board. A move takes away two tiles of the same kind that "
            "a path of at most three straight lines (two turns) can join. The path runs along rows and columns over "
            "empty cells only, and may leave the board to run around its outside. Clear the whole board to win; when "
            "no pair can be joined any more, the game is lost."
        )

    def oracle(self) -> int:
        return solve(self._board, ORACLE_BRANCHES)[0][0]

    def _deal(self) -> None:
        used = self.rows * self.cols // self.options.copies
        for _ in range(DEALS):
            kinds = self.rng.permutation(self.num_kinds)[:used] + 1
            tiles = self.rng.permutation(np.repeat(kinds, self.options.copies))
            self._board = tiles.astype(np.uint8).reshape(self.rows, self.cols)
            if solve(self._board, BRANCHES)[1]:
                break
        else:
            self._build_backwards()
        self.looks = self._distinct_looks()

    def _build_backwards(self) -> None:
        """A board made of joined pairs of cells, taken off a full one in turn. Some pair of cells can always be joined.

        (The top tiles of two columns meet above the board; within one column, neighbours meet.) Playing the pairs back
        clears the board; where the kinds can also be paired otherwise, the solver has to find a way of its own.
        """
        used = self.rows * self.cols // self.options.copies
        while True:
            full = np.ones((self.rows, self.cols), np.uint8)
            order: list[tuple[int, int]] = []
            while full.any():
                pairs = joined_pairs(full)
                order.append(self.actions.cells(int(pairs[int(self.rng.random() * len(pairs))])))
                full.flat[list(order[-1])] = 0
            kinds = np.repeat(self.rng.permutation(self.num_kinds)[:used] + 1, self.options.copies // 2)
            for cells, kind in zip(order, self.rng.permutation(kinds).tolist(), strict=True):
                self._board.flat[list(cells)] = kind
            if solve(self._board, ORACLE_BRANCHES)[1]:
                return

    def _distinct_looks(self) -> Looks:
        """Looks that count up within each kind, so that tiles to be matched are different pictures of one kind."""
        room = 65536 - self.options.copies  # so that no count wraps around
        first = (self.rng.random(self.num_kinds + 1) * room).astype(np.uint16)
        looks = first[self._board]
        for kind in np.unique(self._board).tolist():
            cells = self._board == kind
            looks[cells] += np.arange(cells.sum(), dtype=np.uint16)
        return looks

    def _find_legal(self) -> tuple[int, ...]:
        return tuple(joined_pairs(self._board).tolist())

    def _apply(self, action: int) -> tuple[float, int]:
        self._board.flat[list(self.actions.cells(action))] = 0
        return 1.0, 2

    def won(self) -> bool:
        return not self._board.any()

    def _fault_of(self, board: Board) -> str:
        return "a kind has an odd number of tiles" if (np.bincount(board.ravel())[1:] % 2).any() else ""


@dataclass(frozen=True)
class _Tables:
    """What depends on the size of the board alone. Lines are numbered from 0 inside, bits from 1 (0 is outside)."""

    pairs: tuple[NDArray[np.intp], NDArray[np.intp]]  # cells of each action, [actions] twice
    places: tuple[NDArray[np.intp], NDArray[np.intp]]  # row and column of each cell, [cells] twice
    reach_up: NDArray[np.uint32]  # [2**rows, rows] occupied cells of a column, row -> rows reached
    reach_across: NDArray[np.uint32]  # [2**cols, cols]
    between_rows: NDArray[np.int64]  # [rows, rows] bits of the rows strictly between two
    between_cols: NDArray[np.int64]  # [cols, cols]


@functools.cache
def _tables(rows: int, cols: int) -> _Tables:
    actions = CellPairs(rows, cols)
    cell_rows, cell_cols = np.divmod(np.arange(rows * cols), cols)
    return _Tables(
        (actions.first, actions.second),
        (cell_rows, cell_cols),
        _reach(rows),
        _reach(cols),
        _between(rows),
        _between(cols),
    )


@functools.cache
def _reach(size: int) -> NDArray[np.uint32]:
    """[2**size, size] for each set of occupied places on a line and each place: the places reached from it, itself
    included, as bits 0..size+1 with the two outside ones."""
    occupied = np.arange(2**size)
    table = np.zeros((2**size, size), np.uint32)
    for place in range(size):
        table[:, place] = 1 << (place + 1)
        for step in (-1, 1):
            free = np.ones(2**size, np.bool_)
            at = place + step
            while 0 <= at < size:
                free &= (occupied >> at & 1) == 0
                table[:, place] |= (free << (at + 1)).astype(np.uint32)
                at += step
            table[:, place] |= (free << (at + 1)).astype(np.uint32)
    return table


@functools.cache
def _between(size: int) -> NDArray[np.int64]:
    table = np.zeros((size, size), np.int64)
    for a in range(size):
        for b in range(a + 1, size):
            table[a, b] = table[b, a] = sum(1 << place for place in range(a + 1, b))
    return table


def joined_pairs(board: Board) -> NDArray[np.intp]:
    """The actions, ascending, of all pairs of equal tiles on `board` [rows, cols] that a path joins."""
    rows, cols = board.shape
    tables = _tables(rows, cols)
    flat = board.ravel()
    first, second = tables.pairs
    kind = flat[first]
    candidates = np.flatnonzero((kind == flat[second]) & (kind > 0))
    a, b = first[candidates], second[candidates]

    occupied = board > 0
    row_bits, col_bits = 1 << np.arange(rows), 1 << np.arange(cols)
    column_masks, row_masks = row_bits @ occupied, occupied @ col_bits
    cell_rows, cell_cols = tables.places
    reach_up = tables.reach_up[column_masks[cell_cols], cell_rows]
    reach_across = tables.reach_across[row_masks[cell_rows], cell_cols]
    # [cols, cols]: the rows in which nothing lies between two columns, the two outside ones always; and the other way.
    free_rows = ((row_masks & tables.between_cols[:, :, None]) == 0) @ (row_bits << 1) | 1 | 1 << (rows + 1)
    free_cols = ((column_masks & tables.between_rows[:, :, None]) == 0) @ (col_bits << 1) | 1 | 1 << (cols + 1)

    upright = reach_up[a] & reach_up[b] & free_rows[cell_cols[a], cell_cols[b]]
    across = reach_across[a] & reach_across[b] & free_cols[cell_rows[a], cell_rows[b]]
    return candidates[(upright | across) != 0]


def solve(board: Board, branches: int) -> tuple[list[int], bool]:
    """Actions that clear the board, and True; or the longest way found within `branches` opened positions, and False.

    Taking away a pair never closes a path. So a kind whose tiles can all be paired off right now is taken away without
    a choice, and only kinds with some tiles still locked are branched on. Deterministic.
    """
    actions = CellPairs(*board.shape)
    best: list[int] = []
    seen: set[bytes] = set()
    stack: list[tuple[Board, list[int]]] = [(board, [])]
    while stack and branches > 0:
        now, path = stack.pop()
        branches -= 1
        now, path = now.copy(), list(path)
        while True:
            legal = joined_pairs(now).tolist()
            safe = _safe_pairs(now, [actions.cells(action) for action in legal])
            if not safe:
                break
            for a, b in safe:
                path.append(actions.action(a, b))
                now.flat[[a, b]] = 0
        if len(path) > len(best):
            best = path
        if not now.any():
            return path, True
        for action in reversed(legal):
            child = now.copy()
            child.flat[list(actions.cells(action))] = 0
            if child.tobytes() not in seen:
                seen.add(child.tobytes())
                stack.append((child, [*path, action]))
    return best, False


def _safe_pairs(board: Board, legal: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of those kinds whose tiles can all be paired off by `legal` pairs alone."""
    flat = board.ravel().tolist()
    by_kind: dict[int, list[tuple[int, int]]] = {}
    for pair in legal:
        by_kind.setdefault(flat[pair[0]], []).append(pair)
    return [pair for kind, pairs in by_kind.items() for pair in _perfect_matching(pairs, flat.count(kind))]


def _perfect_matching(pairs: list[tuple[int, int]], tiles: int) -> list[tuple[int, int]]:
    """Disjoint pairs that cover all `tiles` tiles, or none. Exhaustive for what a kind usually has; gives up after 200
    partial matchings."""

    def extend(chosen: list[tuple[int, int]], rest: list[tuple[int, int]]):  # type: ignore[no-untyped-def]
        yield chosen
        for at, (a, b) in enumerate(rest):
            yield from extend([*chosen, (a, b)], [p for p in rest[at + 1 :] if a not in p and b not in p])

    return next((found for found in islice(extend([], pairs), 200) if 2 * len(found) == tiles), [])


_LEVELS = tuple({"rows": side, "cols": side} for side in (4, 6, 8, 12))
_PAPER = {"rows": 6, "cols": 6, "copies": 4, "horizon": 100}


def _register(
    name: str, summary: str, tiles: str, gym_name: str, **presets: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    look = {"tiles": tiles}
    register_game(
        GameSpec(name, ShisenSho, summary, perception=look, presets=presets, levels=_LEVELS, gym_name=gym_name)
    )


_SIX = ({**_PAPER, "kinds": 36}, {"tiles": "shapes", "colors": 6, "shapes": 6})
_CIFAR, _PROCEDURAL = (({**_PAPER, "kinds": 10}, {"tiles": tiles}) for tiles in ("cifar10", "photos"))
_register("shisen", "take away pairs of equal shapes", "shapes", "ShisenSho", paper=_SIX)
_register(
    "shisen-photos", "take away pairs of photos of one class", "photos", "ShisenShoPhotos",
    paper=_CIFAR, procedural=_PROCEDURAL,
)  # fmt: skip
