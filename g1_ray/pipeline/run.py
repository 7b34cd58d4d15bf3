"""A training run: starts the actors, keeps both graphs going, and writes down what came of it.

    for every lane: admit -> observe -> generate -> score -> put, again and again
    for every step: take -> step -> weights -> load_policy -> release; then, when due, canary, checkpoint, evaluation

The driver moves no data: it starts ticks, and reads small reports. No step is made while a checkpoint is written or
the policy looked at (`checkup.py`); rollouts go on meanwhile, as far ahead as they may. Parts that die are brought
back while the others go on (`recovery.py`).
"""

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ray
from ray.dag import DAGNode

from g1_ray.config import RunConfig
from g1_ray.files import folder_bytes
from g1_ray.models.words import Phrases
from g1_ray.pipeline.actors import START_TIMEOUT_S, Receipt, StepSummary, hire
from g1_ray.pipeline.checkup import Checkup, NoAnswer, await_parts, get, get_all, patience
from g1_ray.pipeline.graph import Executor, Finished, first_line, rollout_graph, train_graph
from g1_ray.pipeline.outliving import BrokenOff, Outliving
from g1_ray.pipeline.parts import Part
from g1_ray.pipeline.recovery import Recovery
from g1_ray.pipeline.replay_buffer import books_of
from g1_ray.runs.run_folder import RunFolder

log = logging.getLogger(__name__)
STATUS_EVERY_S = 2.0
TRAIN = -1
"""The lane of the train graph."""
MAX_SKIPPED = 5
"""Steps that are skipped one after the other before the run gives up."""
FLAT_IN_A_ROW = 64
"""Flat groups one after the other, or those of two steps, before the run says so; again at every doubling."""


class Pipeline(Outliving):
    """One run on the Ray cluster that this process is connected to.

    `start` may take minutes, `train` goes on until the steps or the minutes are over or `should_stop` says so, `close`
    leaves nothing behind. A part that dies is brought back; one that dies again and again ends the run with an error
    that names it. What a checkpoint holds is safe.
    """

    def __init__(self, config: RunConfig, model_path: str, words: Phrases, folder: RunFolder) -> None:
        self.config, self.model_path, self.words, self.folder = config, model_path, words, folder
        self.version = self._checkpoint_bytes = 0
        self._model_bytes = folder_bytes(Path(model_path))
        self.failures = self.skipped = self._backs = 0
        self._should_stop: Callable[[], bool] = lambda: False
        self._tell: Callable[[str], None] = lambda text: None
        self._training = False
        self._told_at = 0.0
        self._at_work: dict[int, tuple[Part, Part]] = {}  # lane -> the env worker and the engine of its tick
        self._graphs: dict[tuple[int, int], DAGNode] = {}  # by the numbers of those two
        self._many_flat = max(FLAT_IN_A_ROW, 2 * config.rollout.groups_per_step)
        self._tell_at = self._many_flat  # flat groups in a row
        self.books: dict[str, int] = {}
        """What became of all groups, once closed: issued = trained + dropped + quarantined + in_flight."""

    def start(self, checkpoint: Path | None = None, tell: Callable[[str], None] = lambda text: None) -> None:
        """Brings up every actor with one and the same policy: that of the checkpoint, or the model as it is.

        `tell` hears which parts are up.
        """
        self.crew = hire(self.config, self.model_path, self.words, str(self.folder.path), tell)
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
        readers = len(actors.learners) + len(actors.engines)
        its = len(actors.learners) * folder_bytes(checkpoint) if checkpoint else 0
        await_parts(parts, tell, patience(readers * self._model_bytes + its, START_TIMEOUT_S))
        self._checkpoint_bytes = get(parts["learner"][0])
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
        self.checkup.look, self.checkup.current = self._look, self._current
        self.executor.who_hangs = self._who_hangs
        for part in self.recovery.of("engine"):
            part.version = self.version
        log.info("started at step %d", self.version)

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
        begun, self._should_stop, self._tell, self._training = time.monotonic(), should_stop, tell, True
        try:
            while True:
                late = 0 < self.config.minutes * 60 <= time.monotonic() - begun
                over = self.version >= self.config.steps or late or should_stop()
                step = self.executor.ticks.get(TRAIN)
                if over and (step is None or step.opened is None):
                    break
                self._start_step()
                self._start_lanes()
                news = self.executor.poll(timeout_s=0.2 if self.recovery.healing else 1.0)
                # A step last: what is due after it may start ticks on lanes whose own are booked by then.
                for finished in sorted(news, key=lambda its: its.tick.lane == TRAIN):
                    if finished.tick.lane == TRAIN:
                        self._after_step(finished, on_step)
                    else:
                        self._after_rollouts(finished)
                self.recovery.look()
                self._undo_what_was_lost()
                self._tell_status()
                if (lost := self.recovery.lost_learner) is not None:
                    self.rewind(lost, tell)
        except Exception as error:
            if isinstance(error, NoAnswer):
                self.recovery.name([part for part in self.recovery.parts if part.up], str(error))
            self._save_what_was_learned()
            raise
        finally:
            self._training = False
        if not self.folder.checkpoint(self.version).exists():
            self.save(last=True)

    def _start_step(self) -> None:
        """Starts the train graph, where it is over and those that it takes are up."""
        if TRAIN not in self.executor.ticks and self.recovery.of("buffer") and (up := self.recovery.of("engine")):
            actors = replace(self.actors, engines=[part.actor for part in up])
            self.executor.start(TRAIN, train_graph(actors), self.version)

    def _start_lanes(self) -> None:
        """Starts a tick on every lane that has none, where those that it takes are up."""
        if all(self.recovery.of(role) for role in ("buffer", "engine", "env worker")):
            for lane in range(self.config.asynchrony.lanes):
                if lane not in self.executor.ticks:
                    self._start_lane(lane)

    def _roll_on(self) -> None:
        """While something outside of the graphs is waited for between two steps: rollouts go on meanwhile."""
        self.recovery.look()
        self._tell_status()
        if self._training:
            self._start_lanes()
            for finished in self.executor.poll(timeout_s=0.0):
                self._after_rollouts(finished)

    def _look(self) -> None:
        """The same for what is broken off where the run is to stop. Raises `BrokenOff`."""
        self._roll_on()
        if self._should_stop():
            raise BrokenOff("the run is to stop")

    def _tell_status(self) -> None:
        """Who is well, for `g1-ray status`."""
        if (now := time.time()) - self._told_at < STATUS_EVERY_S:
            return
        self._told_at = now
        parts = [
            {"name": part.name, "up": part.up, "node": part.place.node if part.place else "", "busy": part.busy,
             "process": part.place.pid if part.place else 0}
            for part in self.recovery.parts
        ]  # fmt: skip
        self.folder.write_status({"time": now, "step": self.version, "parts": parts, "ticks": len(self.executor.ticks)})

    def _start_lane(self, lane: int) -> None:
        """On the env worker and the engine that have least to do."""
        pair = [min(self.recovery.of(role), key=lambda part: part.busy) for role in ("env worker", "engine")]
        self._at_work[lane] = pair[0], pair[1]
        for part in pair:
            part.busy += 1
        which = pair[0].index, pair[1].index
        if which not in self._graphs:  # to bind one takes as long as to run it
            self._graphs[which] = rollout_graph(self.actors, *which, self.config.rollout.passes)
        self.executor.start(lane, self._graphs[which], self.config.asynchrony.groups_per_tick)

    def _after_rollouts(self, finished: Finished) -> None:
        """Books a tick of a rollout lane; what it was to make is made again if it failed."""
        tick, failure = finished.tick, finished.failure
        for part in self._at_work.pop(tick.lane, ()):
            part.busy -= 1
            part.answered = part.answered if failure else finished.at
        receipt: Receipt | None = finished.result
        error, groups = failure.line if failure else "", receipt.groups if receipt else None
        self.folder.trace("rollout", tick.lane, tick.opened or tick.started, finished.at, groups=groups, error=error)
        if receipt:
            self._tell_of_flat(receipt.flat_in_a_row)
            if receipt.spoiled:
                raise RuntimeError(f"most of the last groups had something wrong with them; {receipt.spoiled}")
        if failure:
            self._after_failure(tick, failure)
        else:
            self.failures = 0

    def _tell_of_flat(self, in_a_row: int) -> None:
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
        self._tell(text)

    def _after_step(self, finished: Finished, on_step: Callable[[int, dict[str, float]], None]) -> None:
        """Books an optimizer step, and does what is due after it."""
        summary: StepSummary | None = self._released(finished.tick) if finished.failure else finished.result
        if summary is None:
            assert finished.failure, "a step that went well has a summary"
            self._after_failed_step(finished.tick, finished.failure)
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
                # After the line: a run that goes on from a checkpoint has the lines of all steps before.
                self.save(look=self._roll_on)
            except (ray.exceptions.RayError, BrokenOff) as error:
                self._after_death("the checkpoint", error)

    def _check_up(self, metrics: dict[str, float]) -> None:
        """Adds canary, evaluation and lab, where they are due; what a death breaks off is left out."""
        lab_every = self.config.eval.lab_every
        for due, what, check in (
            (self._is_due(self.config.canary_every), "the canary", lambda: self.checkup.canary(self.version)),
            (self._is_due(self.config.eval.every), "the evaluation", lambda: self.checkup.evaluate(self.version)),
            # After the first step too: what has been learned is told from where it began.
            (self._is_due(lab_every) or (lab_every and self.version == 1), "the lab", self.checkup.examine),
        ):
            if due:
                try:
                    metrics.update(check())
                except (ray.exceptions.RayError, BrokenOff) as error:
                    self._after_death(what, error)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.version % every == 0

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
