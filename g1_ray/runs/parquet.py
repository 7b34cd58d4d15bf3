"""Parquet files, whole or not at all, and their column of pictures."""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from g1_ray.files import written


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes tables of a schema one after the other into a file; returns its rows."""
    rows = 0
    with written(path) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            rows += len(table)
    return rows


def check_columns(path: Path, names: Iterable[str], fix: str) -> None:
    """Raises `ValueError`, with the `fix`, where a file lacks one of the columns."""
    missing = sorted(set(names) - set(pq.read_schema(path).names))
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}; {fix}")


def with_image(columns: pa.Schema) -> pa.Schema:
    """The columns after one called `image`, which Hugging Face's `datasets` knows for its own Image feature."""
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    about = {"info": {"features": {"image": {"_type": "Image"}}}}  # it finds the others' features in the schema
    return pa.schema([image, *columns], metadata={"huggingface": json.dumps(about)})
