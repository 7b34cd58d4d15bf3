"""Pictures of boards, from an atlas of finished tiles.

A whole frame is one `take`: a line of a tile is one opaque item of the atlas, so that every item is one memcpy and the
frame is written front to back. This costs no more than copying a finished frame.
A standing frame has only those tiles drawn again that changed.
"""

import functools
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.core import Board, Looks
from envs.perception import FRAME, Look, Perception

Frame = NDArray[np.uint8]
"""[height, width, 3] RGB, both sides multiples of the patch."""

_ATLAS_BYTES = 512 << 20  # an atlas grown beyond this is started anew
_MARGIN_GRAY = 34


class Renderer:
    """Draws boards [rows, cols] of up to `num_kinds` kinds as `perception` says.

    `shape` is that of a frame, [height, width, 3]. Threads may share one: whoever goes by slots holds its `lock`.
    Raises `ValueError` where the tile set has too few kinds or the sizes don't come out at whole patches.
    """

    def __init__(self, perception: Perception, rows: int, cols: int, num_kinds: int) -> None:
        self.perception, self.rows, self.cols, self.num_kinds = perception, rows, cols, num_kinds
        tiles = perception.tile_set(num_kinds)
        if tiles.num_kinds < num_kinds:
            raise ValueError(
                f"tiles = {perception.tiles!r}: {tiles.num_kinds} kinds, and this game needs {num_kinds}; take another "
                "tile set or a game with fewer kinds"
            )
        patch = perception.patch
        self.px = perception.tile_px or patch * max(1, round(FRAME / max(rows, cols) / patch))
        self.margin = -(-perception.offset // patch) * patch
        self.shape = (rows * self.px + self.margin, cols * self.px + self.margin, 3)
        if self.shape[0] % patch or self.shape[1] % patch:
            raise ValueError(
                f"tile_px = {self.px}: a {rows}x{cols} board is {self.shape[1]}x{self.shape[0]} pixels, which is no "
                f"multiple of patch = {patch}; take a multiple of {patch}, or 0 to have it chosen"
            )
        self.look = Look(perception, tiles, self.px)
        self.names = tiles.names[: num_kinds + 1]
        self._periods = np.array([self.look.period(kind) for kind in range(num_kinds + 1)], np.uint32)
        self._one_each = bool((self._periods == 1).all())
        self._line = np.dtype((np.void, self.px * 3))
        self._line_numbers = np.arange(self.px)[:, None]
        self.lock = threading.RLock()
        self.generation = 0
        self._start_atlas()

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies are the one of their process: an atlas, megabytes of tiles, is never sent or doubled.
        return renderer_of, (self.perception, self.rows, self.cols, self.num_kinds)

    def _start_atlas(self) -> None:
        self.generation += 1
        self._slot_of = np.zeros((len(self._periods), int(self._periods.max())), np.intp)  # 0: not drawn yet
        self._num_slots = 1
        self._complete = False  # whether every tile there can be is in the atlas
        self._atlas = np.zeros((16, self.px), self._line)  # tile by tile, line by line

    def slots(self, boards: Board, looks: Looks) -> NDArray[np.intp]:
        """Places in the atlas of the tiles of boards [..., rows, cols]; tiles that are missing are made.

        They hold until `generation` changes, which makes every slot handed out before meaningless.
        """
        phases = 0 if self._one_each else looks % self._periods[boards]
        found = self._slot_of[boards, phases]
        if not self._complete and not found.all():
            with self.lock:
                if (self._num_slots + found.size) * self.px * self.px * 3 > _ATLAS_BYTES:
                    self._start_atlas()
                wanted = np.unique(np.stack(np.broadcast_arrays(boards, phases), -1)[found == 0].reshape(-1, 2), axis=0)
                for kind, phase in wanted.tolist():
                    if not self._slot_of[kind, phase]:
                        self._add(kind, phase)
                return self.slots(boards, looks)
        return found

    def _add(self, kind: int, phase: int) -> None:
        if self._num_slots == len(self._atlas):
            self._atlas = np.concatenate([self._atlas, np.zeros_like(self._atlas)])
        self.tile(self._num_slots)[...] = self.look.tile(kind, phase)
        self._slot_of[kind, phase] = self._num_slots
        self._num_slots += 1
        self._complete = self._num_slots > self._periods.sum()

    def tile(self, slot: int) -> NDArray[np.uint8]:
        """A finished tile, [px, px, 3]: a view of the atlas."""
        return self._atlas[slot].view(np.uint8).reshape(self.px, self.px, 3)

    def shift(self, looks: Looks) -> tuple[int, int]:
        """Where the board's top left corner lies in the picture: rows and columns in pixels, fixed for an episode."""
        reach = self.perception.offset + 1
        return (int(looks[0, 0]) % reach, int(looks[0, 0]) // reach % reach) if self.margin else (0, 0)

    def draw(self, board: Board, looks: Looks, out: Frame | None = None) -> Frame:
        """The picture of a board, in `out` [height, width, 3], a C-contiguous array, where given, else in a new one."""
        frame = np.empty(self.shape, np.uint8) if out is None else out
        lines = self.lines(frame, self.shift(looks))
        with self.lock:
            self.draw_slots(frame, lines, self.slots(board, looks))
        return frame

    def lines(self, frame: Frame, shift: tuple[int, int]) -> NDArray[np.void]:
        """A frame as the lines of its tiles, [rows, px, cols]: a view. `shift` is where the board lies in it."""
        if frame.shape != self.shape or frame.dtype != np.uint8 or not frame.flags.c_contiguous:
            raise ValueError(f"frame {frame.shape} {frame.dtype}: must be {self.shape} uint8 and C-contiguous")
        line = frame.strides[0]
        place = shift[0] * line + shift[1] * 3
        return np.ndarray(
            (self.rows, self.px, self.cols), self._line, frame.data, place, (self.px * line, line, self.px * 3)
        )

    def draw_slots(self, frame: Frame, lines: NDArray[np.void], slots: NDArray[np.intp]) -> None:
        """Fills a frame, given also as its `lines`, with the tiles in `slots` [rows, cols]."""
        # [rows, px, cols] the line of the atlas that each line of each tile is.
        numbers = slots[:, None] * self.px + self._line_numbers
        if self.margin:
            frame[...] = _MARGIN_GRAY
            lines[...] = self._atlas.ravel()[numbers]
        else:
            self._atlas.ravel().take(numbers, out=lines, mode="clip")

    def draw_tiles(self, lines: NDArray[np.void], slots: NDArray[np.intp], cells: list[int]) -> None:
        """Draws some cells (row * cols + column) again in the `lines` of a frame."""
        tiles, flat = lines.transpose(0, 2, 1), slots.ravel()
        for cell in cells:
            tiles[divmod(cell, self.cols)] = self._atlas[flat[cell]]


class Canvas:
    """A standing frame: after the first time, only tiles that changed are drawn again."""

    def __init__(self, renderer: Renderer, frame: Frame | None = None) -> None:
        self.renderer = renderer
        self.frame = np.empty(renderer.shape, np.uint8) if frame is None else frame
        self._slots = np.zeros((renderer.rows, renderer.cols), np.intp)
        self._shift = (0, 0)
        self._lines = renderer.lines(self.frame, self._shift)
        self._generation = 0

    def show(self, board: Board, looks: Looks) -> Frame:
        """The frame, brought up to date with the board. It is the same array every time."""
        with self.renderer.lock:
            return self._show(board, looks)

    def _show(self, board: Board, looks: Looks) -> Frame:
        renderer, lines = self.renderer, self._lines
        slots, shift = renderer.slots(board, looks), renderer.shift(looks)
        if self._generation != renderer.generation or shift != self._shift:
            self._lines = renderer.lines(self.frame, shift)
            renderer.draw_slots(self.frame, self._lines, slots)
        else:
            changed = np.flatnonzero(slots != self._slots).tolist()
            if 4 * len(changed) > 3 * slots.size:  # tile by tile costs more than line by line
                renderer.draw_slots(self.frame, lines, slots)
            else:
                renderer.draw_tiles(lines, slots, changed)
        self._slots, self._shift, self._generation = slots, shift, renderer.generation
        return self.frame


class _Sheet:
    """An array of frames [N, height, width, 3] and who draws in each."""

    def __init__(self, renderer: Renderer, num: int) -> None:
        self.frames = np.empty((num, *renderer.shape), np.uint8)
        self.canvases = [Canvas(renderer, frame) for frame in self.frames]
        self._unheld = sys.getrefcount(self.frames)

    @property
    def held(self) -> bool:
        """Whether anybody else has the array or a view of it."""
        return sys.getrefcount(self.frames) > self._unheld


class StandingFrames:
    """Frames of N boards that are drawn again only where boards changed, in memory that nobody holds any more.

    So frames that are kept, in a list or in a stack of frames, stay what they are, and a loop that looks at each in
    turn goes back and forth between two arrays.
    """

    def __init__(self, renderer: Renderer, num: int) -> None:
        self._renderer, self._num = renderer, num
        self._sheets: list[_Sheet] = []  # at most two, the last one drawn first

    def __reduce__(self) -> tuple[Any, ...]:
        return StandingFrames, (self._renderer, self._num)

    def show(self, boards: NDArray[np.uint8], looks: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Frames [N, height, width, 3] of boards [N, rows, cols], to be read only."""
        sheet = next((sheet for sheet in self._sheets if not sheet.held), None) or _Sheet(self._renderer, self._num)
        if self._sheets[:1] != [sheet]:
            self._sheets = [sheet, *(other for other in self._sheets if other is not sheet)][:2]
        for canvas, board, its in zip(sheet.canvases, boards, looks, strict=True):
            canvas.show(board, its)
        return sheet.frames


@functools.lru_cache(maxsize=64)
def renderer_of(perception: Perception, rows: int, cols: int, num_kinds: int) -> Renderer:
    """The one `Renderer` of these arguments in this process: environments of one look share its atlas."""
    return Renderer(perception, rows, cols, num_kinds)
