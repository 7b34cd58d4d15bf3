"""Parquet files, whole or not at all; pictures as they leave the house: in a column of them, as PNG, as data URI."""

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from envs import State
from g1_ray.files import written


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes tables of a schema one after the other into a file; returns its rows."""
    rows = 0
    with (
        written(path) as beside,
        pq.ParquetWriter(beside, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in tables:
            writer.write_table(table)
            rows += len(table)
    return rows


def with_image(columns: pa.Schema) -> pa.Schema:
    """The columns after one called `image`, which Hugging Face's `datasets` knows for its own Image feature."""
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    about = {"info": {"features": {"image": {"_type": "Image"}}}}  # it finds the others' features in the schema
    return pa.schema([image, *columns], metadata={"huggingface": json.dumps(about)})


def png_of(state: State) -> bytes:
    """The picture of a state as a PNG file."""
    png = io.BytesIO()
    Image.fromarray(state.draw()).save(png, "PNG")
    return png.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG file in a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
