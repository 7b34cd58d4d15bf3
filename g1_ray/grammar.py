"""What is typed on a command line: `KEY=VALUE`, and `[NAME=]WHAT[?KEY=VALUE&...]` for players and games."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from envs.options import Options, nearest


def key_value(text: str, expected: str) -> tuple[str, str]:
    """The two parts of `KEY=VALUE`. Raises `ValueError` that says what was `expected`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{text!r}: expected {expected}")
    return key.strip(), value


class Spec(NamedTuple):
    """`NAME=WHAT?KEY=VALUE&...` in its parts."""

    name: str
    """'' where there is none."""
    what: str
    options: dict[str, str]


def parse_spec(text: str) -> Spec:
    """The parts of a player or a game. Raises `ValueError`."""
    head, _, tail = text.partition("?")
    name, equals, what = head.partition("=")
    pairs = [key_value(part, f"?OPTION=VALUE&OPTION=VALUE in {text!r}") for part in tail.split("&") if tail]
    return Spec(name if equals else "", what if equals else head, dict(pairs))


def option_types(options: type[Options]) -> dict[str, type]:
    """The type of each option: that of its default."""
    return {field.name: type(field.default) for field in dataclasses.fields(options)}


def read_option(key: str, value: str, types: Mapping[str, type], others: Iterable[str] = ()) -> Any:
    """The value of an option as its type. Raises `ValueError`; `others` are options that are read elsewhere."""
    if key not in types:
        raise ValueError(f"unknown option {key!r}{nearest(key, [*types, *others])}")
    try:
        return types[key](value)
    except ValueError:
        raise ValueError(f"{key} = {value!r}: expected {types[key].__name__}") from None


def parse_axis(text: str, options: type[Options]) -> int | Mapping[str, Any] | None:
    """`2` is a level; `a=1,b=x` are options; '' is the game's own setting. Raises `ValueError`."""
    if not text:
        return None
    if text.isdecimal():
        return int(text)
    pairs = [key_value(part, "a level or option=value") for part in text.split(",")]
    return {key: read_option(key, value.strip(), option_types(options)) for key, value in pairs}
