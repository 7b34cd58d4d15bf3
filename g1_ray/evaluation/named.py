"""Players and games as the command line names them.

A player is `[NAME=]WHAT[?OPTION=VALUE&...]`: `oracle`, `human:me.parquet`, `cold=runs/coldstart`,
`runs/demo?temperature=0&engine.kind=vllm`, `gpt=https://host/v1?model=gpt-x&key_env=API_KEY`. So is a game:
`small=2048?size=3&tiles=numbers`.
"""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from envs import Perception, game_spec
from envs.options import nearest
from g1_ray.config import GameConfig
from g1_ray.config_text import explain
from g1_ray.evaluation.endpoint import KEYS
from g1_ray.evaluation.players import CLASSIC, KINDS, Player
from g1_ray.grammar import is_secret, option_types, parse_spec, read_option, shown


def parse_player(text: str) -> Player:
    """The player that the command line names. Raises `ValueError` of at most three lines, without keys."""
    name, what, options = parse_spec(text)
    if "model" in options and "://" not in what:
        raise ValueError(f"{what!r}: the URL of an endpoint begins with http:// or https://")
    kind, what = _kind_of(what)
    known = [field for field in KINDS[kind].model_fields if field not in KINDS[kind].stands_first]
    values: dict[str, Any] = {"name": name, "what": what}
    for key, value in options.items():
        head, *_ = *above, last = key.split(".")
        if head not in known:
            raise ValueError(f"player {shown(text)!r}: {_unknown(head, known)}")
        place = values
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"player {shown(text)!r}: {part} is a value, and {key} is in it")
        place[last] = _json(value) if head == "extra" else value
    try:
        return KINDS[kind].model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, KINDS[kind], f"player {shown(text)!r}", ())) from None


def _json(text: str) -> Any:
    """The value of a parameter: JSON, or else text."""
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text


def _unknown(option: str, known: Sequence[str]) -> str:
    if is_secret(option):
        return f"{option}: {KEYS}"
    if not known:
        return f"unknown option {option!r}; it has none"
    more = "; what only the endpoint knows is extra.NAME=VALUE, or query.NAME=VALUE" if "extra" in known else ""
    return f"unknown option {option!r}{nearest(option, known)}{more}"


def _kind_of(what: str) -> tuple[str, str]:
    """The kind of a player, and what it is without its kind's name."""
    head, colon, rest = what.partition(":")
    if "://" in what:
        if not what.lower().startswith(("http://", "https://")):
            raise ValueError(f"{shown(what)!r}: the URL of an endpoint begins with http:// or https://")
        return "endpoint", what
    if colon and head in KINDS:
        return head, rest
    if re.fullmatch(r"[\w.]+:[\w-]+", what):
        KINDS.find(what)
        return rest, rest
    if Path(what).is_dir() or (what not in CLASSIC and re.search(r"[/.\\]|^tiny-", what)):
        return "model", what
    return "classic", what  # a word that is no path: a mistake is answered with the players there are


def parse_game(text: str) -> GameConfig:
    """The game that the command line names, `[NAME=]GAME[?OPTION=VALUE&...]`.

    Options are those of either axis, `preset`, `reward`, or an axis as a level: `reasoning=2`. Raises `ValueError`.
    """
    name, game, options = parse_spec(text)
    axes = {"perception": option_types(Perception), "reasoning": option_types(game_spec(game).game_type.options_type)}
    values: dict[str, Any] = {"game": game, "name": name}
    try:
        for key, value in options.items():
            axis = next((axis for axis, types in axes.items() if key in types), "")
            if key in ("preset", "reward"):
                values[key] = value
            elif key in axes and not value.isdecimal():
                raise ValueError(f"{key}={value} is no level; give options by their own names")
            elif key in axes:
                values[key] = int(value)
            else:
                others = [*axes["perception"], *axes["reasoning"], "preset", "reward"]
                values.setdefault(axis, {})[key] = read_option(key, value, axes.get(axis, {}), others)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if not name and options:
        values["name"] = re.sub(r"[^A-Za-z0-9_.-]+", "-", text.partition(":")[2] or text)
    try:
        return GameConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, GameConfig, f"game {text!r}", ())) from None
