"""Rollouts on disk: parquet files with a row for each turn, which `datasets.load_dataset("parquet", ...)` opens.

A picture is not stored: `State.from_bytes(row["state"]).draw()` draws it again.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from g1_ray.config import REWARD_PARTS
from g1_ray.files import part_of
from g1_ray.runs.layouts import TURNS
from g1_ray.runs.parquet import write_tables
from g1_ray.types import Group

TOKENS_PER_FILE = 1_000_000
"""Tokens of prompts and completions that are held in memory before a file is written."""

SCHEMA = TURNS.schema


def turn_rows(group: Group) -> Iterator[dict[str, Any]]:
    """A row for each turn of a group."""
    actions = group.start.task.new_game().actions
    task = group.start.task.to_json()
    for number, rollout in enumerate(group.rollouts):
        for place, turn in enumerate(rollout.turns):
            yield {
                "game": group.ticket.game,
                "group": group.ticket.group,
                "rollout": number,
                "turn": place,
                "task": task,
                "state": turn.prompt.states[-1].to_bytes(),
                "prompt_ids": turn.prompt.token_ids,
                "completion_ids": turn.completion.token_ids,
                "logprobs": turn.completion.logprobs,
                "versions": turn.completion.versions,
                "finish_reason": turn.completion.finish_reason,
                "text": turn.text,
                "action": turn.action,
                "action_text": "" if turn.action is None else actions.write(turn.action),
                "cause": turn.cause,
                "legal": turn.legal,
                "gain": turn.gain,
                "reward": turn.reward,
                **{f"reward_{part}": turn.rewards.get(part) for part in REWARD_PARTS},
                "perception_exact": turn.perception_exact,
                "over": rollout.over and place == len(rollout.turns) - 1,
            }


def packed_rows(group: Group) -> bytes:
    """The rows of a group as an Arrow record batch: made where the group is, and not opened until they are written."""
    rows = list(turn_rows(group))
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in SCHEMA]
    packed: bytes = pa.RecordBatch.from_arrays(columns, schema=SCHEMA).serialize().to_pybytes()
    return packed


class TrajectoryWriter:
    """Writes groups to numbered files in a folder, each whole, in a thread: one file at a time.

    Where one can't be written, the next `add` or `flush` says so, and tries again.
    """

    def __init__(self, folder: Path, tokens_per_file: int = TOKENS_PER_FILE) -> None:
        self.folder, self.tokens_per_file = folder, tokens_per_file
        self._held: list[pa.RecordBatch] = []
        self._tokens = 0
        self._thread = ThreadPoolExecutor(1, "trajectories")
        self._writing: tuple[Future[None], list[pa.RecordBatch], int] | None = None  # with their tokens

    def add(self, rows: bytes) -> None:
        """Keeps `packed_rows`; a file is written when there are tokens enough for one."""
        batch = pa.ipc.read_record_batch(pa.py_buffer(rows), SCHEMA)
        self._held.append(batch)
        self._tokens += sum(len(batch.column(name).values) for name in ("prompt_ids", "completion_ids"))
        if self._tokens >= self.tokens_per_file:
            self._begin()

    def flush(self) -> None:
        """Writes what is held in memory, if anything is, and waits for it."""
        self._begin()
        self._settle()

    def _begin(self) -> None:
        self._settle()
        if self._held:
            self._writing = self._thread.submit(self._write, self._held), self._held, self._tokens
            self._held, self._tokens = [], 0

    def _settle(self) -> None:
        """Waits for the file that is being written; what could not be is held again."""
        if self._writing is None:
            return
        (written, batches, tokens), self._writing = self._writing, None
        try:
            written.result()
        except BaseException:
            self._held, self._tokens = batches + self._held, tokens + self._tokens
            raise

    def _write(self, batches: list[pa.RecordBatch]) -> None:
        path = self.folder / f"{len(files_in(self.folder)):06d}.parquet"
        write_tables(path, SCHEMA, [pa.Table.from_batches(batches, SCHEMA).combine_chunks()])


def files_in(folder: Path) -> list[Path]:
    """The files of a folder of trajectories or of moves, in their order. Raises `ValueError` where one leads out of
    the folder that it is in."""
    if not folder.is_dir():
        return []
    part_of(folder.parent, folder.name)
    return [part_of(folder, path.name) for path in sorted(folder.glob("*.parquet"))]
