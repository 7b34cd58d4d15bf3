"""What a pipeline does about failures: who failed is found, groups are made again, steps booked, or all go back.

Parts are brought back by `recovery.py`. What is done here is the run's own part in it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from g1_ray.config import RunConfig
from g1_ray.files import folder_bytes
from g1_ray.pipeline.actors import START_TIMEOUT_S, StepSummary
from g1_ray.pipeline.checkup import Checkup, get, get_all, named, patience
from g1_ray.pipeline.graph import MAY_FAIL, Actors, Executor, Failure, Tick, actor_of, first_line
from g1_ray.pipeline.parts import Part
from g1_ray.pipeline.recovery import Recovery
from g1_ray.runs.run_folder import RunFolder
from g1_ray.types import Origin, StepReport, Ticket

log = logging.getLogger(__name__)
MAX_FAILURES = 20
"""Rollout ticks that fail one after the other though nobody has died, before the run gives up."""


class BrokenOff(Exception):
    """What was being done is not gone on with."""


class Outliving:
    """What `Pipeline` stands on."""

    config: RunConfig
    folder: RunFolder
    actors: Actors
    executor: Executor
    recovery: Recovery
    checkup: Checkup
    version: int
    failures: int
    _model_bytes: int
    _checkpoint_bytes: int
    _backs: int
    _at_work: dict[int, tuple[Part, Part]]

    def _publish(self) -> None:
        """Hands the learner's policy to the engines, outside of a step."""
        weights = [learner.weights.remote(None) for learner in self.actors.learners]
        report = StepReport(self.version, {}, Origin())
        loading = [engine.load_policy.remote(weights[0], report) for engine in self.actors.engines]
        get_all([*loading, *weights[1:]], patience(self._checkpoint_bytes))

    def _publish_back(self) -> None:
        """Hands it to those that are up, which may be ahead of it; who does not take it is brought back."""
        weights = [learner.weights.remote(None) for learner in self.actors.learners]
        report, engines = StepReport(self.version, {}, Origin()), self.recovery.of("engine")
        get_all(weights[1:])
        loading = [(part, part.actor.load_policy.remote(weights[0], report, True)) for part in engines]
        for part, loaded in loading:
            part.version = self.version
            try:
                get(loaded, look=self.recovery.look)
            except (ray.exceptions.RayError, RuntimeError) as error:
                self.recovery.lose(part, f"did not go back to step {self.version}: {first_line(error)}")

    def _after_failure(self, tick: Tick, failure: Failure) -> None:
        """Looks for who failed. A group is not blamed for the death of a part."""
        part = self.recovery.part_of(failure.actor)
        hangs = part and failure.error is None and part.answered < (tick.opened or 0.0)
        if part and (failure.died or hangs):  # one that answers others is slow, or asked too much
            self.recovery.accuse(part, failure.line, tick.started)
        blame = not failure.died and (part is None or self.recovery.examine(part))
        log.warning("lane %d: %s", tick.lane, failure.line)
        self.folder.note(f"a tick of lane {tick.lane} failed: {failure.line}", failure.trace)
        self.failures += blame
        if self.failures >= MAX_FAILURES:
            raise RuntimeError(f"{self.failures} rollout ticks failed one after the other; {failure.line}")
        if tick.opened is not None:
            tickets = self._tickets(tick)
            self._ask_buffer("fail", tickets, failure.line, blame)

    def _who_hangs(self, failure: Failure) -> Any:
        """The actor to blame where some give no answer; what they are at is noted."""
        silent = [part for part in map(self.recovery.part_of, failure.silent) if part and part.up]
        part = self.recovery.name(silent, failure.line)
        return part.actor if part else failure.actor

    def _tickets(self, tick: Tick) -> list[Ticket]:
        """What a tick was to make; nothing where the buffer died with it."""
        try:
            tickets: list[Ticket] = get(tick.gate, 1.0)
        except (ray.exceptions.RayError, RuntimeError):
            return []
        return tickets

    def _ask_buffer(self, method: str, *arguments: Any) -> Any:
        """A call of the buffer's, made again where it dies or hangs, until it is back."""
        deadline = time.monotonic() + START_TIMEOUT_S
        look = self.recovery.look if hasattr(self, "recovery") else None  # what is closed may not have come so far
        while True:
            try:
                return get(getattr(self.actors.buffer, method).remote(*arguments), look=look, who=f"buffer: {method}")
            except ray.exceptions.RayActorError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
                if look:
                    look()

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
        self.recovery.accuse(ends, failure.line, tick.started)
        step = tick.refs[id(tick.named("step")[0])]
        summary: StepSummary = self._ask_buffer("release", get(step))
        return summary

    def _after_failed_step(self, tick: Tick, failure: Failure) -> None:
        """Who died, or gave no answer in all that time, is brought back; what somebody raised who lives ends the run.

        A step that was made, and did not get any further, is made again from the checkpoint.
        """
        part = self.recovery.part_of(failure.actor)
        name = f" on {part.name}" if part else ""
        self.folder.note(f"step {self.version + 1} failed{name}: {failure.line}", failure.trace)
        if part and (failure.died or failure.error is None):
            self.recovery.accuse(part, failure.line, tick.started)
        elif all([self.recovery.examine(other) for other in self.recovery.parts if other.up]):
            # Nobody has died: of a rank that another has left, too, the error may be heard before that.
            raise RuntimeError(f"step {self.version + 1} failed{name}; {failure.line}")
        if any(tick.passed.get(id(node)) for node in tick.named("step")):
            self.recovery.lose(self.recovery.of("learner", up=False)[0], "is ahead by a step that went no further")

    def _catch_up(self, tick: Tick, report: StepReport) -> None:
        """Engines that came back while a step was made get its policy too."""
        actors = [actor_of(node) for node in tick.named(MAY_FAIL) if tick.passed.get(id(node))]
        weights = tick.refs[id(tick.named("weights")[0])]
        for part in self.recovery.of("engine"):
            if part.actor not in actors:
                try:
                    get(part.actor.load_policy.remote(weights, report), look=self.recovery.look)
                except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
                    self.recovery.lose(part, f"did not load step {report.version}: {first_line(error)}")
                    continue
            part.version = report.version

    def _undo_what_was_lost(self) -> None:
        """A buffer that is back has lost what was in flight: a deterministic run goes back with it."""
        backs = self.recovery.counts["buffer"]
        if self.config.deterministic and backs > self._backs:
            self.recovery.lose(self.recovery.of("learner", up=False)[0], "goes back with the buffer")
        self._backs = backs

    def rewind(self, lost: Part, tell: Callable[[str], None] = lambda text: None) -> None:
        """All ranks start anew from the newest checkpoint, and everybody else goes back to it."""
        began, learners = time.monotonic(), self.recovery.of("learner", up=False)
        tell(f"{lost.name} is gone: going back to the newest checkpoint")
        for part in learners:
            self.recovery.lose(part, f"ends with {lost.name}")
        self.executor.clear()
        self._at_work.clear()
        for part in self.recovery.parts:
            part.busy = 0
        try:
            told = self._back_to_the_checkpoint(learners)
        except ray.exceptions.RayError as error:
            for part in learners:
                part.up = True
            self.recovery.lose(lost, f"died again: {first_line(error)}")  # and so once more, or for too many times
            return
        self.recovery.forget()
        self.checkup.forget()
        self.recovery.counts["learner"] += 1
        for line in told:
            self.folder.note(line)
        tell(f"goes on from step {self.version}")
        self.folder.note(f"goes on from step {self.version} after {time.monotonic() - began:.1f} s")

    def _back_to_the_checkpoint(self, learners: Sequence[Part]) -> list[str]:
        """What there is to tell of the checkpoint."""
        for part in learners:
            for _ in self.recovery.reborn(part):
                time.sleep(0.05)
        self._ask_buffer("pause")
        checkpoint, told = self.folder.rewind()
        address = learners[0].actor.address.remote()
        setting_up = [part.actor.setup.remote(address) for part in learners]
        get_all(setting_up, patience(len(learners) * self._model_bytes, START_TIMEOUT_S))
        self.version, state = 0, None
        if checkpoint is not None:
            loading = [part.actor.load.remote(str(checkpoint)) for part in learners]
            self.version, state = get_all(loading, patience(len(learners) * folder_bytes(checkpoint)))[0]
        self._ask_buffer("reopen", state)
        for part in learners:
            part.back()
        self._publish_back()
        return told

    def _save_what_was_learned(self) -> None:
        """Before the run ends with an error, if there is something to save and the learners are well."""
        made = self.version and not self.folder.checkpoint(self.version).exists()
        if made and self.recovery.lost_learner is None:
            try:
                self.save()
            except Exception as error:  # noqa: BLE001 - the error that ends the run is the one to be told
                self.folder.note(f"step {self.version} could not be saved: {first_line(error)}")

    def save(self, last: bool = False, look: Callable[[], None] | None = None) -> Path:
        """Writes the checkpoint of this step: every rank takes part, and the buffer's books go with it.

        `look` is called now and then meanwhile, by default to see who is well. Raises `BrokenOff` in a deterministic
        run whose buffer has died since the one before, but for the `last` step.
        """
        state = self._ask_buffer("snapshot", self.version, self.config.deterministic and not last)
        if state is None:
            raise BrokenOff("the buffer has died, and the run goes back with it")
        path = self.folder.checkpoint(self.version)
        saving = [learner.save.remote(str(path), state) for learner in self.actors.learners]
        who = named("learner", range(len(saving)), "save")
        limit_s = patience(2 * self._checkpoint_bytes)  # written, then checksummed
        get_all(saving, limit_s, look or self.recovery.look, who)
        self._ask_buffer("saved", self.version)
        self.folder.prune_checkpoints(self.config.keep_checkpoints)
        return path
