"""What is typed on a command line: `KEY=VALUE`, and `[NAME=]WHAT[?KEY=VALUE&...]` for players and games."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from envs.options import Options, nearest

_SECRET = re.compile(
    r"(^|[-_.])((api|access|account|auth|functions?|private|secret|shared|subscription)[-_]?key"
    r"|secret|password|passwd|credentials?|sig|signature|authorization)$"
    r"|(^|\.)(key|auth|code|token)$|(api|access|auth|bearer|refresh|session|security)[-_.]?token$",
    re.IGNORECASE,
)
_NAME = re.compile(r"([^=?/\\:~]*)=(.*)|([^=?]*)=(https?://.*)", re.DOTALL | re.IGNORECASE)
"""`NAME=WHAT`: a path that has a `=` in it has no name before it, an address may have any."""


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
    """The parts of a player or a game. What is there as a file or a folder may have any sign in its path.

    Raises `ValueError`, in which nothing is quoted that looks like a key.
    """
    named, name, rest = _NAME.fullmatch(text), "", text
    cut = _path_end(text)
    if cut is None and named:
        name, rest = named[1] or named[3] or "", named[2] or named[4] or ""
        cut = _path_end(rest)
    if cut is None:
        cut = rest.find("?") if "?" in rest else len(rest)
    options: dict[str, str] = {}
    for part in rest[cut + 1 :].split("&") if rest[cut + 1 :] else ():
        key, value = key_value(
            shown(part) if "=" not in part else part, f"?OPTION=VALUE&OPTION=VALUE in {shown(text)!r}"
        )
        if key in options:
            raise ValueError(f"{shown(text)!r}: {key} is given twice")
        options[key] = value
    return Spec(name, rest[:cut], options)


def _path_end(text: str) -> int | None:
    """Where the path of what is there ends, before options; None where nothing is."""
    ends = [len(text), *(at for at in reversed(range(len(text))) if text[at] == "?")]
    return next((at for at in ends if os.path.exists(os.path.expanduser(text[:at]))), None)


def is_secret(name: str) -> bool:
    """Whether an option of that name would hold a key or a password: "api-key", "sig", but not "key_env"."""
    return bool(_SECRET.search(name))


def shown(text: str) -> str:
    """The text of a player, or an address, as it may be shown and kept: without passwords and keys."""
    text = re.sub(r"(?<=://)[^/?#\s]*@", "...@", text)
    return re.sub(
        r"(?<=[?&])([^=&\s]+)=[^&\s]*", lambda part: f"{part[1]}=..." if is_secret(part[1]) else part[0], text
    )


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
