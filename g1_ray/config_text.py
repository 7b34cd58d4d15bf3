"""What is wrong with options, in words."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from envs.options import nearest

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "dict": "a table, options by name",
    "model": "a table, options by name",
    "tuple": "a list",
}
"""First word of pydantic's error type -> what was expected."""


def explain(error: ValidationError, model: type[BaseModel], file: str, overrides: Sequence[str] = ()) -> str:
    """At most three lines, one for each option that is wrong: where it was given, key, value and what is allowed."""
    problems: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for details in error.errors():
        problems.setdefault(_place(details["loc"], model), []).append(details)
    # A list with a bad entry is also reported as too short.
    inner = [place for place in problems if not any(other[: len(place)] == place != other for other in problems)]
    lines = []
    for place in inner:
        key = ".".join(map(str, place))
        sources = [given for given in overrides if _touches(given.partition("=")[0].strip(), key)]
        source = f"{sources[-1]!r}" if sources else file
        lines.append(f"{source}: {_problem(place, problems[place], model)}")
    return "\n".join(lines if len(lines) <= 3 else [*lines[:2], f"and {len(lines) - 2} more"])


def _touches(given: str, key: str) -> bool:
    return f"{key}.".startswith(f"{given}.") or (bool(key) and f"{given}.".startswith(f"{key}."))


def _place(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[int | str, ...]:
    """The keys of a location, without the names of a union's members that pydantic puts after them."""
    here: Any = model
    for depth, part in enumerate(loc):
        if isinstance(part, str):
            section = section_of(here)
            if section is None:
                return loc[:depth]
            field = section.model_fields.get(part)
            here = field.annotation if field else None
    return loc


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The table that an annotation holds: `GameConfig` of `tuple[GameConfig, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(section_of, get_args(annotation)) if found), None)


def _field(place: Sequence[int | str], model: type[BaseModel]) -> FieldInfo | None:
    field, section = None, model  # type: FieldInfo | None, type[BaseModel] | None
    for part in place:
        if isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            section = section_of(field.annotation) if field else None
    return field


def _problem(place: tuple[int | str, ...], errors: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    first = next((error for error in errors if error["type"] == "value_error"), errors[0])
    kind, given, key = first["type"], first["input"], ".".join(map(str, place))
    field = _field(place, model)
    if kind == "value_error":
        return ": ".join(filter(None, (key, str(first["ctx"]["error"]))))
    if kind == "missing":
        about = f" ({field.description})" if field and field.description else ""
        return f"{key} is missing{about}"
    if kind == "extra_forbidden":
        above = _field(place[:-1], model)
        section = section_of(above.annotation) if above else model
        return f"unknown option {key!r}{nearest(str(place[-1]), section.model_fields if section else ())}"
    shown = repr(given) if len(repr(given)) <= 60 else repr(given)[:57] + "..."
    if kind == "literal_error" and field:
        choices = allowed(field.annotation)
        return f"{key} = {shown} is not one of the choices{nearest(str(given), choices)}"
    if kind in ("too_short", "too_long"):
        ctx = first["ctx"]
        size = f"at least {ctx['min_length']}" if kind == "too_short" else f"no more than {ctx['max_length']}"
        return f"{key} = {shown}: give {size}"
    if kind == "string_pattern_mismatch":
        return f"{key} = {shown}: use letters, digits, '.', '_' and '-' only, a letter or digit first"
    limits = bounds(field) if field else ""
    words = {_EXPECTED.get(error["type"].partition("_")[0], "") for error in errors} - {""}
    if kind == "finite_number" or not words:
        return f"{key} = {shown}: must be {limits or 'finite'}"
    return f"{key} = {shown}: expected {' or '.join(sorted(words))}{f', {limits}' if limits else ''}"


def allowed(annotation: Any) -> tuple[str, ...]:
    """The words that a `Literal`, or a list of them, allows."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for inner in get_args(annotation) for word in allowed(inner))


def bounds(field: FieldInfo) -> str:
    """The allowed values of a number in words, '' when any will do."""
    words = {"gt": "above {:g}", "ge": "{:g} or more", "lt": "below {:g}", "le": "at most {:g}"}
    found = [
        text.format(getattr(mark, name))
        for mark in field.metadata
        for name, text in words.items()
        if hasattr(mark, name)
    ]
    return " and ".join(found)


def flat(value: Any, key: str = "") -> dict[str, str]:
    """The options of a config, as JSON holds it, by their whole names, e.g. {"rollout.group_size": "8"}."""
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {k: v for name, its in items for k, v in flat(its, f"{key}.{name}" if key else str(name)).items()}
    return {key: value if isinstance(value, str) else json.dumps(value)}


def changes(before: Mapping[str, Any], now: BaseModel) -> dict[str, str]:
    """What each option that differs was and is, e.g. {"rollout.group_size": "8 -> 16"}.

    `before` is as JSON has it: a config of somebody else's is compared, and not made.
    """
    old, new = flat(before), flat(now.model_dump(mode="json"))
    return {key: f"{old.get(key, 'none')} -> {new.get(key, 'none')}"
            for key in [*old, *(new.keys() - old.keys())] if old.get(key) != new.get(key)}  # fmt: skip
