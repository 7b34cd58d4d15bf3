"""What the driver does with a tick of a rollout lane that failed: told whole, made again, and not for ever."""

import json
import traceback
from types import SimpleNamespace

import pytest
from folders import small_config

pytest.importorskip("ray")

from g1_ray.pipeline import run  # noqa: E402
from g1_ray.pipeline.graph import Failure, Finished  # noqa: E402
from g1_ray.pipeline.run import MAX_FAILURES, Pipeline  # noqa: E402
from g1_ray.runs.run_folder import RunFolder  # noqa: E402


def out_of_memory():
    raise RuntimeError("out of memory\nand more")


def failure():
    try:
        out_of_memory()
    except RuntimeError:
        return Failure("generate: RuntimeError: out of memory", traceback.format_exc())


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """One whose lanes only count, and whose buffer only listens."""
    monkeypatch.setattr(run, "get", lambda ref: ref)
    config = small_config(tmp_path)
    made = Pipeline(config, "", RunFolder.open(config))
    made.failed, made.started = [], []
    fail = SimpleNamespace(remote=lambda tickets, reason: made.failed.append((tickets, reason)))
    made.actors = SimpleNamespace(buffer=SimpleNamespace(fail=fail))
    monkeypatch.setattr(made, "_start_lane", made.started.append)
    return made


def finished(failure, lane=2):
    return Finished(SimpleNamespace(lane=lane, gate="tickets", started=1.0, opened=2.0), None, failure, 3.0)


def lines(pipeline, name):
    return [json.loads(line) for line in (pipeline.folder.path / name).read_text().splitlines()]


def test_a_tick_that_fails_leaves_its_whole_traceback_and_is_made_again(pipeline):
    told = failure()
    pipeline._after_rollouts(finished(told))
    note = lines(pipeline, "notes.jsonl")[-1]
    assert note["note"] == "a tick of lane 2 failed: generate: RuntimeError: out of memory"
    assert note["traceback"] == told.trace
    assert "in out_of_memory\n" in note["traceback"] and note["traceback"].endswith("out of memory\nand more\n")
    assert lines(pipeline, "trace.jsonl")[-1]["error"] == told.line
    assert pipeline.failed == [("tickets", told.line)] and pipeline.started == [2]


def test_a_tick_that_gave_no_answer_has_no_traceback(pipeline):
    pipeline._after_rollouts(finished(Failure("no end after 5 s; generate gave no answer")))
    assert "traceback" not in lines(pipeline, "notes.jsonl")[-1]


def test_a_tick_that_goes_well_is_no_note_and_begins_the_count_of_failures_anew(pipeline):
    for _ in range(MAX_FAILURES - 1):
        pipeline._after_rollouts(finished(failure()))
    notes = len(lines(pipeline, "notes.jsonl"))
    pipeline._after_rollouts(finished(None))
    assert len(lines(pipeline, "notes.jsonl")) == notes and lines(pipeline, "trace.jsonl")[-1]["error"] == ""
    for _ in range(MAX_FAILURES - 1):
        pipeline._after_rollouts(finished(failure()))
    with pytest.raises(RuntimeError, match=f"{MAX_FAILURES} rollout ticks failed .*; generate: RuntimeError: out of"):
        pipeline._after_rollouts(finished(failure()))
    assert len(pipeline.failed) == 2 * (MAX_FAILURES - 1)


def test_a_step_that_fails_leaves_its_whole_traceback_and_ends_the_run(pipeline):
    told = failure()
    with pytest.raises(RuntimeError, match="step 1 failed; generate: RuntimeError: out of memory"):
        pipeline._after_step(finished(told, run.TRAIN), lambda step, metrics: None)
    assert lines(pipeline, "notes.jsonl")[-1]["traceback"] == told.trace
