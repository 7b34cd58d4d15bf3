"""Rollouts packed for a page: blocks that are opened one by one, and sheets of tiles to put pictures together from.

A picture is not stored. Its tiles stand once on a task's sheet, and a state says which of them lies in which cell.
"""

import base64
import contextlib
import importlib
import io
import itertools
import json
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs import State, Task
from envs.core import Board, Looks
from envs.lookahead import Worth
from envs.perception import FOLDERS
from g1_ray.evaluation.confusion import Told
from g1_ray.report.rollouts import SeenBlock, SeenState, ShownRollout, evenly, look_at
from g1_ray.runs.progress import Count

BLOCK = 32
"""Rollouts that are packed together: what the page reads to show one of them."""
SHEET_PIXELS = 16_000_000
"""Most pixels on a sheet: what a browser decodes without a pause."""


class Sheet:
    """The different tiles of a task's pictures, each once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.kinds: list[int] = []
        """The kind that each tile shows."""
        self._tiles: list[NDArray[np.uint8]] = []
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._number_of_slot: dict[int, int] = {}
        self._generation = 0

    def place(self, board: Board, looks: Looks) -> NDArray[np.uint16]:
        """The numbers [rows, cols] of a picture's tiles; those that are new are added."""
        renderer = self.task.renderer
        slots = renderer.slots(board, looks)
        if renderer.generation != self._generation:  # slots are others now
            self._number_of_slot, self._generation = {}, renderer.generation
        for kind, slot in zip(board.ravel().tolist(), slots.ravel().tolist(), strict=True):
            if slot not in self._number_of_slot:
                tile = renderer.tile(slot).copy()
                number = self._numbers.setdefault((kind, tile.tobytes()), len(self._tiles))
                self._number_of_slot[slot] = number
                if number == len(self._tiles):
                    self._tiles.append(tile)
                    self.kinds.append(kind)
        return np.vectorize(self._number_of_slot.__getitem__, otypes=[np.uint16])(slots)

    @property
    def full(self) -> bool:
        """Whether there are more tiles than a page can have."""
        return len(self._tiles) > min(0xFFFF, SHEET_PIXELS // self.task.renderer.px**2)

    @property
    def columns(self) -> int:
        """Tiles in a line of the sheet."""
        return int(np.ceil(np.sqrt(len(self._tiles))))

    def png(self) -> str:
        """The sheet, line by line, as base64."""
        px, columns = self.task.renderer.px, self.columns
        sheet = np.zeros((-(-len(self._tiles) // columns), columns, px, px, 3), np.uint8)
        sheet.reshape(-1, px, px, 3)[: len(self._tiles)] = self._tiles
        picture = Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(-1, columns * px, 3))
        file = io.BytesIO()
        picture.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    def about(self) -> dict[str, Any]:
        """What the page has to know to put pictures together."""
        renderer = self.task.renderer
        game = State.start(self.task, 0).game()
        picture, shift = self.task.draw(game), renderer.shift(game.looks)
        return {
            "name": self.task.name,
            "names": list(renderer.names),
            "rows": renderer.rows,
            "cols": renderer.cols,
            "px": renderer.px,
            "size": [renderer.shape[1], renderer.shape[0]],
            # Wherever the board lies, one of these two corners is beside it where there is a margin at all.
            "margin": picture[0, 0].tolist() if shift[0] else picture[-1, -1].tolist(),
            "columns": self.columns,
            "kinds": self.kinds,
        }


@dataclass(frozen=True)
class Boards:
    """What was on the boards of a player in a game, and what the player told of them."""

    task: Task
    truth: list[Board] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)


@dataclass(frozen=True)
class PackedPage:
    """Rollouts as the page has them."""

    listed: dict[str, Any]
    """The list of rollouts in columns: what it shows and what it is filtered by."""
    tasks: list[dict[str, Any]]
    sheets: list[str]
    """[tasks] PNG, base64"""
    blocks: list[str]
    """JSON of `BLOCK` rollouts each, deflated, base64"""
    boards: dict[tuple[str, str], Boards]
    """(game, player) -> its described boards"""


def pack_page(
    rollouts: Sequence[ShownRollout], worths: Mapping[str, Worth], modules: Sequence[str] = (), workers: int = 1
) -> PackedPage:
    """Packs rollouts, by `workers` processes. `worths`: as of `look_at`; `modules`: what this process has imported
    of the games' modules, for those to import it too.

    Where their tiles don't go on the sheets, it is half as many, evenly drawn, or half of those.
    """
    blocks = [rollouts[i : i + BLOCK] for i in range(0, len(rollouts), BLOCK)]
    sheets: dict[Task, Sheet] = {}
    packed, boards, turns_of = [], {}, []  # type: list[str], dict[tuple[str, str], Boards], list[Any]
    with Count("rollouts", len(rollouts)) as count, contextlib.closing(_seen(blocks, worths, modules, workers)) as seen:
        for block, its in zip(blocks, seen, strict=True):
            packed.append(_deflated({"states": [_state(state, sheets) for state in its.states], "rollouts": its.turns}))
            if any(sheet.full for sheet in sheets.values()):
                break
            _keep_boards(block, its, boards)
            turns_of += its.turns
            count(len(turns_of))
    if len(turns_of) < len(rollouts):
        half = [rollouts[i] for i in evenly(len(rollouts), len(rollouts) // 2)]
        return pack_page(half, worths, modules, workers)
    listed = _columns(rollouts, turns_of)
    return PackedPage(listed, [s.about() for s in sheets.values()], [s.png() for s in sheets.values()], packed, boards)


def _seen(
    blocks: Sequence[Sequence[ShownRollout]], worths: Mapping[str, Worth], modules: Sequence[str], workers: int
) -> Generator[SeenBlock]:
    """The blocks looked at again, one after the other."""
    if workers == 1 or len(blocks) < 4:
        for block in blocks:
            yield look_at(block, worths)
        return
    context = get_context("spawn")  # this process has threads
    with ProcessPoolExecutor(workers, context, _trust, (modules, FOLDERS)) as pool:
        yield from pool.map(look_at, blocks, itertools.repeat(worths), chunksize=4)


def _trust(modules: Sequence[str], folders: set[str]) -> None:
    """In another process, what has been named in this one."""
    for module in modules:
        importlib.import_module(module)
    FOLDERS.update(folders)


def _keep_boards(block: Sequence[ShownRollout], seen: SeenBlock, boards: dict[tuple[str, str], Boards]) -> None:
    """Adds what was told of the boards of a block, beside what they are."""
    for played, turns, told in zip(block, seen.turns, seen.told, strict=True):
        for turn, board in zip(turns, told, strict=True):
            if board is not None:
                state = seen.states[turn["state"]]
                kept = boards.setdefault((played.game, played.player), Boards(state.task))
                kept.truth.append(state.board)
                kept.told.append(board)


def _state(seen: SeenState, sheets: dict[Task, Sheet]) -> dict[str, Any]:
    """A state as the page's JSON has it."""
    sheet = sheets.setdefault(seen.task, Sheet(seen.task))
    tiles = sheet.place(seen.board, seen.looks).astype("<u2").tobytes()
    return {
        "task": list(sheets).index(seen.task),
        "tiles": base64.b64encode(tiles).decode(),
        "shift": seen.task.renderer.shift(seen.looks),
        "moves": seen.moves,
    }


def _columns(rollouts: Sequence[ShownRollout], turns: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The rollouts in columns; games, players and causes are numbers in the lists of their names."""
    names: dict[str, list[Any]] = {"games": [], "players": [], "causes": []}

    def number(of: str, name: str) -> int:
        if name not in names[of]:
            names[of].append(name)
        return names[of].index(name)

    def lines() -> Iterator[dict[str, Any]]:
        for played, its in zip(rollouts, turns, strict=True):
            versions = [version for turn in its for version in turn.get("versions", ())]
            yield {
                "game": number("games", played.game),
                "player": number("players", played.player),
                "number": played.number,
                "place": played.place,
                "turns": len(its),
                "advantage": None if played.advantage is None else round(played.advantage, 4),
                "total": round(sum(turn.get("reward", turn["reward_game"]) for turn in its), 4),
                "score": round(sum(turn["gain"] for turn in its), 4),
                "from": min(versions, default=None),
                "to": max(versions, default=None),
                "outcomes": sum({1 << turn["outcome"] for turn in its}),
                "causes": sum({1 << number("causes", turn["cause"]) for turn in its if "cause" in turn}),
                "misread": any(turn.get("exact") is False for turn in its),
            }

    table = list(lines())
    return {**names, "rollouts": {name: [line[name] for line in table] for name in (table[0] if table else ())}}


def _deflated(values: object) -> str:
    data = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(zlib.compress(data, 9)).decode()
