"""The contract of a game: rules over a board, its own generator, a snapshot of everything.

What holds for every game, and is tested for every game:

- equal snapshots have equal futures: the random generator, the counters and the end of the episode are in them;
- an illegal action changes nothing but the count of moves;
- no action is ever read as another one: what is not legal is illegal, whatever integer it is;
- kinds are small integers, 0 is the empty cell; what a kind looks like and is called is the tile set's business.
"""

import math
import operator
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from envs.answers import ActionFormat
from envs.options import Options, option

Board = NDArray[np.uint8]
"""[rows, cols] the kind in each cell, 0 where the cell is empty."""
Looks = NDArray[np.uint16]
"""[rows, cols] which picture of its kind a cell shows: the tile set takes it modulo the pictures it has."""
Bytes = bytes | bytearray | memoryview

_HEAD = struct.Struct("<BIdB")  # format version, moves, score, over
_FORMAT = 1
_RNG_BYTES = 37


@dataclass(frozen=True)
class GameOptions(Options):
    """What every game can be asked for; a game's own options class adds its own."""

    horizon: int = option(100, "moves that end an episode, illegal ones included; 0: never", low=0, high=10**9)

    def ended_by(self, moves: int) -> bool:
        """Whether an episode has had all its moves."""
        return 0 < self.horizon <= moves


class Outcome(NamedTuple):
    """What one move did. `gain` is in the game's own score; `cleared` counts tiles that left the board."""

    legal: bool
    gain: float
    cleared: int
    terminated: bool
    truncated: bool
    success: bool


class Game(ABC):
    """Rules over one board. Subclasses give the abstract methods; counting, ends and snapshots are done here.

    `rows`, `cols`, `num_kinds` and `actions` are set by the subclass's `__init__` and depend on the options alone.
    """

    options_type: ClassVar[type[GameOptions]]
    rows: int
    cols: int
    num_kinds: int
    actions: ActionFormat
    _board: Board
    endless: bool = False
    """Whether an episode can go on for ever where there is no horizon."""
    num_alike: int = 1
    """Tiles of one kind on a board that have to be different photos of it, where the tiles are photos."""
    num_listed: int | None = None
    """The kinds that play can bring onto a board, which the prompt lists; None: all of them."""

    def __init__(self, options: GameOptions | None = None) -> None:
        self.options = options if options is not None else self.options_type()
        self.rng = np.random.Generator(np.random.PCG64(0))
        self.moves = 0
        self.score = 0.0
        self.over = True
        self.looks: Looks = np.zeros((0, 0), np.uint16)
        self._legal: tuple[int, ...] = ()
        # What was restored last, what is legal there, and whether it is over.
        self._restored: tuple[bytes, tuple[int, ...], bool] = (b"", (), True)

    @classmethod
    def fit(cls, options: Mapping[str, Any], kinds: int) -> dict[str, Any]:
        """`options` with those filled in that were left open and that `kinds`, the kinds of the tile set, decide."""
        return dict(options)

    # The rules: what a game has to say.

    @abstractmethod
    def rules(self, names: Sequence[str]) -> str:
        """The rules in words, for a player who sees the picture. `names[k]` is what kind k is called; 0 is empty."""

    @abstractmethod
    def oracle(self) -> int:
        """A best action, or a good one where best is out of reach. Only asked while the episode is not over."""

    @abstractmethod
    def _deal(self) -> None:
        """Sets a fresh board from `self.rng`."""

    @abstractmethod
    def _find_legal(self) -> tuple[int, ...]:
        """The legal actions of the board as it stands, ascending."""

    @abstractmethod
    def _apply(self, action: int) -> tuple[float, int]:
        """Plays a legal action; returns its gain and the number of tiles that left the board."""

    @abstractmethod
    def won(self) -> bool:
        """Whether the goal is reached, which ends the episode."""

    # What is right for a game whose state is `self._board`, [rows, cols], alone.

    def perception(self) -> Board:
        """The true board, cell by cell: a copy, [rows, cols] uint8."""
        return self._board.copy()

    def _pack(self) -> bytes:
        """The board, and what else of the game's own decides its future."""
        return self._board.tobytes()

    def _unpack(self, data: bytes) -> None:
        """Undoes `_pack`. Raises `ValueError`, and changes nothing, on data that `_pack` can't have made."""
        board = self._board_from(data)
        if fault := self._fault_of(board):
            raise ValueError(f"not a board of {type(self).__name__}: {fault}")
        self._board = board

    def _fault_of(self, board: Board) -> str:
        """Why no play leads to a board; '' where some does."""
        return ""

    # What every game has.

    def reset(self, seed: int) -> None:
        """Starts an episode. The seed decides all of it: the board and every later draw. What fails changes nothing."""
        rng = np.random.Generator(np.random.PCG64(operator.index(seed)))
        before = self.snapshot() if self.looks.size else b""
        try:
            self.rng, self.moves, self.score, self.over = rng, 0, 0.0, False
            self.looks = self._draw_looks()
            self._deal()
            self._legal = self._find_legal()
        except BaseException:
            if before:
                self.restore(before)
            else:
                self.looks, self.over = self.looks[:0], True
            raise

    def _draw_looks(self) -> Looks:
        return (self.rng.random((self.rows, self.cols)) * 65536).astype(np.uint16)

    def legal_actions(self) -> tuple[int, ...]:
        """The actions that are legal now, ascending; none once the episode is over."""
        return () if self.over else self._legal

    def step(self, action: SupportsIndex | None) -> Outcome:
        """Plays one move. `None` is an answer that could not be read: it costs a move like an illegal action.

        Raises `RuntimeError` once the episode is over and `TypeError` for what is no integer; neither changes anything.
        """
        if self.over:
            what = "the episode is over" if self.looks.size else "there is no episode yet"
            raise RuntimeError(f"{what}: call reset(seed) or restore(snapshot) first")
        legal = action is not None and operator.index(action) in self._legal
        gain, cleared, success = 0.0, 0, False
        self.moves += 1
        if legal and action is not None:
            gain, cleared = self._apply(operator.index(action))
            self.score += gain
            self._legal = self._find_legal()
            success = self.won()
        terminated = success or not self._legal
        truncated = not terminated and self.options.ended_by(self.moves)
        self.over = terminated or truncated
        return Outcome(legal, gain, cleared, terminated, truncated, success)

    def snapshot(self) -> bytes:
        """Everything that decides the future, about 100 bytes for a small board: equal bytes, equal future."""
        if not self.looks.size:
            raise RuntimeError("there is no episode yet: call reset(seed) or restore(snapshot) first")
        head = _HEAD.pack(_FORMAT, self.moves, self.score, self.over)
        return head + pack_rng(self.rng.bit_generator) + self.looks.tobytes() + self._pack()

    def restore(self, data: Bytes) -> None:
        """Becomes the state that `snapshot` saw; one that the options leave no move is over.

        Raises `ValueError`, and changes nothing, on other bytes.
        """
        data = as_bytes(data, "the snapshot of a game")
        looks_at = _HEAD.size + _RNG_BYTES
        board_at = looks_at + 2 * self.rows * self.cols
        version, moves, score, over = _HEAD.unpack_from(data.ljust(_HEAD.size, b"\0"))
        if len(data) < board_at or version != _FORMAT or not math.isfinite(score) or over > 1:
            raise ValueError(f"not a snapshot of {type(self).__name__} {self.rows}x{self.cols}: {data[:16]!r}...")
        self._unpack(data[board_at:])
        self.moves, self.score = moves, score
        unpack_rng(self.rng, data[_HEAD.size : looks_at])
        self.looks = np.frombuffer(data[looks_at:board_at], np.uint16).reshape(self.rows, self.cols)
        if data != self._restored[0]:  # forks are restored to one state again and again
            legal = self._find_legal()
            self._restored = data, legal, bool(over) or not legal or self.won() or self.options.ended_by(moves)
        _, self._legal, self.over = self._restored

    def fork(self) -> Self:
        """An independent game in the same state: the same actions have the same outcomes in both."""
        twin = type(self)(self.options)
        twin.restore(self.snapshot())
        return twin

    def _board_from(self, data: bytes) -> Board:
        """A board from the bytes of one, checked: [rows, cols] with kinds up to `num_kinds`."""
        if len(data) != self.rows * self.cols or max(data) > self.num_kinds:
            raise ValueError(f"not a board of {type(self).__name__} {self.rows}x{self.cols}: {data[:16]!r}...")
        return np.frombuffer(data, np.uint8).reshape(self.rows, self.cols).copy()


def as_bytes(data: Bytes, what: str) -> bytes:
    """What lies in bytes, a bytearray, a memoryview or an array of them. Raises `ValueError` on anything else."""
    if isinstance(data, bytes):
        return data
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise ValueError(f"{what} = {data!r:.60}: expected its bytes, not {type(data).__name__}") from None


def pack_rng(generator: np.random.BitGenerator) -> bytes:
    """The whole state of a PCG64 in 37 bytes."""
    state = generator.state
    inner = state["state"]
    tail = struct.pack("<BI", state["has_uint32"], state["uinteger"])
    return inner["state"].to_bytes(16, "little") + inner["inc"].to_bytes(16, "little") + tail


def unpack_rng(generator: np.random.Generator, data: bytes) -> None:
    """Puts a generator into the state that `pack_rng` saw."""
    has_uint32, uinteger = struct.unpack("<BI", data[32:])
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int.from_bytes(data[:16], "little"), "inc": int.from_bytes(data[16:32], "little")},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
