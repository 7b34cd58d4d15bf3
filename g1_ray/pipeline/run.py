"""A training run: starts the actors, keeps both graphs going, and writes down what came of it.

    for every lane: admit -> observe -> generate -> score -> put, again and again
    for every step: take -> step -> weights -> load_policy -> release; then, when due, canary, checkpoint, evaluation

The driver moves no data: it starts ticks, and reads small reports. It waits for a step between steps only where
something is due that needs engines and learners to stand still (`checkup.py`). Parts that die are brought back while
the others go on (`recovery.py`).
"""

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from g1_ray.config import RunConfig
from g1_ray.pipeline.actors import START_TIMEOUT_S, Receipt, StepSummary, hire
from g1_ray.pipeline.checkup import Checkup, await_parts, get, get_all
from g1_ray.pipeline.graph import Executor, Failure, Finished, Tick, actor_of, first_line, rollout_graph, train_graph
from g1_ray.pipeline.parts import Part
from g1_ray.pipeline.recovery import Recovery
from g1_ray.pipeline.replay_buffer import books_of
from g1_ray.runs.run_folder import RunFolder
from g1_ray.types import Origin, StepReport, Ticket

log = logging.getLogger(__name__)
TRAIN = -1
"""The lane of the train graph."""
MAX_FAILURES = 20
"""Rollout ticks that fail one after the other though nobody has died, before the run gives up."""
MAX_SKIPPED = 5
"""Steps that are skipped one after the other before the run gives up."""
FLAT_IN_A_ROW = 64
"""Flat groups one after the other, or those of two steps, before the run says so; again at every doubling."""


class BrokenOff(Exception):
    """What was being done is not gone on with."""


class Pipeline:
    """One run on the Ray cluster that this process is connected to.

    `start` may take minutes, `train` goes on until the steps or the minutes are over or `should_stop` says so, `close`
    leaves nothing behind. A part that dies is brought back; one that dies again and again ends the run with an error
    that names it. What a checkpoint holds is safe.
    """

    def __init__(self, config: RunConfig, model_path: str, folder: RunFolder) -> None:
        self.config, self.model_path, self.folder = config, model_path, folder
        self.version = 0
        self.failures = self.skipped = 0
        self._should_stop: Callable[[], bool] = lambda: False
        self._at_work: dict[int, tuple[Part, Part]] = {}  # lane -> the env worker and the engine of its tick
        self._many_flat = max(FLAT_IN_A_ROW, 2 * config.rollout.groups_per_step)
        self._tell_at = self._many_flat  # flat groups in a row
        self.books: dict[str, int] = {}
        """What became of all groups, once closed: issued = trained + dropped + quarantined + in_flight."""

    def start(self, checkpoint: Path | None = None, tell: Callable[[str], None] = lambda text: None) -> None:
        """Brings up every actor with one and the same policy: that of the checkpoint, or the model as it is.

        `tell` hears which parts are up.
        """
        self.crew = hire(self.config, self.model_path, str(self.folder.path))
        actors = self.actors = self.crew.actors
        self.executor = Executor(self.config.asynchrony.tick_timeout_s)
        address = actors.learners[0].address.remote()
        parts = {
            "env workers": [worker.__ray_ready__.remote() for worker in actors.env_workers],
            "learner": [learner.setup.remote(address) for learner in actors.learners],
            "engines": [engine.start.remote() for engine in actors.engines],
        }
        if checkpoint is not None:
            parts["checkpoint"] = [learner.load.remote(str(checkpoint)) for learner in actors.learners]
        await_parts(parts, tell)
        tell("comparing the engines with the learner")
        if checkpoint is not None:
            self.version, state = get(parts["checkpoint"][0])
            get(actors.buffer.load_state_dict.remote(state))
        if self.version:
            self._publish()
        self.checkup = Checkup(self.config, self.model_path, actors)
        self.checkup.canary(self.version)
        hang_s = self.config.asynchrony.hang_s
        about = self.config.model.dtype, hang_s, self.checkup.sequences, self.folder.note
        self.recovery = Recovery(actors, self.crew.parts(), *about)
        self.checkup.look = self._look
        for part in self.recovery.of("engine"):
            part.version = self.version
        log.info("started at step %d", self.version)

    def _publish(self, back: bool = False) -> None:
        """Hands the learner's policy to the engines, outside of a step; they go `back` to it, if they are ahead."""
        weights = [learner.weights.remote(None) for learner in self.actors.learners]
        report = StepReport(self.version, {}, Origin())
        engines = [part.actor for part in self.recovery.of("engine")] if back else self.actors.engines
        get_all([engine.load_policy.remote(weights[0], report, back) for engine in engines])
        get_all(weights[1:])

    def _look(self) -> None:
        """While something outside of the graphs is waited for. Raises `BrokenOff` where the run is to stop."""
        self.recovery.look()
        if self._should_stop():
            raise BrokenOff("the run is to stop")

    # The loop

    def train(
        self,
        on_step: Callable[[int, dict[str, float]], None],
        should_stop: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Runs both graphs until the run is over, and leaves a checkpoint at the end.

        That is when the steps are made, or between two steps once the minutes are over or `should_stop` says so: a step
        in progress is finished, one that still waits for groups is not waited for. `tell` hears what the user should.
        """
        begun, self._should_stop = time.monotonic(), should_stop
        try:
            while True:
                late = 0 < self.config.minutes * 60 <= time.monotonic() - begun
                over = self.version >= self.config.steps or late or should_stop()
                step = self.executor.ticks.get(TRAIN)
                if over and (step is None or step.opened is None):
                    break
                self._keep_busy()
                for finished in self.executor.poll(timeout_s=0.2 if self.recovery.healing else 1.0):
                    if finished.tick.lane == TRAIN:
                        self._after_step(finished, on_step)
                    else:
                        self._after_rollouts(finished, tell)
                self.recovery.look()
                if (lost := self.recovery.lost_learner) is not None:
                    self.rewind(lost, tell)
        except Exception:
            self._save_what_was_learned()
            raise
        if self.version and not self.folder.checkpoint(self.version).exists():
            self.save()

    def _keep_busy(self) -> None:
        """Starts a tick on every lane that has none, and the train graph's, wherever those that it takes are up."""
        buffer, engines = self.recovery.of("buffer"), self.recovery.of("engine")
        if buffer and TRAIN not in self.executor.ticks and engines:
            up = replace(self.actors, engines=[part.actor for part in engines])
            self.executor.start(TRAIN, train_graph(up), self.version)
        for lane in range(self.config.asynchrony.lanes):
            if lane not in self.executor.ticks and buffer and engines and self.recovery.of("env worker"):
                self._start_lane(lane)

    def _start_lane(self, lane: int) -> None:
        """On the env worker and the engine that have least to do."""
        pair = [min(self.recovery.of(role), key=lambda part: part.busy) for role in ("env worker", "engine")]
        self._at_work[lane] = pair[0], pair[1]
        for part in pair:
            part.busy += 1
        graph = rollout_graph(self.actors, pair[0].index, pair[1].index, self.config.rollout.turns)
        self.executor.start(lane, graph, self.config.asynchrony.groups_per_tick)

    def _after_rollouts(self, finished: Finished, tell: Callable[[str], None] = lambda text: None) -> None:
        """Books a tick of a rollout lane; what it was to make is made again if it failed."""
        tick, failure = finished.tick, finished.failure
        for part in self._at_work.pop(tick.lane, ()):
            part.busy -= 1
        receipt: Receipt | None = finished.result
        error, groups = failure.line if failure else "", receipt.groups if receipt else None
        self.folder.trace("rollout", tick.lane, tick.opened or tick.started, finished.at, groups=groups, error=error)
        if receipt:
            self._tell_of_flat(receipt.flat_in_a_row, tell)
            if receipt.spoiled:
                raise RuntimeError(f"most of the last groups had something wrong with them; {receipt.spoiled}")
        if failure:
            self._after_failure(tick, failure)
        else:
            self.failures = 0

    def _after_failure(self, tick: Tick, failure: Failure) -> None:
        """Looks for who failed. A group is not blamed for the death of a part."""
        part = self.recovery.part_of(failure.actor)
        if part and failure.died:
            self.recovery.lose(part, failure.line)
        blame = not failure.died and (part is None or self.recovery.examine(part))
        log.warning("lane %d: %s", tick.lane, failure.line)
        self.folder.note(f"a tick of lane {tick.lane} failed: {failure.line}", failure.trace)
        self.failures += blame
        if self.failures >= MAX_FAILURES:
            raise RuntimeError(f"{self.failures} rollout ticks failed one after the other; {failure.line}")
        if tick.opened is not None:
            tickets = self._tickets(tick)
            self._ask_buffer("fail", tickets, failure.line, blame)

    def _tickets(self, tick: Tick) -> list[Ticket]:
        """What a tick was to make; nothing where the buffer died with it."""
        try:
            tickets: list[Ticket] = get(tick.gate, 1.0)
        except (ray.exceptions.RayError, RuntimeError):
            return []
        return tickets

    def _ask_buffer(self, method: str, *arguments: Any) -> Any:
        """A call of the buffer's, made again where it dies, until it is back."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return get(getattr(self.actors.buffer, method).remote(*arguments))
            except ray.exceptions.RayActorError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _tell_of_flat(self, in_a_row: int, tell: Callable[[str], None]) -> None:
        if in_a_row < self._many_flat:
            self._tell_at = self._many_flat
        if in_a_row < self._tell_at:
            return
        self._tell_at = 2 * in_a_row
        text = (
            f"the last {in_a_row} groups were flat: all answers to a board earned the same, and teach nothing.\n"
            "What helps: another level of the game, a larger rollout.group_size, a higher rollout.temperature, or a "
            "model from a cold start (g1-ray coldstart)"
        )
        self.folder.note(text)
        tell(text)

    def _after_step(self, finished: Finished, on_step: Callable[[int, dict[str, float]], None]) -> None:
        """Books an optimizer step, and does what is due after it."""
        summary: StepSummary | None = self._released(finished.tick) if finished.failure else finished.result
        if summary is None:
            assert finished.failure, "a step that went well has a summary"
            self._after_failed_step(finished.failure)
            return
        report, origin = summary.report, summary.report.origin
        if report.skipped:
            log.warning("a batch for step %d was skipped: %s", self.version + 1, report.skipped)
            self.folder.note(f"a batch for step {self.version + 1} was skipped: {report.skipped}")
            self.skipped += 1
            if self.skipped >= MAX_SKIPPED:
                raise RuntimeError(f"{self.skipped} batches skipped one after the other; {report.skipped}")
            return
        self.version, self.skipped = report.version, 0
        self.recovery.a_step_was_made()
        self._catch_up(finished.tick, report)
        about = {"step": report.version, "min_version": origin.min_version}
        self.folder.trace("train", TRAIN, origin.taken_at, finished.at, **about)
        metrics = {**report.metrics, **{f"groups/{name}": float(n) for name, n in summary.books.items()}}
        metrics |= {f"recovered/{role}": float(number) for role, number in self.recovery.counts.items()}
        try:
            self._check_up(metrics)
        finally:  # whatever these come to, the step has been made
            on_step(self.version, metrics)
        if self._is_due(self.config.checkpoint_every):
            try:
                self.save()  # after the line: a run that goes on from a checkpoint has the lines of all steps before
            except ray.exceptions.RayError as error:
                self._after_death("the checkpoint", error)

    def _check_up(self, metrics: dict[str, float]) -> None:
        """Adds canary, evaluation and lab, where they are due; what a death breaks off is left out."""
        for every, what, check in (
            (self.config.canary_every, "the canary", lambda: self.checkup.canary(self.version, self._current())),
            (self.config.eval.every, "the evaluation", lambda: self.checkup.evaluate(self.version, self._current())),
            (self.config.eval.lab_every, "the lab", lambda: self.checkup.examine(self._current())),
        ):
            if self._is_due(every):
                try:
                    metrics.update(check())
                except (ray.exceptions.RayError, BrokenOff) as error:
                    self._after_death(what, error)

    def _current(self) -> list[int]:
        """The engines that are up and hold the policy as it is now."""
        return [part.index for part in self.recovery.of("engine") if part.version == self.version]

    def _after_death(self, what: str, error: Exception) -> None:
        """Raises the error where nobody has died of it."""
        self.folder.note(f"step {self.version}: {what} was broken off: {first_line(error)}")
        well = [self.recovery.examine(part) for part in self.recovery.parts]
        if all(well) and not isinstance(error, BrokenOff):
            raise error

    def _released(self, tick: Tick) -> StepSummary | None:
        """Of a step that was made though the buffer died before it was booked: that is done now. None: it was not."""
        failure = tick.failure()
        ends = self.recovery.part_of(failure.actor)
        if ends is None or ends.role != "buffer" or failure.call != "release":
            return None
        self.recovery.lose(ends, failure.line)
        step = next(tick.refs[id(node)] for node in tick.calls if node.get_method_name() == "step")
        summary: StepSummary = self._ask_buffer("release", get(step))
        return summary

    def _after_failed_step(self, failure: Failure) -> None:
        """A rank that died is for `rewind`; one that raised, and lives, ends the run."""
        part = self.recovery.part_of(failure.actor)
        name = f" on {part.name}" if part else ""
        self.folder.note(f"step {self.version + 1} failed{name}: {failure.line}", failure.trace)
        if part and failure.died:
            self.recovery.lose(part, failure.line)
        elif part is None or part.role == "learner":
            if failure.error is None:  # it hangs: it, or another that it waits for
                assert part is not None
                self.recovery.lose(part, failure.line)
            else:
                raise RuntimeError(f"step {self.version + 1} failed{name}; {failure.line}")
        else:
            self.recovery.examine(part)

    def _catch_up(self, tick: Tick, report: StepReport) -> None:
        """Engines that came back while a step was made get its policy too."""
        passed = [node.get_method_name() == "load_policy" and tick.passed.get(id(node)) for node in tick.calls]
        actors = [actor_of(node) for node, good in zip(tick.calls, passed, strict=True) if good]
        weights = next(
            ref for node in tick.calls if node.get_method_name() == "weights" for ref in [tick.refs[id(node)]]
        )
        for part in self.recovery.of("engine"):
            if part.actor not in actors:
                try:
                    get(part.actor.load_policy.remote(weights, report), look=self.recovery.look)
                except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
                    self.recovery.lose(part, f"did not load step {report.version}: {first_line(error)}")
                    continue
            part.version = report.version

    def rewind(self, lost: Part, tell: Callable[[str], None] = lambda text: None) -> None:
        """All ranks start anew from the newest checkpoint, and everybody else goes back to it."""
        began, learners = time.monotonic(), self.recovery.of("learner", up=False)
        tell(f"{lost.name} is gone: going back to the newest checkpoint")
        for part in learners:
            self.recovery.lose(part, f"ends with {lost.name}")
        for _ in self.executor.clear():
            pass
        self._at_work.clear()
        for part in self.recovery.parts:
            part.busy = 0
        for part in learners:
            for _ in self.recovery.reborn(part):
                time.sleep(0.05)
        self._ask_buffer("pause")
        checkpoint, told = self.folder.rewind()
        address = learners[0].actor.address.remote()
        get_all([part.actor.setup.remote(address) for part in learners], START_TIMEOUT_S)
        self.version, state = 0, None
        if checkpoint is not None:
            self.version, state = get_all([part.actor.load.remote(str(checkpoint)) for part in learners])[0]
        self._ask_buffer("reopen", state)
        for part in learners:
            part.up, part.ping = True, None
        self._publish(back=True)
        for part in self.recovery.of("engine"):
            part.version = self.version
        self.recovery.forget()
        self.checkup.forget()
        self.recovery.counts["learner"] += 1
        for line in told:
            self.folder.note(line)
        self.folder.note(f"goes on from step {self.version} after {time.monotonic() - began:.1f} s")

    def _save_what_was_learned(self) -> None:
        """Before the run ends with an error, if there is something to save and the learners are well."""
        made = self.version and not self.folder.checkpoint(self.version).exists()
        if made and self.recovery.lost_learner is None:
            try:
                self.save()
            except Exception as error:  # noqa: BLE001 - the error that ends the run is the one to be told
                self.folder.note(f"step {self.version} could not be saved: {first_line(error)}")

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.version % every == 0

    def save(self) -> Path:
        """Writes the checkpoint of this step: every rank takes part, and the buffer's books go with it."""
        state = self._ask_buffer("snapshot", self.version)
        path = self.folder.checkpoint(self.version)
        saving = [learner.save.remote(str(path), state) for learner in self.actors.learners]
        get_all(saving, look=self.recovery.look)
        self.folder.prune_checkpoints(self.config.keep_checkpoints)
        return path

    def close(self) -> None:
        """Ends all actors. What is in flight stays so in `books`, and is lost."""
        if not hasattr(self, "crew"):
            return
        try:
            self.books = self._ask_buffer("close")
            get_all([engine.stop.remote() for engine in self.actors.engines], 30.0)
        except (ray.exceptions.RayError, RuntimeError) as error:
            self.folder.note(f"not everything stopped of itself: {first_line(error)}", traceback.format_exc())
            self.books = self.books or books_of(self.config, self.folder.ledger_lines())
        self.crew.dismiss()
