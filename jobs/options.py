"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from envs import Perception, Task, game_spec
from envs.core import GameOptions
from envs.options import Options, nearest


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """--preset, --reasoning and --perception."""
    parser.add_argument("--preset", default="", help="a named setting of the game, such as paper")
    parser.add_argument("--reasoning", default="", help="a level, or options: size=5,goal=256")
    parser.add_argument("--perception", default="", help="a level, or options: tiles=photos,noise=0.3")


def task_of(name: str, preset: str, reasoning: str, perception: str) -> Task:
    """The task that the command line describes. Raises `ValueError` that names what is wrong."""
    spec = game_spec(name)
    return Task.make(
        name,
        preset=preset,
        reasoning=axis(reasoning, spec.game_type.options_type),
        perception=axis(perception, Perception),
    )


def axis(text: str, options: type[GameOptions] | type[Options]) -> int | Mapping[str, Any] | None:
    """`2` is a level; `a=1,b=x` are options, each as its default's type; '' is the game's own setting."""
    if not text:
        return None
    if text.isdecimal():
        return int(text)
    fields: dict[str, Callable[[str], Any]] = {f.name: type(f.default) for f in dataclasses.fields(options)}
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if key not in fields or not equals:
            raise ValueError(f"{part.strip()!r}: expected a level or option=value{nearest(key, fields)}")
        try:
            values[key] = fields[key](value)
        except ValueError:
            raise ValueError(f"{key} = {value!r}: expected {getattr(fields[key], '__name__', '')}") from None
    return values
