"""The file of a config as it is read, with what replaces values of it on a command line, and checked by its schema."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from envs.options import nearest
from g1_ray.config_text import explain
from g1_ray.files import read_json, read_text
from g1_ray.grammar import key_value


class Section(BaseModel):
    """A table of the file: unknown keys are refused, values don't change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


def read_table(path: Path) -> dict[str, Any]:
    """The values of a TOML or JSON file. Raises `ValueError` that names the file."""
    if not path.is_file():
        if (path / "config.json").is_file():
            raise ValueError(f"{path}: that is a folder; what it was made with is {path / 'config.json'}")
        files = path if path.is_dir() else path.parent
        around = [str(file) for file in sorted(files.glob("*.toml"))]
        what = "that is a folder, give a file" if path.is_dir() else "there is no such file"
        raise ValueError(f"{path}: {what}{nearest(str(path), around) if around else ', such as NAME.toml'}")
    try:
        values = read_json(path) if path.suffix == ".json" else tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: no TOML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a table of options")
    return values


def override_in(values: dict[str, Any], override: str) -> None:
    """Puts the value of `a.b.0.c=value` where it belongs."""
    key, text = key_value(override, "key=value, such as learner.num_ranks=2")
    parts = key.split(".")
    if not all(parts):
        raise ValueError(f"{override!r}: expected key=value, such as learner.num_ranks=2")
    place: Any = values
    for depth, part in enumerate(parts):
        above, slot = ".".join(parts[:depth]), part  # type: str, int | str
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise ValueError(f"{override!r}: {above} has {len(place)} entries, counted from 0")
            slot = int(part)
        elif not isinstance(place, dict):
            raise ValueError(f"{override!r}: {above} = {place!r} is not a table; give all of it: {above}={{...}}")
        if depth == len(parts) - 1:
            place[slot] = _value(text.strip(), override)
        elif isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        if depth < len(parts) - 1:
            place = place[slot]


def _value(text: str, override: str) -> Any:
    """A TOML value, or else plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text[:1] in tuple("[{\"'"):
            raise ValueError(f"{override!r}: {text} is not a TOML value; lists are [1, 2], tables {{a = 1}}") from None
        return text


Schema = TypeVar("Schema", bound=BaseModel)


def load_section(schema: type[Schema], path: str | Path, overrides: Sequence[str] = ()) -> Schema:
    """What a file with overrides describes, by any schema. Raises `ValueError` of at most three lines."""
    values = read_table(Path(path))
    _check_kind(schema, values, path)
    for override in overrides:
        override_in(values, override)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, schema, str(path), overrides)) from None


OF_ONE_KIND = {"train": ("rollout", "algorithm", "learner", "asynchrony"), "coldstart": ("sft", "teacher")}
"""Command -> tables that only its configs have."""


def _check_kind(schema: type[BaseModel], values: Mapping[str, Any], path: str | Path) -> None:
    """Raises `ValueError` where a config is another command's."""
    for command, tables in OF_ONE_KIND.items():
        found = [table for table in tables if table in values]
        if found and not set(tables) & set(schema.model_fields):
            raise ValueError(
                f"{path}: it has the table {found[0]!r}, so it is for another command: g1-ray {command} {path}"
            )
