"""Examples as parquet, pictures included: readable with `datasets.load_dataset("parquet", data_files=...)`."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from envs.codec import prompt_of
from g1_ray.coldstart.examples import Example
from g1_ray.runs.layouts import Layout, state_in
from g1_ray.runs.parquet import png_of, with_image, write_tables

ROWS = 256
"""Rows written at a time."""
SCHEMA = with_image(
    pa.schema(
        [
            ("prompt", pa.string()),
            ("answer", pa.string()),
            ("game", pa.string()),
            ("source", pa.string()),
            ("state", pa.binary()),
            ("action", pa.int32()),
            ("erred", pa.bool_()),
        ]
    )
)


def write_dataset(path: Path, examples: Iterable[Example]) -> int:
    """Writes a parquet file, whole or not at all; returns its rows.

    Columns: `image` (Hugging Face's Image: PNG), `prompt` and `answer` to train on; `state` (`State.from_bytes`),
    `action`, `game`, `erred` and `source` to look into.
    """
    rest = iter(examples)
    batches = iter(lambda: [_row(example) for example in islice(rest, ROWS)], [])
    return write_tables(path, SCHEMA, (pa.Table.from_pylist(batch, schema=SCHEMA) for batch in batches))


def _row(example: Example) -> dict[str, Any]:
    return {
        "image": {"bytes": png_of(example.state), "path": None},
        "prompt": prompt_of(example.state.task),
        "answer": example.answer,
        "game": example.game,
        "source": example.source,
        "state": example.state.to_bytes(),
        "action": example.action,
        "erred": example.erred,
    }


def read_dataset(path: Path) -> list[Example]:
    """The examples of a parquet file. Raises `ValueError` where it is not one that `write_dataset` wrote."""
    columns = ["game", "state", "answer", "action", "erred", "source"]
    layout = Layout(SCHEMA, frozenset({"action"}), "make the data set with g1-ray coldstart")
    rows = layout.rows(path, columns)
    return [Example(**{name: row[name] for name in columns} | {"state": state_in(row)}) for row in rows]
