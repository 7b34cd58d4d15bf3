"""The parquet files of a run and of an evaluation: their columns, and how they are read, whoever wrote them.

A small file may unpack to any size, so what it would take is reckoned before it is taken.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from envs import State

MOST_BYTES = 1 << 29
"""Of what is read of a file, unpacked."""
MOST_ROWS = 2_000_000
"""Of a file."""
BATCH = 4096
_CELL = 32
"""Bytes that a value takes besides what it holds."""
Row = dict[str, Any]
"""A row; `file` is where it stands."""


@dataclass(frozen=True)
class Layout:
    """What a sort of files looks like."""

    schema: pa.Schema
    may_lack: frozenset[str]
    """Columns that may have nothing in a row."""
    fix: str
    """What to do about a file that is none of these."""

    def table(self, path: Path, columns: Sequence[str] = (), keep: pc.Expression | None = None) -> pa.Table:
        """The rows to `keep` of a file, with some columns or all of them. Raises `ValueError` that names the file."""
        names = list(columns) or self.schema.names
        return pa.Table.from_batches(self.batches(path, names, keep), pa.schema([self.schema.field(n) for n in names]))

    def rows(self, path: Path, columns: Sequence[str] = (), keep: pc.Expression | None = None) -> list[Row]:
        """The same as dicts, which say where they come from."""
        return [{**row, "file": path} for row in self.table(path, columns, keep).to_pylist()]

    def batches(
        self, path: Path, names: Sequence[str], keep: pc.Expression | None = None, size: int = BATCH
    ) -> Iterator[pa.RecordBatch]:
        """The same, so many rows at a time."""
        wanted, left = pa.schema([self.schema.field(name) for name in names]), MOST_BYTES
        with self._told(path), self._opened(path, names) as file:
            for read in file.iter_batches(size, columns=list(names), use_threads=False):
                batch = pa.Table.from_batches([read]).select(list(names))
                batch = batch.filter(keep) if keep is not None else batch
                left -= sum(map(_size, batch.columns))
                if left < 0:
                    raise self._too_large(path)
                for whole in _plain(batch).cast(wanted).to_batches():
                    self._check_whole(whole)
                    yield whole

    def num_rows(self, path: Path) -> int:
        """How many rows a file has. Raises `ValueError` where it is none of these."""
        with self._told(path), self._opened(path, self.schema.names) as file:
            return int(file.metadata.num_rows)

    @contextlib.contextmanager
    def _opened(self, path: Path, names: Sequence[str]) -> Iterator[pq.ParquetFile]:
        with path.open("rb") as source:
            found = pq.read_schema(source)
            if missing := sorted(set(names) - set(found.names)):
                raise ValueError(f"no column {missing[0]!r}")
            # Equal texts stay one text, until it is known what they take.
            texts = [field.name for field in found if pa.types.is_string(field.type) or pa.types.is_binary(field.type)]
            with pq.ParquetFile(source, read_dictionary=texts, page_checksum_verification=True) as file:
                its = file.metadata
                groups = [its.row_group(i) for i in range(its.num_row_groups)]
                chunks = [group.column(i) for group in groups for i in range(its.num_columns)]
                read = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names]
                size = sum(chunk.total_uncompressed_size + _CELL * chunk.num_values for chunk in read)
                if size > MOST_BYTES or its.num_rows > MOST_ROWS:
                    raise self._too_large(path)
                yield file

    def _too_large(self, path: Path) -> ValueError:
        size = path.stat().st_size / 1e6
        return ValueError(f"{size:.1f} MB that unpack to more than {MOST_BYTES >> 20} MB, or {MOST_ROWS:,} rows")

    def _check_whole(self, batch: pa.RecordBatch) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if column.null_count and name not in self.may_lack:
                raise ValueError(f"a row has no {name!r}")

    @contextlib.contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        try:
            yield
        except pa.ArrowException as error:
            what = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise ValueError(f"{path}: no parquet file, or a broken one ({what}); {self.fix}") from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise ValueError(f"{path}: a broken parquet file ({str(error)[:120]}); {self.fix}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {self.fix}") from None


def _size(column: pa.ChunkedArray) -> int:
    """Bytes that a column takes as Python's own values."""
    size = 0
    for part in column.chunks:
        size += _CELL * len(part)
        if pa.types.is_dictionary(part.type):
            lengths = pc.binary_length(part.dictionary).take(part.indices)
            size += pc.sum(lengths).as_py() or 0
        elif pa.types.is_nested(part.type):
            size += _CELL * (part.nbytes // 4)
        else:
            size += part.nbytes
    return size


def _plain(table: pa.Table) -> pa.Table:
    """With every text as it is, and not as its number among the texts."""
    columns = [
        pa.chunked_array(
            [part.dictionary_decode() for part in column.chunks], column.type.value_type
        ) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]  # fmt: skip
    return pa.table(columns, names=table.column_names)


def state_in(row: Mapping[str, Any]) -> State:
    """The state of a row. Raises `ValueError` that names the row's file."""
    with naming(row["file"]):
        return State.from_bytes(row["state"])


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What is wrong with a state, with the file that it stands in."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


TURNS = Layout(
    pa.schema(
        [
            ("game", pa.string()),
            ("group", pa.int64()),
            ("rollout", pa.int32()),
            ("turn", pa.int32()),
            ("task", pa.string()),  # JSON, see Task.from_json
            ("state", pa.binary()),  # whole, see State.from_bytes
            ("prompt_ids", pa.list_(pa.int32())),
            ("completion_ids", pa.list_(pa.int32())),
            ("logprobs", pa.list_(pa.float32())),  # of the completion's tokens, nats
            ("versions", pa.list_(pa.int32())),  # the policy that sampled each of them
            ("finish_reason", pa.string()),
            ("text", pa.string()),
            ("action", pa.int32()),  # null: unreadable
            ("action_text", pa.string()),
            ("cause", pa.string()),  # why it was unreadable
            ("legal", pa.bool_()),
            ("gain", pa.float64()),
            ("reward", pa.float64()),
            ("reward_game", pa.float64()),
            ("reward_format", pa.float64()),
            ("reward_perception", pa.float64()),
            ("perception_exact", pa.bool_()),
            ("over", pa.bool_()),  # whether the episode ended with this turn
        ]
    ),
    frozenset({"action", "reward_game", "reward_format", "reward_perception", "perception_exact"}),
    "trajectories are what g1-ray train writes; put the file itself there, or take it away",
)
"""A run's trajectories/*.parquet: a row for each turn."""
MOVES = Layout(
    pa.schema(
        [
            ("game", pa.string()),
            ("player", pa.string()),
            ("seed", pa.int64()),  # of the run
            ("board", pa.int32()),  # number of the board within the run
            ("move", pa.int32()),  # number within the run
            ("task", pa.string()),  # JSON, see Task.from_json
            ("state", pa.binary()),  # before the move, whole, see State.from_bytes
            ("text", pa.string()),  # the answer; '' for players that give none
            ("action", pa.int32()),  # null: unreadable
            ("action_text", pa.string()),
            ("cause", pa.string()),  # why it was unreadable
            ("legal", pa.bool_()),
            ("gain", pa.float64()),
            ("reward_game", pa.float64()),
            ("regret", pa.float64()),  # what the best legal move earns, less this one's reward
            ("perception_exact", pa.bool_()),  # null for players that describe no boards
            ("perception_share", pa.float64()),  # of cells that are right
            ("over", pa.bool_()),  # whether the board ended with this move
            ("success", pa.bool_()),  # whether it was won with it
            ("prompt_tokens", pa.int32()),
            ("tokens", pa.int32()),  # of the answer
            ("seconds", pa.float64()),  # from asking to the answer
        ]
    ),
    frozenset({"action", "perception_exact", "perception_share", "prompt_tokens", "tokens"}),
    "give a file of moves that g1-ray evaluate or play wrote",
)
"""moves/*.parquet of an evaluation: a row for each move."""
