"""Options as frozen dataclasses whose fields carry their help and their bounds.

One description serves the check, the error message, the command line and the generated docs.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field with its meaning (unit included) and its bounds, both ends allowed."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'rows'?` for the closest of `known`, or the list of them when none is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def plain(value: Any) -> Any:
    """Numbers and words of numpy as those of Python, all else as it is: what JSON and the checks of options take."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of every options class. Making one checks each value: `ValueError` names the value and the fix."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check(field, getattr(self, field.name))

    def _check(self, field: dataclasses.Field[Any], value: Any) -> None:
        kind, given = type(field.default), value
        value = plain(value)
        if kind is float and type(value) is int:
            value = float(value)
        if value is not given:
            object.__setattr__(self, field.name, value)
        if type(value) is not kind:
            raise ValueError(f"{field.name} = {value!r}: expected {kind.__name__}, such as {field.default!r}")
        low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
        if choices is not None and value not in choices:
            hint = nearest(value, choices) if isinstance(value, str) else f"; known: {', '.join(map(str, choices))}"
            raise ValueError(f"{field.name} = {value!r} is not one of the choices{hint}")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise ValueError(f"{field.name} = {value!r}: must be {bounds(field)}")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Options from a mapping; what is left out has its default. Raises `ValueError` on an unknown key."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"unknown option {key!r}{nearest(key, known)}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Every option with its value, ready for JSON."""
        return dataclasses.asdict(self)


def bounds(field: dataclasses.Field[Any]) -> str:
    """The allowed values of an option in words, '' when any will do."""
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    if choices is not None:
        return "one of " + ", ".join(map(str, choices))
    if low is not None and high is not None:
        return f"{low} to {high}"
    if low is not None:
        return f"{low} or more"
    return "" if high is None else f"{high} or less"
