"""The page of all options of a run: python -m g1_ray.config_page > docs/configs.md"""

import json
from typing import get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from g1_ray.config import RunConfig
from g1_ray.config_text import allowed, bounds, section_of


def page() -> str:
    """The page: every section with its options."""
    return f"""<!-- Written by `python -m g1_ray.config_page > docs/configs.md`; edit the code instead. -->
# Options of a run

A run is one TOML file; `jobs/configs` has some. Each option can be set on the command line: `learner.num_ranks=2`,
`games.0.perception={{tiles="numbers"}}`. Values are TOML, and what is not TOML is text. `--dry-run` says whether the
run fits, the memory that each role will need, where it is placed and what a step takes, then the run as resolved; with
`--assume 1x24GB` for GPUs that are not there, with `--cluster cluster.yaml` for what a cluster may grow to.

{_tables(RunConfig, "")}"""


def _tables(section: type[BaseModel], prefix: str) -> str:
    rows, inner = [], []
    for name, field in section.model_fields.items():
        below = section_of(field.annotation)
        if below:
            many = get_origin(field.annotation) is tuple
            inner.append(_tables(below, f"{prefix}{name}." + ("N." if many else "")))
        else:
            rows.append(f"| `{prefix}{name}` | {_default(field)} | {_about(field)} |")
    title = f"## {prefix.rstrip('.') or 'The run'}"
    table = ["| option | default | what it is |", "|---|---|---|", *rows]
    return "\n".join([title, "", section.__doc__ or "", "", *table, "", *inner])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return ""
    value = json.dumps(list(field.default) if isinstance(field.default, tuple) else field.default)
    return f"`{value}`"


def _about(field: FieldInfo) -> str:
    limits, choices = bounds(field), allowed(field.annotation)
    one_of = f"one of {', '.join(choices)}" if choices else ""
    notes = "; ".join(filter(None, (limits, one_of)))
    return f"{field.description or ''}{f' ({notes})' if notes else ''}"


if __name__ == "__main__":
    print(page(), end="")
