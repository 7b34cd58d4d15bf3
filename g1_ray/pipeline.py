"""A training run: starts the actors, keeps both graphs going, and writes down what came of it.

    for every lane: admit -> observe -> generate -> score -> put, again and again
    for every step: take -> step -> weights -> load_policy -> release; then, when due, canary, checkpoint, evaluation

The driver moves no data: it starts ticks, and reads small reports. It waits for a step between steps only where
something is due that needs engines and learners to stand still.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from envs import State
from envs.rewards import reward_named
from g1_ray.actors import START_TIMEOUT_S, StepSummary, hire
from g1_ray.config import RunConfig
from g1_ray.evaluation import Run, model, play_asked
from g1_ray.graph import Executor, Finished, first_line, rollout_graph, train_graph
from g1_ray.lab import AS_IS, TRUE, experiment, lab_states, metrics_of
from g1_ray.results import result_of
from g1_ray.run_folder import RunFolder
from g1_ray.types import Completion, Request, Sampling
from g1_ray.weight_sync import CANARY_TOLERANCE, Canary

if TYPE_CHECKING:
    from g1_ray.chat import Chat

TRAIN = -1
"""The lane of the train graph."""
MAX_FAILURES = 20
"""Rollout ticks that fail one after the other, none going well between them, before the run gives up."""
MAX_SKIPPED = 5
"""Steps that are skipped one after the other before the run gives up."""
CALL_TIMEOUT_S = 600.0
"""Longest wait for a single call outside of the graphs: a checkpoint, a canary, a batch of answers."""


class Pipeline:
    """One run on the Ray cluster that this process is connected to.

    `start` may take minutes, `train` goes on until the steps or the minutes are over or `should_stop` says so, `close`
    leaves nothing behind. A part that dies ends the run with an error that names it; what a checkpoint holds is safe.
    """

    def __init__(self, config: RunConfig, model_path: str, folder: RunFolder) -> None:
        self.config, self.model_path, self.folder = config, model_path, folder
        self.version = 0
        self.failures = self.skipped = 0
        self._lab_states: dict[str, list[State]] = {}
        self._turn = 0  # single questions go to one engine after the other
        self.books: dict[str, int] = {}
        """What became of all groups, once closed: issued = trained + dropped + quarantined + in_flight."""

    def start(self, checkpoint: Path | None = None) -> None:
        """Brings up every actor with one and the same policy: that of the checkpoint, or the model as it is."""
        self.crew = hire(self.config, self.model_path, str(self.folder.path))
        self.actors = self.crew.actors
        self.executor = Executor(self.config.asynchrony.tick_timeout_s)
        starting = [engine.start.remote() for engine in self.actors.engines]
        address = self._get(self.actors.learners[0].address.remote(), START_TIMEOUT_S)
        self._all([learner.setup.remote(address) for learner in self.actors.learners], START_TIMEOUT_S)
        if checkpoint is not None:
            self._resume(checkpoint)
        self._all(starting, START_TIMEOUT_S)
        if self.version:
            self._publish()
        self.canaries = [Canary(CANARY_TOLERANCE[self.config.model.dtype]) for _ in self.actors.engines]
        self.sequences = self._get(self.actors.env_workers[0].canaries.remote(), START_TIMEOUT_S)
        self.check_canary()

    def _resume(self, checkpoint: Path) -> None:
        loaded = self._all([learner.load.remote(str(checkpoint)) for learner in self.actors.learners])
        self.version, state = loaded[0]
        self._get(self.actors.buffer.load_state_dict.remote(state))

    def _publish(self) -> None:
        """Hands the learner's policy to the engines, outside of a step."""
        weights = [learner.weights.remote(None) for learner in self.actors.learners]
        self._all([engine.load_version.remote(weights[0], self.version) for engine in self.actors.engines])
        self._all(weights[1:])

    # The loop

    def train(
        self,
        on_step: Callable[[int, dict[str, float]], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs both graphs until the run is over, and leaves a checkpoint at the end."""
        begun, asynchrony = time.monotonic(), self.config.asynchrony
        for lane in range(asynchrony.lanes):
            self._start_lane(lane)
        self._start_step()
        while TRAIN in self.executor.ticks:
            for finished in self.executor.poll(timeout_s=1.0):
                if finished.tick.lane != TRAIN:
                    self._after_rollouts(finished)
                    continue
                self._after_step(finished, on_step)
                late = 0 < self.config.minutes * 60 <= time.monotonic() - begun
                if self.version < self.config.steps and not late and not should_stop():
                    self._start_step()
        if not self._is_saved():
            self.save()

    def _start_lane(self, lane: int) -> None:
        graph = rollout_graph(self.actors, lane, self.config.rollout.turns)
        self.executor.start(lane, graph, self.config.asynchrony.groups_per_tick)

    def _start_step(self) -> None:
        self.executor.start(TRAIN, train_graph(self.actors), self.version)

    def _after_rollouts(self, finished: Finished) -> None:
        """Books a tick of a rollout lane, and starts the next one; what it was to make is made again if it failed."""
        tick = finished.tick
        self.folder.trace(
            "rollout", tick.lane, tick.opened or tick.started, finished.at, groups=finished.result, error=finished.error
        )
        if not finished.error:
            self.failures = 0
        else:
            self.failures += 1
            if self.failures >= MAX_FAILURES:
                raise RuntimeError(f"{self.failures} rollout ticks failed one after the other; {finished.error}")
            tickets = self._get(tick.gate)
            self._get(self.actors.buffer.fail.remote(tickets, finished.error))
        self._start_lane(tick.lane)

    def _after_step(self, finished: Finished, on_step: Callable[[int, dict[str, float]], None]) -> None:
        """Books an optimizer step, and does what is due after it."""
        if finished.error:
            raise RuntimeError(f"step {self.version + 1} failed; {finished.error}")
        summary: StepSummary = finished.result
        if summary.skipped:
            self.folder.note(f"a batch for step {self.version + 1} was skipped: {summary.skipped}")
            self.skipped += 1
            if self.skipped >= MAX_SKIPPED:
                raise RuntimeError(f"{self.skipped} batches skipped one after the other; {summary.skipped}")
            return
        self.version, self.skipped = summary.version, 0
        about = {"step": summary.version, "min_version": summary.min_version}
        self.folder.trace("train", TRAIN, summary.taken_at, finished.at, **about)
        metrics = {**summary.metrics, **{f"groups/{name}": float(n) for name, n in summary.books.items()}}
        config = self.config
        if config.canary_every and self.version % config.canary_every == 0:
            metrics.update(self.check_canary())
        if config.checkpoint_every and self.version % config.checkpoint_every == 0:
            self.save()
        if config.eval.every and self.version % config.eval.every == 0:
            metrics.update(self.evaluate())
        if config.eval.lab_every and self.version % config.eval.lab_every == 0:
            metrics.update(self.examine())
        on_step(self.version, metrics)

    # What is due between steps

    def check_canary(self) -> dict[str, float]:
        """Compares every engine with the learner on fixed sequences. Raises `WeightSyncError` where they differ."""
        learned = self._all([learner.logprobs.remote(self.sequences) for learner in self.actors.learners])[0]
        answered = self._all([engine.logprobs.remote(self.sequences) for engine in self.actors.engines])
        pairs = zip(self.canaries, answered, strict=True)
        return {"canary_nats": max(canary.check(self.version, engine, learned) for canary, engine in pairs)}

    def save(self) -> Path:
        """Writes the checkpoint of this step: every rank takes part, and the buffer's books go with it."""
        state = self._get(self.actors.buffer.snapshot.remote(self.version))
        path = self.folder.checkpoint(self.version)
        self._all([learner.save.remote(str(path), state) for learner in self.actors.learners])
        self.folder.prune_checkpoints(self.config.keep_checkpoints)
        return path

    def _is_saved(self) -> bool:
        return self.folder.checkpoint(self.version).exists()

    def evaluate(self) -> dict[str, float]:
        """What the policy of the engines is worth now, at temperature 1, by the protocol of the config."""
        config, metrics = self.config, {}
        seeds = range(config.eval.seed, config.eval.seed + config.eval.runs)
        ask = model(self._chat, self._generate, Sampling(1.0, 1.0, config.rollout.max_tokens))
        for game in config.games:
            about = (game.task(), game.name, f"step {self.version}", ask)
            plays = [play_asked(*about, seed, config.eval.moves, reward_named(game.reward)) for seed in seeds]
            result = result_of(game.name, "", asyncio.run(_together(plays)))
            metrics[f"{game.name}/eval_score"] = result.score.mean
            metrics[f"{game.name}/eval_scoring"] = result.scoring.mean / 100
            metrics[f"{game.name}/eval_p_acc"] = result.p_acc
        return metrics

    def examine(self) -> dict[str, float]:
        """What the lab finds of the policy of the engines now, at temperature 1."""
        config, metrics = self.config, {}
        sampling = Sampling(1.0, 1.0, config.rollout.max_tokens)
        for game in config.games:
            if game.name not in self._lab_states:
                self._lab_states[game.name] = lab_states(game.task(), config.eval.lab_states)
            states = self._lab_states[game.name]
            asked = experiment(game.name, "", states, self._chat, self._generate, sampling, (AS_IS, TRUE))
            metrics.update(metrics_of(asyncio.run(asked)))
        return metrics

    @functools.cached_property
    def _chat(self) -> Chat:
        from g1_ray.chat import Chat

        return Chat(self.model_path)

    async def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Sequence[Completion]]:
        """Answers outside of training, from all engines together."""
        engines = self.actors.engines
        self._turn += 1
        shares = [list(requests[i :: len(engines)]) for i in range(len(engines))]
        asked = [(engines[(i + self._turn) % len(engines)], part) for i, part in enumerate(shares) if part]
        parts = await asyncio.gather(*(engine.ask.remote(part, sampling) for engine, part in asked))
        answers: list[Any] = [None] * len(requests)
        for i, part in enumerate(parts):
            answers[i :: len(engines)] = part
        return answers

    def close(self) -> None:
        """Ends all actors. What is in flight stays so in `books`, and is lost."""
        if not hasattr(self, "crew"):
            return
        try:
            self.books = self._get(self.actors.buffer.close.remote(), 30.0)
            self._all([engine.stop.remote() for engine in self.actors.engines], 30.0)
        except (ray.exceptions.RayError, RuntimeError) as error:
            self.folder.note(f"not everything stopped of itself: {first_line(error)}")
        self.crew.dismiss()

    # Waiting

    def _all(self, refs: Sequence[ray.ObjectRef], timeout_s: float = CALL_TIMEOUT_S) -> list[Any]:
        return [self._get(ref, timeout_s) for ref in refs]

    def _get(self, ref: ray.ObjectRef, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            return ray.get(ref, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise RuntimeError(f"no answer after {timeout_s:g} s") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError):  # what the user gave
                raise error.cause from None
            raise


async def _together(plays: Sequence[Coroutine[Any, Any, Run]]) -> list[Run]:
    return await asyncio.gather(*plays)
