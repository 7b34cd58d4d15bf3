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
_COLUMNS = {
    "prompt": ("string", pa.string()),
    "answer": ("string", pa.string()),
    "game": ("string", pa.string()),
    "source": ("string", pa.string()),
    "state": ("binary", pa.binary()),
    "action": ("int32", pa.int32()),
    "erred": ("bool", pa.bool_()),
}


def write_dataset(path: Path, examples: Iterable[Example]) -> int:
    """Writes a parquet file, whole or not at all; returns its rows.

    Columns: `image` (Hugging Face's Image: PNG), `prompt` and `answer` to train on; `state` (`State.from_bytes`),
    `action`, `game`, `erred` and `source` to look into.
    """
    features = {"image": {"_type": "Image"}} | {
        name: {"dtype": dtype, "_type": "Value"} for name, (dtype, _) in _COLUMNS.items()
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), *((name, kind) for name, (_, kind) in _COLUMNS.items())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, rest = 0, iter(examples)
    with pq.ParquetWriter(partial, schema) as writer:
        while batch := list(islice(rest, ROWS)):
            writer.write_table(pa.Table.from_pylist([_row(example) for example in batch], schema=schema))
            rows += len(batch)
    os.replace(partial, path)
    return rows


def _row(example: Example) -> dict[str, Any]:
    png = io.BytesIO()
    Image.fromarray(example.state.draw()).save(png, "PNG")
    return {
        "image": {"bytes": png.getvalue(), "path": None},
        "prompt": _prompt(example.state.task),
        "answer": example.answer,
        "game": example.game,
        "source": example.source,
        "state": example.state.to_bytes(),
        "action": example.action,
        "erred": example.erred,
    }


@functools.lru_cache(maxsize=64)
def _prompt(task: Task) -> str:
    return Codec(task).prompt()


def read_dataset(path: Path) -> list[Example]:
    """The examples of a parquet file. Raises `ValueError` where it is not one that `write_dataset` wrote."""
    columns = ["game", "state", "answer", "action", "erred", "source"]
    missing = sorted(set(columns) - set(pq.read_schema(path).names))
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}; make the data set with g1-ray coldstart")
    rows = pq.read_table(path, columns=columns).to_pylist()
    return [Example(**(row | {"state": State.from_bytes(row["state"])})) for row in rows]
