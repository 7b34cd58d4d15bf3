"""Examples as parquet, pictures included: readable with `datasets.load_dataset("parquet", data_files=...)`."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from envs import Codec, State, Task
from g1_ray.coldstart import Example

ROWS = 256
"""Rows written at a time."""
_COLUMNS = pa.schema(
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


def with_image(columns: pa.Schema) -> pa.Schema:
    """The columns after one called `image`, which Hugging Face's `datasets` knows for its own Image feature."""
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    about = {"info": {"features": {"image": {"_type": "Image"}}}}  # it finds the others' features in the schema
    return pa.schema([image, *columns], metadata={"huggingface": json.dumps(about)})


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes tables of a schema one after the other into a parquet file, whole or not at all; returns its rows."""
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            rows += len(table)
    os.replace(partial, path)
    return rows


def write_dataset(path: Path, examples: Iterable[Example]) -> int:
    """Writes a parquet file, whole or not at all; returns its rows.

    Columns: `image` (Hugging Face's Image: PNG), `prompt` and `answer` to train on; `state` (`State.from_bytes`),
    `action`, `game`, `erred` and `source` to look into.
    """
    schema, rest = with_image(_COLUMNS), iter(examples)
    batches = iter(lambda: [_row(example) for example in islice(rest, ROWS)], [])
    return write_tables(path, schema, (pa.Table.from_pylist(batch, schema=schema) for batch in batches))


def png_of(state: State) -> bytes:
    """The picture of a state as a PNG file."""
    png = io.BytesIO()
    Image.fromarray(state.draw()).save(png, "PNG")
    return png.getvalue()


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


@functools.lru_cache(maxsize=64)
def prompt_of(task: Task) -> str:
    """What a model is asked about every board of a task."""
    return Codec(task).prompt()


def read_dataset(path: Path) -> list[Example]:
    """The examples of a parquet file. Raises `ValueError` where it is not one that `write_dataset` wrote."""
    columns = ["game", "state", "answer", "action", "erred", "source"]
    missing = sorted(set(columns) - set(pq.read_schema(path).names))
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}; make the data set with g1-ray coldstart")
    rows = pq.read_table(path, columns=columns).to_pylist()
    return [Example(**(row | {"state": State.from_bytes(row["state"])})) for row in rows]
