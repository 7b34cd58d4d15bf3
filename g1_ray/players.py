"""Who plays in an evaluation: classic players, a recorded human, models, models behind endpoints.

On the command line a player is `[NAME=]WHAT[?OPTION=VALUE&...]`: `oracle`, `human:me.parquet`, `cold=runs/coldstart`,
`runs/demo?temperature=0&engine.kind=vllm`, `gpt=https://host/v1?model=gpt-x&key_env=API_KEY`. So is a game:
`small=2048?size=3&tiles=numbers`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from envs import PLAYERS, Perception, Task, game_spec
from envs.options import nearest
from g1_ray.config import EngineConfig, GameConfig, model_path
from g1_ray.config_text import explain
from g1_ray.endpoint import EndpointConfig
from g1_ray.evaluation import Choose

CLASSIC = (*PLAYERS, "teacher")
"""Players that look at the game itself; the teacher is the erring oracle of the cold start."""


class PlayerConfig(EndpointConfig):
    """A player, whole."""

    name: str = Field("", description="what it is called in tables; default: what it is")
    kind: Literal["classic", "human", "model", "endpoint"]
    what: str = Field(description="a classic player, a file of moves, a model's folder or name, an endpoint's URL")
    top_p: float = Field(1.0, gt=0, le=1)
    dtype: Literal["", "float32", "bfloat16"] = Field("", description="of a model; default: bfloat16 on a GPU")
    engine: dict[str, Any] = Field(
        {}, description="of a model: options of EngineConfig; the rest is as fits the cluster"
    )
    price_in: float = Field(0.0, ge=0, description="of an endpoint, for a million tokens of prompts")
    price_out: float = Field(0.0, ge=0, description="of an endpoint, for a million tokens of answers")

    @model_validator(mode="after")
    def _check(self) -> PlayerConfig:
        match self.kind:
            case "classic" if self.what not in CLASSIC:
                raise ValueError(f"what = {self.what!r} is no classic player{nearest(self.what, CLASSIC)}")
            case "human" if not Path(self.what).is_file():
                raise ValueError(f"what = {self.what!r}: no such file; g1-ray play GAME --save FILE.parquet makes one")
            case "model":
                if not is_adapter(self.what):
                    model_path(self.what, "what")
                checked = EngineConfig(**self.engine)
                object.__setattr__(self, "engine", {key: getattr(checked, key) for key in self.engine})
            case "endpoint":
                if not self.model:
                    raise ValueError("an endpoint needs the name of its model: URL?model=NAME")
                if self.key_env and not os.environ.get(self.key_env):
                    raise ValueError(f"key_env = {self.key_env!r}: that environment variable is not set")
                object.__setattr__(self, "url", self.what)
        if not self.name:
            object.__setattr__(self, "name", self.model or self.what)
        return self

    @property
    def is_asked(self) -> bool:
        """Whether it is shown pictures and answers in text."""
        return self.kind in ("model", "endpoint")

    def resolved_engine(self, cluster_gpus: float, max_model_len: int) -> EngineConfig:
        """Its engine: vLLM on a GPU where the cluster has one, else transformers, if not told otherwise."""
        gpus = self.engine.get("gpus", min(cluster_gpus, 1))
        kind = "vllm" if gpus else "transformers"
        return EngineConfig(**{"kind": kind, "gpus": gpus, "max_model_len": max_model_len, **self.engine})


def parse_player(text: str) -> PlayerConfig:
    """The player that the command line names. Raises `ValueError` of at most three lines."""
    name, what, options = _split(text)
    if what.startswith("human:"):
        kind, what = "human", what.removeprefix("human:")
    elif what.startswith(("http://", "https://")):
        kind = "endpoint"
    elif what in CLASSIC or not re.search(r"[/.\\]|^tiny-", what):
        kind = "classic"  # a word that is no path: a mistake is answered with the players there are
    else:
        kind = "model"
    if kind == "classic" and Path(what).is_dir():
        kind = "model"
    engine = {key.removeprefix("engine."): options.pop(key) for key in list(options) if key.startswith("engine.")}
    try:
        return PlayerConfig.model_validate({"name": name, "kind": kind, "what": what, "engine": engine, **options})
    except ValidationError as error:
        raise ValueError(explain(error, PlayerConfig, f"player {text!r}", ())) from None


def parse_game(text: str) -> GameConfig:
    """The game that the command line names, `[NAME=]GAME[?OPTION=VALUE&...]`.

    Options are those of either axis, `preset`, `reward`, or an axis as a level: `reasoning=2`. Raises `ValueError`.
    """
    name, game, options = _split(text)
    axes: dict[str, tuple[str, Callable[[str], Any]]] = {}
    for axis, kind in (("perception", Perception), ("reasoning", game_spec(game).game_type.options_type)):
        axes |= {f.name: (axis, type(f.default)) for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {"game": game, "name": name}
    for key, value in options.items():
        if key in ("preset", "reward"):
            values[key] = value
        elif key in ("reasoning", "perception"):
            if not value.isdecimal():
                raise ValueError(f"{text!r}: {key}={value} is no level; give options by their own names")
            values[key] = int(value)
        elif key in axes:
            axis, read = axes[key]
            try:
                values.setdefault(axis, {})[key] = read(value)
            except ValueError:
                raise ValueError(f"{text!r}: {key} = {value!r}: expected {getattr(read, '__name__', '')}") from None
        else:
            raise ValueError(f"{text!r}: unknown option {key!r}{nearest(key, [*axes, 'preset', 'reward'])}")
    if not name and options:
        values["name"] = re.sub(r"[^A-Za-z0-9_.-]+", "-", text.partition(":")[2] or text)
    try:
        return GameConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, GameConfig, f"game {text!r}", ())) from None


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """`NAME=WHAT?a=1&b=2` in its parts."""
    head, _, tail = text.partition("?")
    name, equals, what = head.partition("=")
    options = {}
    for part in tail.split("&") if tail else []:
        key, given, value = part.partition("=")
        if not key or not given:
            raise ValueError(f"{text!r}: {part!r} is no option; expected ?OPTION=VALUE&OPTION=VALUE")
        options[key] = value
    return (name, what, options) if equals else ("", head, options)


def is_adapter(path: str) -> bool:
    """Whether a folder holds a LoRA adapter that peft saved, and no model."""
    folder = Path(path).expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def chooser(player: PlayerConfig, task: Task) -> Choose:
    """What a classic player does."""
    if player.what != "teacher":
        return PLAYERS[player.what]
    from g1_ray.teacher import Oracle

    return Oracle(task)
