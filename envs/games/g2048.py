"""2048: slide the tiles; two equal ones that meet become one of the next kind. Kind k is the tile 2**k.

Two implementations of the same rules, tested to agree bit for bit: `Game2048` plays one board with memoised lines (8 us
a move), `Batch2048` B boards at once in numpy, laid out [rows, cols, B] so that operations run over contiguous boards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.answers import Choices
from envs.batch import GameBatch, Outcomes
from envs.core import Board, Bytes, Game, GameOptions, pack_rng, unpack_rng
from envs.options import option
from envs.task import GameSpec, register_game

MAX_KIND = 18  # 262144: twice the largest tile that play can make on 4x4; only larger boards can hold two of them
FOUR_SHARE = 0.1  # of the new tiles; the rest are 2
UP, RIGHT, DOWN, LEFT = range(4)


@dataclass(frozen=True)
class Options2048(GameOptions):
    """Reasoning options of 2048."""

    size: int = option(4, "rows and columns of the board", low=2, high=8)
    goal: int = option(0, "tile that wins and ends the episode, a power of two from 8; 0: play on", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        largest = 2 ** min(MAX_KIND, self.size**2 + 1)
        if self.goal and (self.goal & (self.goal - 1) or not 8 <= self.goal <= largest):
            raise ValueError(f"goal = {self.goal}: must be 0 or a power of two from 8 to {largest} on this board")

    @property
    def num_kinds(self) -> int:
        """The largest exponent: of the goal, or of what play can make; from 4x4 on `MAX_KIND`."""
        return self.goal.bit_length() - 1 if self.goal else kinds_of(self.size)


def kinds_of(size: int) -> int:
    """The kinds of tiles on a board without a goal."""
    return MAX_KIND if size > 3 else size**2 + 1


@lru_cache(maxsize=1 << 17)
def slide_line(line: bytes, cap: int) -> tuple[bytes, bytes, int, int]:
    """One line pushed to its front, pushed to its back, the score of its merges and their number (the same both ways).

    Kind `cap` never merges.
    """
    front, gain, merges = _push(line, cap)
    return front, _push(line[::-1], cap)[0][::-1], gain, merges


def _push(line: bytes, cap: int) -> tuple[bytes, int, int]:
    out: list[int] = []
    gain = merges = 0
    open_end = False  # whether the last tile may still merge: a merged one may not, within one move
    for kind in line:
        if not kind:
            continue
        if open_end and out[-1] == kind and kind < cap:
            out[-1] += 1
            gain += 1 << (kind + 1)
            merges += 1
            open_end = False
        else:
            out.append(kind)
            open_end = True
    return bytes(out) + bytes(len(line) - len(out)), gain, merges


class Game2048(Game):
    """One board of 2048. Actions: 0 up, 1 right, 2 down, 3 left. Gain: the sum of the tiles that merges made."""

    options_type = Options2048
    options: Options2048

    def __init__(self, options: GameOptions | None = None) -> None:
        super().__init__(options)
        self.rows = self.cols = self.options.size
        self.num_kinds = self.options.num_kinds
        self.num_listed = min(self.num_kinds, self.rows**2 + 1)
        self.actions = Choices("up", "right", "down", "left")
        self._flat = bytes(self.rows * self.cols)
        self._after: dict[int, tuple[bytes, int, int]] = {}  # of the board `_looked_at`: what each legal move makes
        self._looked_at = b""

    @classmethod
    def fit(cls, options: Mapping[str, Any], kinds: int) -> dict[str, Any]:
        """A tile set with few kinds gets a goal that the largest of them is."""
        size = options.get("size", 4)
        if "goal" in options or not isinstance(size, int) or kinds >= kinds_of(size):
            return dict(options)
        return {**options, "goal": max(8, 2**kinds)}

    def rules(self, names: Sequence[str]) -> str:
        last = self.num_listed or self.num_kinds
        order = ", ".join(names[1 : last + 1])
        goal = f"Make the tile {names[last]} to win." if self.options.goal else "Score as much as you can."
        if not self.options.goal and last < self.rows**2 + 1:
            goal = f"The last kind merges no more. {goal}"
        return (
            f"This is 2048 on a {self.rows}x{self.cols} board. A move slides every tile as far as it goes up, right, "
            "down or left. Two equal tiles that meet merge into one of the next kind, each tile at most once a move. "
            f"The kinds in order: {order}. A move that changes nothing is illegal. After a legal move a tile of the "
            f"first or the second kind appears on an empty cell. A merge scores the value of the new tile. {goal}"
        )

    def perception(self) -> Board:
        return np.frombuffer(self._flat, np.uint8).reshape(self.rows, self.cols).copy()

    def oracle(self) -> int:
        left = self.options.horizon - self.moves if self.options.horizon else None
        return expectimax(self.perception(), self.num_kinds, left)

    def _deal(self) -> None:
        self._flat = bytes(self.rows * self.cols)
        self._spawn()
        self._spawn()

    def _spawn(self) -> None:
        # One draw decides the cell and, by its fraction, the tile: one double a move, in the batch as well.
        at = self.rng.random() * self._flat.count(0)
        rank = int(at)
        cell = self._flat.find(0)
        for _ in range(rank):
            cell = self._flat.find(0, cell + 1)
        kind = b"\2" if at - rank < FOUR_SHARE else b"\1"
        self._flat = self._flat[:cell] + kind + self._flat[cell + 1 :]

    def _find_legal(self) -> tuple[int, ...]:
        n, flat, cap = self.cols, self._flat, self.num_kinds
        lefts, rights, gains, merges = zip(*[slide_line(flat[i : i + n], cap) for i in range(0, n * n, n)], strict=True)
        ups, downs, gains_v, merges_v = zip(*[slide_line(flat[i::n], cap) for i in range(n)], strict=True)
        up, down = b"".join(ups), b"".join(downs)  # column by column
        vertical, horizontal = (sum(gains_v), sum(merges_v)), (sum(gains), sum(merges))
        moves = (
            (UP, b"".join([up[i::n] for i in range(n)]), vertical),
            (RIGHT, b"".join(rights), horizontal),
            (DOWN, b"".join([down[i::n] for i in range(n)]), vertical),
            (LEFT, b"".join(lefts), horizontal),
        )
        self._after = {action: (after, *scored) for action, after, scored in moves if after != flat}
        self._looked_at = flat
        return tuple(self._after)

    def _apply(self, action: int) -> tuple[float, int]:
        if self._looked_at != self._flat:  # restored to a state whose legal actions were known
            self._find_legal()
        self._flat, gain, merges = self._after[action]
        self._spawn()
        return float(gain), merges

    def won(self) -> bool:
        return self.options.goal > 0 and self.num_kinds in self._flat

    def _pack(self) -> bytes:
        return self._flat

    def _unpack(self, data: bytes) -> None:
        if not self._board_from(data).any():
            raise ValueError("not a board of 2048: it is empty")
        self._flat = bytes(data)


# Many boards at once: [rows, cols, B].


def _slide_left(boards: NDArray[np.uint8], cap: int) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
    """All boards pushed left: boards [n, n, B], gains [B], merges [B]. Other directions come in as views."""
    n = boards.shape[1]
    out = boards.copy()
    columns = [out[:, c] for c in range(n)]
    _close_gaps(columns)
    gains = np.zeros(boards.shape[2], np.int32)
    merges = np.zeros(boards.shape[2], np.uint8)
    for left, right in zip(columns, columns[1:], strict=False):
        # From the front: a tile that has just merged has an emptied neighbour, so it can't merge again.
        meet = (left == right) & (left > 0) & (left < cap)
        left += meet
        right *= ~meet
        gains += (meet * np.left_shift(1, left, dtype=np.int32)).sum(0, dtype=np.int32)
        merges += meet.sum(0, dtype=np.uint8)
    _close_gaps(columns)
    return out, gains, merges


def _close_gaps(columns: list[NDArray[np.uint8]]) -> None:
    """Moves every tile to the front over the empty cells, in place: a bubble sort of the gaps."""
    for end in range(len(columns) - 1, 0, -1):
        for i in range(end):
            left, right = columns[i], columns[i + 1]
            gap = left == 0
            left += right * gap
            right *= ~gap


def slide_all(
    boards: NDArray[np.uint8], cap: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8], NDArray[np.bool_]]:
    """The four moves of B boards [n, n, B]: boards [4, n, n, B], gains [4, B], merges [4, B], legal [4, B]."""
    n, _, num = boards.shape
    after = np.empty((4, n, n, num), np.uint8)
    gains = np.empty((4, num), np.int32)
    merges = np.empty((4, num), np.uint8)
    for action, view in enumerate(_VIEWS):
        moved, gains[action], merges[action] = _slide_left(view(boards), cap)
        view(after[action])[...] = moved
    legal = (after != boards).any(axis=(1, 2))
    return after, gains, merges, legal


_VIEWS = (  # each turns its direction into left, and is its own way to write back
    lambda b: b.transpose(1, 0, 2),
    lambda b: b[:, ::-1],
    lambda b: b[::-1].transpose(1, 0, 2),
    lambda b: b,
)


class Batch2048(GameBatch):
    """B boards of 2048 in numpy, each with its own generator: board i does what a `Game2048` of its seed does."""

    DRAWS = 256  # doubles fetched from a generator at a time

    def __init__(self, options: GameOptions, num: int) -> None:
        self.num = num
        self._game = Game2048(options)
        n = self._game.rows
        self._cells = np.zeros((n, n, num), np.uint8)
        self.boards = self._cells.transpose(2, 0, 1)
        self.looks = np.zeros((num, n, n), np.uint16)
        self.scores = np.zeros(num)
        self.moves = np.zeros(num, np.int64)
        self._over = np.ones(num, np.bool_)
        self._index = np.arange(num)
        self._draws = np.zeros((num, self.DRAWS))
        self._next_draw = np.full(num, self.DRAWS)
        self._fetched_from = [b""] * num  # each generator as it was before its draws were fetched
        self._rngs = [np.random.Generator(np.random.PCG64(0)) for _ in range(num)]
        self._stale = True

    def reset(self, index: int, seed: int) -> None:
        self._game.reset(seed)
        self._load(index)

    def restore(self, index: int, data: Bytes) -> None:
        self._game.restore(data)
        self._load(index)

    def _load(self, index: int) -> None:
        game = self._game
        self._cells[:, :, index] = game.perception()
        self.looks[index] = game.looks
        self.scores[index], self.moves[index], self._over[index] = game.score, game.moves, game.over
        unpack_rng(self._rngs[index], pack_rng(game.rng.bit_generator))
        self._fetch(index)
        self._stale = True

    def _fetch(self, index: int) -> None:
        self._fetched_from[index] = pack_rng(self._rngs[index].bit_generator)
        self._rngs[index].random(out=self._draws[index])
        self._next_draw[index] = 0

    def snapshot(self, index: int) -> bytes:
        game, rng = self._game, np.random.PCG64()
        game.rng = np.random.Generator(rng)
        unpack_rng(game.rng, self._fetched_from[index])
        rng.advance(int(self._next_draw[index]))
        game.looks, game._flat = self.looks[index], self.boards[index].tobytes()
        game.score, game.moves, game.over = float(self.scores[index]), int(self.moves[index]), bool(self._over[index])
        return game.snapshot()

    def _refresh(self) -> None:
        if self._stale:
            self._after, self._gains, self._merges, self._legal = slide_all(self._cells, self._game.num_kinds)
            self._stale = False

    def legal_actions(self, index: int) -> tuple[int, ...]:
        self._refresh()
        return () if self._over[index] else tuple(np.flatnonzero(self._legal[:, index]).tolist())

    def step(self, actions: NDArray[np.integer], live: NDArray[np.bool_] | None = None) -> Outcomes:
        actions = self.checked(actions)
        playing = np.ones(self.num, np.bool_) if live is None else live
        if (self._over & playing).any():
            raise RuntimeError("the episode is over: call reset(index, seed) or restore(index, snapshot) first")
        self._refresh()
        gain = np.zeros(self.num)
        cleared = np.zeros(self.num, np.int64)
        legal = np.zeros(self.num, np.bool_)
        for action in range(4):
            chosen = (actions == action) & self._legal[action] & playing
            np.copyto(self._cells, self._after[action], where=chosen)
            np.copyto(gain, self._gains[action], where=chosen)
            np.copyto(cleared, self._merges[action], where=chosen)
            legal |= chosen
        self._spawn(legal)
        self.scores += gain
        self.moves += playing
        self._stale = True
        self._refresh()
        cap = self._game.num_kinds
        success = legal & (self._cells == cap).any(axis=(0, 1)) if self._game.options.goal else np.zeros_like(legal)
        terminated = playing & (success | ~self._legal.any(0))
        truncated = playing & ~terminated & (self.moves >= (self._game.options.horizon or np.inf))
        self._over |= terminated | truncated
        return Outcomes(legal, gain, cleared, terminated, truncated, success)

    def _spawn(self, where: NDArray[np.bool_]) -> None:
        """`Game2048._spawn` on the marked boards."""
        for index in np.flatnonzero(self._next_draw == self.DRAWS).tolist():
            self._fetch(index)
        flat = self._cells.reshape(-1, self.num)
        empty_so_far = np.cumsum(flat == 0, axis=0, dtype=np.uint8)
        at = self._draws[self._index, self._next_draw] * empty_so_far[-1]
        rank = at.astype(np.uint8)
        cell = (empty_so_far <= rank).sum(0)
        kind = np.where(at - rank < FOUR_SHARE, 2, 1)
        flat[cell[where], self._index[where]] = kind[where]
        self._next_draw += where


# The oracle: expectimax over the move, the tile that follows it and the next move, all boards of a layer in one batch.

_EMPTY, _MEET, _SUM, _ORDER, _LOST = 540.0, 700.0, 22.0, 47.0, 400_000.0
_DEEPER = 5  # empty cells, on average over the moves, up to which a further move is looked at
_GAIN, _NEAR = 300.0, 150  # with the horizon this near, points now weigh against the board they leave
_POW35, _POW4 = np.arange(256.0) ** 3.5, np.arange(256.0) ** 4


def expectimax(board: Board, cap: int, left: int | None) -> int:
    """The move with the best expected value, of a board [n, n] that has one. `left`: moves to the horizon, if any."""
    boards = np.ascontiguousarray(board)[:, :, None]
    after, gains, _, legal = slide_all(boards, cap)
    actions = np.flatnonzero(legal[:, 0])
    afters = np.ascontiguousarray(after[actions, :, :, 0].transpose(1, 2, 0))
    few = int((afters == 0).sum()) <= _DEEPER * len(actions)
    depth = 1 + few if left is None else min(1 + few, left - 1)
    gain_weight = _GAIN if left is not None and left <= _NEAR else 0.0
    values = gains[actions, 0] * gain_weight + _after_move(afters, cap, depth, gain_weight)
    return int(actions[np.argmax(values)])


def _after_move(boards: NDArray[np.uint8], cap: int, depth: int, gain_weight: float) -> NDArray[np.float64]:
    """Expected values [B] of boards [n, n, B] on which a new tile is about to appear."""
    if depth <= 0:
        return _promise(boards)
    row, col, board = np.nonzero(boards == 0)
    spawned = np.repeat(boards[:, :, board], 2, axis=2)
    each = np.arange(len(board))
    spawned[row, col, 2 * each] = 1
    spawned[row, col, 2 * each + 1] = 2
    after, gains, _, legal = slide_all(spawned, cap)
    action, origin = np.nonzero(legal)
    values = np.full((4, spawned.shape[2]), -_LOST)
    afters = np.ascontiguousarray(after[action, :, :, origin].transpose(1, 2, 0))
    values[action, origin] = gains[action, origin] * gain_weight + _after_move(afters, cap, depth - 1, gain_weight)
    best = values.max(0)
    expected = (1 - FOUR_SHARE) * best[::2] + FOUR_SHARE * best[1::2]
    return np.bincount(board, expected, boards.shape[2]) / np.bincount(board, minlength=boards.shape[2])


def _promise(boards: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What boards [n, n, B] promise [B]: room, tiles about to meet, and lines that rise or fall without a break.

    The terms and their weights are those of the well-known expectimax player of R. Xiao (nneonneo/2048-ai).
    """
    power = _POW4[boards]
    value = _EMPTY * (boards == 0).sum((0, 1)) - _SUM * _POW35[boards].sum((0, 1))
    for axis in (0, 1):
        here, there = (boards[:-1], boards[1:]) if axis == 0 else (boards[:, :-1], boards[:, 1:])
        steps = np.diff(power, axis=axis)
        rise, fall = np.maximum(steps, 0).sum(axis), np.maximum(-steps, 0).sum(axis)
        value = value + _MEET * ((here == there) & (here > 0)).sum((0, 1)) - _ORDER * np.minimum(rise, fall).sum(0)
    return value


_PAPER = {"size": 4, "goal": 0, "horizon": 100}
register_game(
    GameSpec(
        name="2048",
        game_type=Game2048,
        batch_type=Batch2048,
        summary="slide and merge equal tiles",
        perception={"tiles": "numbers"},
        presets={
            "paper": (_PAPER, {"tiles": "numbers"}),
            "full-game": ({"size": 4, "goal": 2048, "horizon": 0}, {"tiles": "numbers"}),
        },
        levels=({"size": 3}, {"size": 4}, {"size": 5}, {"size": 6}),
        gym_name="2048",
    )
)
