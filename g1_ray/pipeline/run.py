"""A training run: starts the actors, keeps both graphs going, and writes down what came of it.

    for every lane: admit -> observe -> generate -> score -> put, again and again
    for every step: take -> step -> weights -> load_policy -> release; then, when due, canary, checkpoint, evaluation

The driver moves no data: it starts ticks, and reads small reports. It waits for a step between steps only where
something is due that needs engines and learners to stand still (`checkup.py`).
"""

import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import ray

from g1_ray.config import RunConfig
from g1_ray.pipeline.actors import Receipt, StepSummary, hire
from g1_ray.pipeline.checkup import Checkup, await_parts, get, get_all
from g1_ray.pipeline.graph import Executor, Finished, first_line, rollout_graph, train_graph
from g1_ray.runs.run_folder import RunFolder
from g1_ray.types import Origin, StepReport

log = logging.getLogger(__name__)
TRAIN = -1
"""The lane of the train graph."""
MAX_FAILURES = 20
"""Rollout ticks that fail one after the other, none going well between them, before the run gives up."""
MAX_SKIPPED = 5
"""Steps that are skipped one after the other before the run gives up."""
FLAT_IN_A_ROW = 64
"""Flat groups one after the other, or those of two steps, before the run says so; again at every doubling."""


class Pipeline:
    """One run on the Ray cluster that this process is connected to.

    `start` may take minutes, `train` goes on until the steps or the minutes are over or `should_stop` says so, `close`
    leaves nothing behind. A part that dies ends the run with an error that names it; what a checkpoint holds is safe.
    """

    def __init__(self, config: RunConfig, model_path: str, folder: RunFolder) -> None:
        self.config, self.model_path, self.folder = config, model_path, folder
        self.version = 0
        self.failures = self.skipped = 0
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
        log.info("started at step %d", self.version)

    def _publish(self) -> None:
        """Hands the learner's policy to the engines, outside of a step."""
        weights = [learner.weights.remote(None) for learner in self.actors.learners]
        report = StepReport(self.version, {}, Origin())
        get_all([engine.load_policy.remote(weights[0], report) for engine in self.actors.engines])
        get_all(weights[1:])

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
        begun = time.monotonic()
        for lane in range(self.config.asynchrony.lanes):
            self._start_lane(lane)
        while True:
            late = 0 < self.config.minutes * 60 <= time.monotonic() - begun
            over = self.version >= self.config.steps or late or should_stop()
            step = self.executor.ticks.get(TRAIN)
            if over and (step is None or step.opened is None):
                break
            if step is None:
                self.executor.start(TRAIN, train_graph(self.actors), self.version)
            for finished in self.executor.poll(timeout_s=1.0):
                if finished.tick.lane == TRAIN:
                    self._after_step(finished, on_step)
                else:
                    self._after_rollouts(finished, tell)
        if not self.folder.checkpoint(self.version).exists():
            self.save()

    def _start_lane(self, lane: int) -> None:
        graph = rollout_graph(self.actors, lane, self.config.rollout.turns)
        self.executor.start(lane, graph, self.config.asynchrony.groups_per_tick)

    def _after_rollouts(self, finished: Finished, tell: Callable[[str], None] = lambda text: None) -> None:
        """Books a tick of a rollout lane, and starts the next one; what it was to make is made again if it failed."""
        tick, failure = finished.tick, finished.failure
        receipt: Receipt | None = finished.result
        error, groups = failure.line if failure else "", receipt.groups if receipt else None
        self.folder.trace("rollout", tick.lane, tick.opened or tick.started, finished.at, groups=groups, error=error)
        if receipt:
            self._tell_of_flat(receipt.flat_in_a_row, tell)
        self.failures = self.failures + 1 if failure else 0
        if failure:
            log.warning("lane %d: %s", tick.lane, failure.line)
            self.folder.note(f"a tick of lane {tick.lane} failed: {failure.line}", failure.trace)
            if self.failures >= MAX_FAILURES:
                raise RuntimeError(f"{self.failures} rollout ticks failed one after the other; {failure.line}")
            get(self.actors.buffer.fail.remote(get(tick.gate), failure.line))
        self._start_lane(tick.lane)

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
        if finished.failure:
            self.folder.note(f"step {self.version + 1} failed: {finished.failure.line}", finished.failure.trace)
            raise RuntimeError(f"step {self.version + 1} failed; {finished.failure.line}")
        summary: StepSummary = finished.result
        report, origin = summary.report, summary.report.origin
        if report.skipped:
            log.warning("a batch for step %d was skipped: %s", self.version + 1, report.skipped)
            self.folder.note(f"a batch for step {self.version + 1} was skipped: {report.skipped}")
            self.skipped += 1
            if self.skipped >= MAX_SKIPPED:
                raise RuntimeError(f"{self.skipped} batches skipped one after the other; {report.skipped}")
            return
        self.version, self.skipped = report.version, 0
        about = {"step": report.version, "min_version": origin.min_version}
        self.folder.trace("train", TRAIN, origin.taken_at, finished.at, **about)
        metrics = {**report.metrics, **{f"groups/{name}": float(n) for name, n in summary.books.items()}}
        try:
            if self._is_due(self.config.canary_every):
                metrics.update(self.checkup.canary(self.version))
            if self._is_due(self.config.eval.every):
                metrics.update(self.checkup.evaluate(self.version))
            if self._is_due(self.config.eval.lab_every):
                metrics.update(self.checkup.examine())
        finally:  # whatever these come to, the step has been made
            on_step(self.version, metrics)
        if self._is_due(self.config.checkpoint_every):
            self.save()  # after the line: a run that goes on from a checkpoint has the lines of all steps before

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.version % every == 0

    def save(self) -> Path:
        """Writes the checkpoint of this step: every rank takes part, and the buffer's books go with it."""
        state = get(self.actors.buffer.snapshot.remote(self.version))
        path = self.folder.checkpoint(self.version)
        get_all([learner.save.remote(str(path), state) for learner in self.actors.learners])
        self.folder.prune_checkpoints(self.config.keep_checkpoints)
        return path

    def close(self) -> None:
        """Ends all actors. What is in flight stays so in `books`, and is lost."""
        if not hasattr(self, "crew"):
            return
        try:
            self.books = get(self.actors.buffer.close.remote(), 30.0)
            get_all([engine.stop.remote() for engine in self.actors.engines], 30.0)
        except (ray.exceptions.RayError, RuntimeError) as error:
            self.folder.note(f"not everything stopped of itself: {first_line(error)}", traceback.format_exc())
        self.crew.dismiss()
