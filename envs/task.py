"""A task is a game as it is posed: its rules and their options (reasoning), and how it looks (perception).

Both axes are plain options, so a task is made from config: levels, named presets, or any option by name.
"""

import functools
import importlib
import json
import pkgutil
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import gymnasium
import numpy as np

import envs.games
from envs.batch import GameBatch, LoopBatch
from envs.core import Bytes, Game, GameOptions, as_bytes
from envs.drawing import Frame, Renderer, renderer_of
from envs.options import nearest, plain
from envs.perception import FOLDERS, Perception
from envs.registry import Registry

Axis = int | np.integer | Mapping[str, Any] | None
"""A level, options by name, or None for the game's own setting."""

PERCEPTION_LEVELS: tuple[Mapping[str, Any], ...] = (
    {},
    {"background": "marble", "rotation": 6.0, "jitter": 0.1},
    {"background": "stripes", "rotation": 10.0, "jitter": 0.12, "blur": 0.1, "noise": 0.15},
    {"background": "stripes", "rotation": 14.0, "jitter": 0.15, "blur": 0.12, "noise": 0.25, "offset": 28},
)
"""Perturbations of any tile set, from none to strong: the perception levels of every game.

They stop where a tile could be called another one: tests/envs/test_nameable.py holds every colour, shape, number and
letter to its nearest name.
"""


@dataclass(frozen=True)
class GameSpec:
    """A registered game. `reasoning` and `perception` are its own settings, which presets and levels build upon."""

    name: str
    game_type: type[Game]
    summary: str
    reasoning: Mapping[str, Any] = field(default_factory=dict)
    perception: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)
    """Name -> (reasoning, perception)."""
    levels: tuple[Mapping[str, Any], ...] = ()
    """Reasoning options of the levels 0, 1, ..."""
    gym_name: str = ""
    """Its Gymnasium id is VLMGym/<gym_name>-v0."""
    batch_type: Callable[[GameOptions, int], GameBatch] | None = None
    """Makes a vectorised batch of the game, where there is one faster than a loop."""

    @property
    def gym_id(self) -> str:
        """The id for `gymnasium.make`."""
        return f"VLMGym/{self.gym_name}-v0"


GAMES: Registry[GameSpec] = Registry("game")


def register_game(spec: GameSpec) -> None:
    """Makes a game known by its name: to `Task`, to Gymnasium and to the command line."""
    if GAMES.get(spec.name, spec) != spec:
        raise ValueError(f"a game named {spec.name!r} is registered already")
    GAMES[spec.name] = spec
    if spec.gym_id not in gymnasium.registry:
        gymnasium.register(
            spec.gym_id,
            entry_point="envs.env:VLMGymEnv",
            vector_entry_point="envs.vector:VLMGymVectorEnv",
            kwargs={"game": spec.name},
        )


def game_spec(name: str) -> GameSpec:
    """The game of that name. `module:name` imports the module that registers it, for games that live elsewhere."""
    return GAMES.find(name)


def game_names() -> list[str]:
    """The registered games, in the order of registration."""
    return list(GAMES)


@dataclass(frozen=True)
class Task:
    """One game with all its options filled in. Equal tasks pose equal problems; safe to hash, compare and send."""

    name: str
    reasoning: GameOptions
    perception: Perception

    @classmethod
    def make(cls, name: str, *, preset: str = "", reasoning: Axis = None, perception: Axis = None) -> Self:
        """A task by name: the game's own setting, then the preset, then each axis as a level or as options.

        What is left open is fitted to the tile set: `Game.fit`. Raises `ValueError` that names a value out of place.
        """
        spec = game_spec(name)
        if preset and preset not in spec.presets:
            raise ValueError(f"{spec.name}: unknown preset {preset!r}{nearest(preset, spec.presets)}")
        preset_reasoning, preset_perception = spec.presets[preset] if preset else ({}, {})
        try:
            look = _merge(spec.perception, preset_perception, perception, PERCEPTION_LEVELS, "perception")
            seen = Perception.parse(look)
            rules = _merge(spec.reasoning, preset_reasoning, reasoning, spec.levels, "reasoning")
            rules = spec.game_type.fit(rules, seen.max_kinds())
            task = cls(name, spec.game_type.options_type.parse(rules), seen)
            task._check()
        except ValueError as error:
            raise ValueError(f"{spec.name}: {error}") from None
        return task

    def _check(self) -> None:
        """Raises `ValueError` for what the two axes can't do together, so that it is not found at the first frame."""
        tiles, game = self.renderer.look.tiles, self.new_game()
        for kind in range(1, game.num_kinds + 1) if tiles.photos else ():
            if tiles.num_pictures(kind) < game.num_alike:
                raise ValueError(
                    f"{tiles.names[kind]}: {tiles.num_pictures(kind)} photos, and copies = {game.num_alike} of a kind "
                    "have to be different ones; add photos or take fewer copies"
                )

    def new_game(self) -> Game:
        """A game of this task; it waits for `reset` or `restore`."""
        return game_spec(self.name).game_type(self.reasoning)

    def new_batch(self, num: int) -> GameBatch:
        """B games: the game's own vectorised batch where it has one, a loop otherwise."""
        spec = game_spec(self.name)
        if spec.batch_type:
            return spec.batch_type(self.reasoning, num)
        return LoopBatch(spec.game_type, self.reasoning, num)

    @functools.cached_property
    def renderer(self) -> Renderer:
        """Draws this task's boards; shared within the process."""
        game = self.new_game()
        return renderer_of(self.perception, game.rows, game.cols, game.num_kinds)

    def draw(self, game: Game) -> Frame:
        """A new picture of a game of this task, [height, width, 3]."""
        return self.renderer.draw(game.perception(), game.looks)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "reasoning": self.reasoning, "perception": self.perception}

    def to_json(self) -> str:
        """The task with every option, one line: what `from_json` reads, and the same for equal tasks."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        axes = {"reasoning": self.reasoning.as_dict(), "perception": self.perception.as_dict()}
        return json.dumps({"game": self.name, **axes}, separators=(",", ":"))

    @classmethod
    @functools.lru_cache(maxsize=256)  # thousands of states are of one task
    def from_json(cls, text: str) -> Self:
        """The task that `to_json` wrote. Unlike `make`, it imports nothing, and opens no folder that nobody has named:
        data does not say which code to run, or what to read."""
        values = json.loads(text)
        check_folder(values["perception"])
        module, _, name = values["game"].rpartition(":")
        if name not in GAMES:
            raise ValueError(f"unknown game {name!r}{nearest(name, GAMES)}; import the module that registers it first")
        game = values["game"] if module in sys.modules else name
        return cls.make(game, reasoning=values["reasoning"], perception=values["perception"])


def check_folder(perception: Axis) -> None:
    """Raises `ValueError` where options, as data has them, name a folder of photos that no config or command has."""
    path = perception.get("path") if isinstance(perception, Mapping) else None
    if path and path not in FOLDERS:
        raise ValueError(
            f"its tiles are in {path!r}, and no folder is opened because a file says so; name it: --photos"
        )


def _merge(
    own: Mapping[str, Any], preset: Mapping[str, Any], axis: Axis, levels: tuple[Mapping[str, Any], ...], name: str
) -> dict[str, Any]:
    axis = plain(axis)
    if isinstance(axis, int) and not isinstance(axis, bool):
        if not 0 <= axis < len(levels):
            raise ValueError(f"{name} = {axis}: levels are 0 to {len(levels) - 1}")
        axis = levels[axis]
    if not isinstance(axis, Mapping | None):
        raise ValueError(f"{name} = {axis!r}: expected a level or options by name")
    return {key: plain(value) for key, value in {**own, **preset, **(axis or {})}.items()}


_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class State:
    """A game at one moment, whole: the task and the snapshot. Equal bytes have equal futures."""

    task: Task
    data: bytes

    @classmethod
    def of(cls, task: Task, game: Game) -> Self:
        """The state that a game of a task is in."""
        return cls(task, game.snapshot())

    @classmethod
    def start(cls, task: Task, seed: int) -> Self:
        """Where an episode of a seed starts."""
        game = task.new_game()
        game.reset(seed)
        return cls.of(task, game)

    def game(self) -> Game:
        """A new game in this state."""
        game = self.task.new_game()
        game.restore(self.data)
        return game

    def draw(self) -> Frame:
        """The picture of this state, [height, width, 3]."""
        return self.task.draw(self.game())

    def to_bytes(self) -> bytes:
        """The state in one piece."""
        head = self.task.to_json().encode()
        return _LENGTH.pack(len(head)) + head + self.data

    @classmethod
    def from_bytes(cls, data: Bytes) -> Self:
        """The state that `to_bytes` wrote. Raises `ValueError` on other bytes."""
        data = as_bytes(data, "state")
        try:
            (length,) = _LENGTH.unpack_from(data)
            task = Task.from_json(data[_LENGTH.size : _LENGTH.size + length].decode())
        except (struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a state: {data[:16]!r}... ({error})") from None
        state = cls(task, data[_LENGTH.size + length :])
        state.game()
        return state


def load_games() -> None:
    """Imports every module in `envs.games`: a game is registered by being there."""
    for module in pkgutil.iter_modules(envs.games.__path__, "envs.games."):
        importlib.import_module(module.name)
