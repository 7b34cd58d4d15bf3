"""A run's rollouts and an evaluation's moves in the formats of other tools.

datasets    parquet with the pictures in it, which `datasets.load_dataset("parquet", data_files=...)` shows
inspect     inspect-ai's logs: a file for each player on each game, a sample for each run, the pictures as data URIs
"""

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from envs import State
from envs.codec import prompt_of
from g1_ray.files import written
from g1_ray.runs.layouts import MOVES, TURNS, Layout, naming
from g1_ray.runs.parquet import data_uri, png_of, with_image, write_tables
from g1_ray.runs.progress import Count
from g1_ray.runs.reading import moves_in, names_in, sources_of

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalScore
    from inspect_ai.model import ChatMessage, ModelUsage

    from g1_ray.evaluation.play import Move, Run

ROWS = 256
"""Rows looked at and written at a time."""


# datasets


def export_datasets(folder: Path, out: Path, limit: int = 0) -> dict[Path, int]:
    """Writes OUT/trajectories.parquet and OUT/moves.parquet, what of them there is; returns the rows of each.

    The source's columns stay as they are; `image` and `prompt` come before them. The answer is `text`. With `limit`
    only so many rows are written.
    """
    rows = {}
    for name, files in sources_of(folder).items():
        layout = {"trajectories": TURNS, "moves": MOVES}[name]
        schema = with_image(pa.schema([("prompt", pa.string()), *layout.schema]))
        path = out / f"{name}.parquet"
        total = min(limit or sys.maxsize, sum(map(layout.num_rows, files)))
        with Count(f"rows of {name}", total) as count:
            rows[path] = write_tables(path, schema, _tables(files, layout, schema, total, count))
    return rows


def _tables(files: Sequence[Path], layout: Layout, schema: pa.Schema, total: int, count: Count) -> Iterator[pa.Table]:
    """The files' rows with their picture and prompt, so many at a time."""
    left = total
    for file in files:
        for whole in layout.batches(file, layout.schema.names, size=ROWS):
            batch = whole.slice(0, left)
            left -= len(batch)
            if not len(batch):
                return
            with naming(file):
                shown = [_shown(data) for data in batch["state"].to_pylist()]
            columns = {name: batch[name] for name in batch.schema.names}
            columns["image"] = pa.array([{"bytes": png, "path": None} for png, _ in shown], schema.field(0).type)
            columns["prompt"] = pa.array([prompt for _, prompt in shown])
            yield pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
            count(total - left)


@functools.lru_cache(maxsize=64)
def _shown(data: bytes) -> tuple[bytes, str]:
    """The picture and the prompt of a state. The rollouts of a group begin with the same one."""
    state = State.from_bytes(data)
    return png_of(state), prompt_of(state.task)


# inspect-ai


def export_inspect(folder: Path, out: Path, limit: int = 0) -> dict[Path, int]:
    """Writes OUT/GAME--PLAYER.eval for each player on each game; returns the samples of each.

    With `limit` only so many runs are written. Raises `ValueError` where there is no evaluation, or no inspect-ai.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise ValueError("--to inspect needs inspect-ai: pip install -e '.[export]'") from None
    from g1_ray.evaluation.moves import read_runs

    files, written_runs = moves_in(folder), dict[Path, int]()
    totals = [len(MOVES.table(file, ["seed"])["seed"].unique()) for file in files]
    with Count("runs", sum(min(limit or sys.maxsize, total) for total in totals)) as count:
        for file in files:
            game, player = names_in(file)
            runs, samples = read_runs(file)[: limit or None], []
            for run in runs:
                samples.append(_sample(player, run))
                count(count.done + 1)
            if not runs:
                continue
            log = log_of(game, player, runs, samples, datetime.fromtimestamp(file.stat().st_mtime, UTC))
            path = out / f"{file.stem}.eval"
            with written(path) as beside:
                write_eval_log(log, beside, format="eval")
            written_runs[path] = len(runs)
    return written_runs


def log_of(game: str, player: str, runs: "Sequence[Run]", samples: "list[EvalSample]", made: datetime) -> "EvalLog":
    """The runs of a player on a game as a log of inspect-ai, where the player stands in the model's place.

    `samples`: that of each run.
    """
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats

    name = f"{game}--{player}"
    asking = timedelta(seconds=sum(sample.total_time or 0.0 for sample in samples))
    begun, ended = (moment.isoformat(timespec="seconds") for moment in (made - asking, made))
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=ended,
            task=game,
            task_id=name,  # of logs that share one, inspect's viewer takes all but the last for failed tries
            run_id=name,
            task_args=json.loads(runs[0].moves[0].state.task.to_json()),
            dataset=EvalDataset(name=game, samples=len(runs), sample_ids=[run.seed for run in runs]),
            model=player,
            config=EvalConfig(),
        ),
        results=EvalResults(total_samples=len(runs), completed_samples=len(runs), scores=_means(samples)),
        stats=EvalStats(started_at=begun, completed_at=ended, model_usage={player: _usage(runs)}),
        samples=samples,
    )


def _usage(runs: "Sequence[Run]") -> "ModelUsage":
    """The tokens of all prompts and answers."""
    from inspect_ai.model import ModelUsage

    prompts = sum(move.prompt_tokens or 0 for run in runs for move in run.moves)
    answers = sum(move.tokens or 0 for run in runs for move in run.moves)
    return ModelUsage(input_tokens=prompts, output_tokens=answers, total_tokens=prompts + answers)


def _sample(player: str, run: "Run") -> "EvalSample":
    """A run: its moves as a conversation, though the player was asked for each of them alone."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    messages = [message for move in run.moves for message in _messages(player, move)]
    read = [move.perception_exact for move in run.moves if move.perception_exact is not None]
    values = {"score": run.score, "scoring": run.scoring, "success": run.successes / run.boards, "legal": run.legal}
    if read:
        values["p_acc"] = float(np.mean(read))
    return EvalSample(
        id=run.seed,
        epoch=1,
        input=messages[:1],
        target="",
        messages=messages,
        output=ModelOutput.from_content(player, messages[-1].text),
        scores={name: Score(value=value) for name, value in values.items()},
        metadata={"seed": run.seed, "boards": run.boards, "boards_won": run.successes, "moves": len(run.moves)},
        model_usage={player: _usage([run])},
        total_time=sum(move.seconds for move in run.moves),
    )


def _messages(player: str, move: "Move") -> "tuple[ChatMessage, ChatMessage]":
    """The picture with the prompt, and the answer; the legal moves and what came of this one are their metadata."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ContentImage, ContentText

    game = move.state.game()
    write = game.actions.write
    moved = "" if move.action is None else write(move.action)
    names = ("legal", "gain", "reward", "regret", "over", "success", "perception_exact", "perception_share", "seconds")
    asked: dict[str, Any] = {"legal_moves": [write(action) for action in game.legal_actions()]}
    came: dict[str, Any] = {"move": moved, "cause": move.cause, **{name: getattr(move, name) for name in names}}
    png, prompt = _shown(move.state.to_bytes())
    return (
        ChatMessageUser(content=[ContentImage(image=data_uri(png)), ContentText(text=prompt)], metadata=asked),
        ChatMessageAssistant(content=move.text or moved, model=player, metadata=came),
    )


def _means(samples: "Sequence[EvalSample]") -> "list[EvalScore]":
    """The mean of each score over the samples, with its standard error."""
    from inspect_ai.log import EvalMetric, EvalScore

    means = []
    for name in samples[0].scores or ():
        values = np.array([(sample.scores or {})[name].as_float() for sample in samples])
        error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
        numbers = {"mean": float(values.mean()), "stderr": error}
        metrics = {metric: EvalMetric(name=metric, value=value) for metric, value in numbers.items()}
        means.append(EvalScore(name=name, scorer=name, scored_samples=len(values), metrics=metrics))
    return means
