"""What the driver does with a tick of a rollout lane that failed: told whole, made again, and not for ever."""

import asyncio
import json
import traceback
from dataclasses import replace
from types import SimpleNamespace

import pytest
from folders import small_config

ray = pytest.importorskip("ray")

from g1_ray.pipeline import actors, outliving, run  # noqa: E402
from g1_ray.pipeline.actors import Receipt, StepSummary  # noqa: E402
from g1_ray.pipeline.checkup import Checkup  # noqa: E402
from g1_ray.pipeline.graph import Failure, Finished  # noqa: E402
from g1_ray.pipeline.outliving import MAX_FAILURES  # noqa: E402
from g1_ray.pipeline.parts import Part  # noqa: E402
from g1_ray.pipeline.recovery import MAX_DEATHS, Recovery  # noqa: E402
from g1_ray.pipeline.run import Pipeline  # noqa: E402
from g1_ray.runs.run_folder import RunFolder  # noqa: E402
from g1_ray.types import Origin, StepReport  # noqa: E402


def out_of_memory():
    raise RuntimeError("out of memory\nand more")


def failure():
    try:
        out_of_memory()
    except RuntimeError:
        return Failure("generate: RuntimeError: out of memory", traceback.format_exc())


class Well(Recovery):
    """Of parts that are never asked, and are well but for those that are lost."""

    def look(self):
        pass

    def examine(self, part, patience_s=0.0):
        return part.up


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """One whose buffer only listens."""
    monkeypatch.setattr(outliving, "get", lambda ref, *about, **more: ref)
    config = small_config(tmp_path)
    made = Pipeline(config, "none", None, RunFolder.open(config))
    made.failed = []
    fail = SimpleNamespace(remote=lambda *about: made.failed.append(about))
    made.actors = SimpleNamespace(buffer=SimpleNamespace(fail=fail), learners=())
    parts = [Part(role, 0, role) for role in ("buffer", "env worker", "engine", "learner")]
    made.recovery = Well(made.actors, parts, "float32", 60.0, (), made.folder.note)
    return made


def finished(failure, lane=2, result=None):
    tick = SimpleNamespace(
        lane=lane, gate="tickets", started=1.0, opened=2.0, named=lambda name: [], failure=lambda: failure
    )
    return Finished(tick, result, failure, 3.0)


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
    assert pipeline.failed == [("tickets", told.line, True)]


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


def test_a_group_is_not_blamed_for_the_death_of_a_part_and_the_run_goes_on(pipeline):
    died = Failure("generate: ActorDiedError: gone", "", "engine", ray.exceptions.ActorDiedError())
    for _ in range(2 * MAX_FAILURES):
        pipeline._after_rollouts(finished(died))
    assert pipeline.failed == [("tickets", died.line, False)] * 2 * MAX_FAILURES
    assert [part.name for part in pipeline.recovery.parts if not part.up] == ["engine 0"]
    assert pipeline.recovery.healing and not pipeline.recovery.of("engine")
    assert pipeline.recovery.parts[2].deaths == 1  # once, however many ticks it took with it


@pytest.mark.parametrize("role", ["buffer", "env worker", "engine"])
@pytest.mark.parametrize("lane", [2, run.TRAIN])
def test_what_was_asked_of_a_part_before_it_came_back_does_not_end_it_once_more(pipeline, role, lane):
    """Ticks are looked at late, e.g. after a checkpoint in which the part was brought back."""
    part = next(part for part in pipeline.recovery.parts if part.role == role)
    died = Failure("put: ActorDiedError: gone", "", role, ray.exceptions.ActorDiedError())
    part.lost()
    part.back()
    after = pipeline._after_rollouts if lane != run.TRAIN else lambda end: pipeline._after_step(end, lambda *step: None)
    after(finished(died, lane))
    assert part.up and part.deaths == 1
    late = finished(died, lane)
    late.tick.started = part.back_at + 1.0
    after(late)
    assert not part.up and part.deaths == 2


def test_a_part_that_dies_again_and_again_ends_the_run_unless_steps_are_made(pipeline):
    part, recovery = pipeline.recovery.parts[1], pipeline.recovery
    for round in range(3 * MAX_DEATHS):
        recovery.lose(part, "died")
        part.up = True
        if round % MAX_DEATHS == MAX_DEATHS - 1:
            recovery.a_step_was_made()
    with pytest.raises(RuntimeError, match=f"env worker 0 died; that was {MAX_DEATHS + 1} times without a step"):
        for _ in range(MAX_DEATHS + 1):
            recovery.lose(part, "died")
            part.up = True


def test_most_groups_spoiled_end_the_run_with_the_reason(pipeline):
    pipeline._after_rollouts(finished(None, result=Receipt([], 0)))
    with pytest.raises(RuntimeError, match="most of the last groups .*; observe: ValueError: no such board"):
        pipeline._after_rollouts(finished(None, result=Receipt([], 0, "observe: ValueError: no such board")))


def test_a_step_that_fails_leaves_its_whole_traceback_and_ends_the_run(pipeline):
    told = failure()
    told = replace(told, line="step: RuntimeError: out of memory", actor="learner", error=RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="step 1 failed on learner 0; step: RuntimeError: out of memory"):
        pipeline._after_step(finished(told, run.TRAIN), lambda step, metrics: None)
    assert lines(pipeline, "notes.jsonl")[-1]["traceback"] == told.trace


def test_many_flat_groups_in_a_row_are_told_with_what_helps_and_not_too_often(pipeline):
    told, base = [], 2 * pipeline.config.rollout.groups_per_step
    pipeline._tell = told.append
    for in_a_row in (base - 1, base, base + 1, 2 * base, 2 * base + 1, 5 * base, 0, base - 1, base + 3):
        pipeline._after_rollouts(finished(None, result=Receipt([(7, 0)], in_a_row)))
    assert [text.split()[2] for text in told] == [str(n) for n in (base, 2 * base, 5 * base, base + 3)]
    assert all(word in told[0] for word in ("group_size", "temperature", "level", "coldstart"))
    assert [line["note"] for line in lines(pipeline, "notes.jsonl")[-4:]] == told


@pytest.mark.parametrize("part", ["canary", "evaluate", "examine", "save"])
def test_the_line_of_a_step_is_there_whatever_comes_after_it(pipeline, part):
    """And before the checkpoint is, so that a run that goes on from that one lacks none."""
    pipeline.config = pipeline.config.model_copy(
        update={
            "canary_every": 1,
            "checkpoint_every": 1,
            "eval": pipeline.config.eval.model_copy(update={"every": 1, "lab_every": 1}),
        }
    )

    def does(name):
        def do(*arguments, **more):
            done.append(name)
            if name == part:
                raise RuntimeError(f"{name} is broken")
            return {name: 1.0}

        return do

    done, seen = [], []
    names = ("canary", "evaluate", "examine")
    pipeline.checkup = SimpleNamespace(**{name: does(name) for name in names})
    pipeline.save = does("save")
    pipeline._catch_up = lambda tick, report: None
    summary = StepSummary(StepReport(1, {"loss": 0.5}, Origin({}, 0, 1.0)), {"issued": 4})

    def on_step(step, metrics):
        done.append("line")
        seen.append((step, dict(metrics)))

    with pytest.raises(RuntimeError, match=f"{part} is broken"):
        pipeline._after_step(finished(None, run.TRAIN, summary), on_step)
    before = names[: names.index(part)] if part in names else names
    assert seen == [(1, {"loss": 0.5, "groups/issued": 4.0} | dict.fromkeys(before, 1.0))]
    assert done == [*before, *([part] if part in names else []), "line", *(["save"] if part == "save" else [])]


def test_a_rank_that_raises_as_another_has_died_does_not_end_the_run(pipeline):
    """Gloo's and NCCL's errors on the others may be heard before the death."""
    gone = Part("learner", 1, "other")
    pipeline.recovery.parts = [*pipeline.recovery.parts, gone]
    pipeline.recovery.examine = lambda part: part is gone and pipeline.recovery.lose(part, "died")
    reset = Failure("step: RuntimeError: Connection reset by peer", "", "learner", RuntimeError("reset"))
    pipeline._after_step(finished(reset, run.TRAIN), lambda step, metrics: None)
    assert pipeline.recovery.lost_learner is gone


@pytest.mark.parametrize("answers", [True, False])
def test_a_part_that_raises_in_a_step_ends_the_run_and_one_that_is_silent_is_brought_back(pipeline, answers):
    """Whoever it is: a buffer whose batch can't be made would raise for ever."""
    told = Failure("take: ValueError: no batch", "", "buffer", ValueError("no batch") if answers else None)
    if answers:
        with pytest.raises(RuntimeError, match="step 1 failed on buffer; take: ValueError: no batch"):
            pipeline._after_step(finished(told, run.TRAIN), lambda step, metrics: None)
    else:
        pipeline._after_step(finished(told, run.TRAIN), lambda step, metrics: None)
    assert bool(pipeline.recovery.of("buffer")) is answers


def test_a_step_that_was_made_and_got_no_further_is_made_again_from_the_checkpoint(pipeline):
    silent = finished(Failure("load_policy gave no answer", "", "engine"), run.TRAIN)
    node = object()
    silent.tick.named, silent.tick.passed = lambda name: [node], {id(node): True}
    pipeline._after_step(silent, lambda step, metrics: None)
    assert pipeline.recovery.lost_learner is not None and not pipeline.recovery.of("engine")


def test_a_question_is_put_again_to_those_that_are_up(pipeline, monkeypatch):
    asked = []

    def engine(number):
        async def ask(requests, sampling):
            asked.append((number, len(requests)))
            if number == 0 and len(asked) < 3:
                raise ray.exceptions.ActorDiedError()
            return [(number, request) for request in requests]

        return SimpleNamespace(ask=SimpleNamespace(remote=ask))

    checkup = Checkup.__new__(Checkup)
    checkup.config, checkup._turn, up = pipeline.config, 0, [0, 1]
    checkup.actors = SimpleNamespace(engines=[engine(0), engine(1)])
    checkup.current, checkup.look = lambda: up, lambda: up.remove(0) if 0 in up else None
    assert asyncio.run(checkup._generate([10, 11, 12], None)) == [(1, 10), (1, 11), (1, 12)]
    assert asked[-1] == (1, 3)


def test_rollouts_go_on_while_what_is_due_after_a_step_is_waited_for(pipeline, monkeypatch):
    """And each tick is booked on the parts that it was made by, whatever comes at once."""
    monkeypatch.setattr(run, "rollout_graph", lambda *about: "graph")
    over, started = [[run.TRAIN, 0, 1], [0], [2, 1]], []

    class Lanes:
        ticks = {lane: None for lane in range(pipeline.config.asynchrony.lanes)}

        def start(self, lane, graph, value):
            self.ticks[lane] = None
            started.append(lane)

        def poll(self, timeout_s):
            ended = over.pop(0)
            for lane in ended:
                self.ticks.pop(lane, None)
            return [finished(None, lane, Receipt([], 0)) for lane in ended]

    def after_step(ended, on_step):
        assert started == []  # those that ended with it are booked, and not begun again
        pipeline._roll_on()
        pipeline._roll_on()
        pipeline.version = pipeline.config.steps

    env, engine = (pipeline.recovery.of(role)[0] for role in ("env worker", "engine"))
    pipeline.executor, pipeline._at_work = Lanes(), {lane: (env, engine) for lane in Lanes.ticks}
    env.busy = engine.busy = len(Lanes.ticks)
    pipeline._start_step, pipeline._after_step, pipeline.save = lambda: None, after_step, lambda last: None
    pipeline.train(lambda step, metrics: None)
    assert started == [0, 1, 0] and set(pipeline._at_work) == set(Lanes.ticks) - {1, 2}
    assert env.busy == engine.busy == len(pipeline._at_work)
    pipeline._roll_on()  # the run is over: nothing is begun
    assert started == [0, 1, 0]


def test_books_off_the_ledger_are_in_no_checkpoint_of_a_deterministic_run(pipeline, monkeypatch):
    """What the curriculum had learned is not in them: the run goes back to an older checkpoint."""
    monkeypatch.setattr(outliving, "get_all", lambda refs, *about: refs)
    monkeypatch.setattr(actors, "was_started_anew", lambda: True)
    buffer = actors.BufferActor(pipeline.config, str(pipeline.folder.path))
    pipeline.version = 4
    pipeline._ask_buffer = lambda method, *about: asyncio.run(getattr(buffer, method)(*about))
    saved = []
    learner = SimpleNamespace(save=SimpleNamespace(remote=lambda path, state: saved.append(state)))
    pipeline.actors.learners = [learner]
    pipeline.save()
    pipeline.config = pipeline.config.model_copy(update={"deterministic": True})
    with pytest.raises(outliving.BrokenOff):
        pipeline.save()
    pipeline.save(last=True)  # nobody goes on from there within this run
    asyncio.run(buffer.reopen(saved[0]))
    pipeline.save()
    assert len(saved) == 3 and all("books" in state for state in saved)
