"""What is done between two steps, while the policy is one and the same everywhere: canary, evaluation, lab."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray

from envs import State
from envs.rewards import reward_named
from g1_ray.config import GameConfig, RunConfig
from g1_ray.engines.weight_sync import CANARY_TOLERANCE, Canary, check_sight
from g1_ray.evaluation.job import Job, News, work
from g1_ray.evaluation.lab import AS_IS, TRUE, experiment, lab_metrics, lab_states
from g1_ray.evaluation.play import Run, ask_model, play_asked
from g1_ray.evaluation.players import Model, Opened
from g1_ray.evaluation.results import result_of
from g1_ray.pipeline.actors import START_TIMEOUT_S
from g1_ray.pipeline.graph import Actors, first_line
from g1_ray.types import Completion, Request, Sampling

if TYPE_CHECKING:
    from g1_ray.models.chat import Chat

log = logging.getLogger(__name__)
CALL_TIMEOUT_S = 600.0
"""Longest wait for a single call outside of the graphs, e.g. a canary, but for what `patience` adds."""
LOOK_EVERY_S = 0.25
"""Between two looks at the rest of the run, while such a call is waited for."""
SLOWEST = 50e6
"""Bytes a second that any disk reads or writes, shared as it may be. A checkpoint may have a hundred gigabytes."""


def patience(num_bytes: float, limit_s: float = CALL_TIMEOUT_S) -> float:
    """Longest wait, s, for what reads or writes so many bytes."""
    return limit_s + num_bytes / SLOWEST


class Checkup:
    """Of the policy that the engines hold. All of it is metrics of the step."""

    def __init__(self, config: RunConfig, model_path: str, actors: Actors) -> None:
        self.config, self.model_path, self.actors = config, model_path, actors
        self.look: Callable[[], None] = lambda: None
        """Called now and then while somebody is waited for; what it raises breaks off what is being done."""
        self.current: Callable[[], Sequence[int]] = lambda: range(len(actors.engines))
        """The engines that are up and hold the policy."""
        self._canaries = [Canary(CANARY_TOLERANCE[config.model.dtype]) for _ in actors.engines]
        self.sequences = get(actors.env_workers[0].canaries.remote(), START_TIMEOUT_S)
        self._turn = 0  # single questions go to one engine after the other
        self._sampling = Sampling(1.0, 1.0, config.rollout.max_tokens)

    def forget(self) -> None:
        """What the last canary found is of a policy that is no more."""
        self._canaries = [Canary(CANARY_TOLERANCE[self.config.model.dtype]) for _ in self.actors.engines]

    def canary(self, version: int) -> dict[str, float]:
        """Compares every engine with the learner on fixed sequences, and makes sure that all of them see.

        Raises `WeightSyncError` where they differ, `BlindError` where a picture makes no difference to one.
        """
        asking = [learner.logprobs.remote(self.sequences) for learner in self.actors.learners]
        learned = get_all(asking, look=self.look, who=named("learner", range(len(asking)), "logprobs"))[0]
        asked = self.current()
        asking = [self.actors.engines[i].logprobs.remote(self.sequences) for i in asked]
        answered = get_all(asking, look=self.look, who=named("engine", asked, "logprobs"))
        scored = {f"engine {i}": each for i, each in zip(asked, answered, strict=True)}
        check_sight(version, [game.name for game in self.config.games], {"the learner": learned, **scored})
        gaps = [self._canaries[i].check(version, each, learned) for i, each in zip(asked, answered, strict=True)]
        return {"canary_nats": max(gaps)} if gaps else {}

    def evaluate(self, version: int) -> dict[str, float]:
        """What the policy is worth, at temperature 1, by the protocol of the config."""
        config, metrics = self.config.eval, {}
        seeds = range(config.seed, config.seed + config.runs)
        ask = ask_model(self._chat, self._generate, self._sampling)

        async def play(game: GameConfig) -> list[Run]:
            about, reward = (game.task(), game.name, f"step {version}", ask), reward_named(game.reward)
            return await asyncio.gather(*(play_asked(*about, seed, config.moves, reward) for seed in seeds))

        for game in self.config.games:
            runs = asyncio.run(play(game))
            result = result_of(game.name, "", runs)
            metrics[f"{game.name}/eval_score"] = result.score.mean
            metrics[f"{game.name}/eval_scoring"] = result.scoring.mean / 100
            metrics[f"{game.name}/eval_p_acc"] = result.p_acc
        return metrics

    def answer(self, job: Job) -> Iterator[list[News]]:
        """Does a job of an evaluation, of players that are this policy, with the run's own engines, all of them."""
        players = [entry.player for entry in job.entries]
        asks = {p.name: ask_model(self._chat, self._generate, p.sampling) for p in players if isinstance(p, Model)}
        yield from work(job, Opened(lambda player, question: asks[player.name](question)))

    def examine(self) -> dict[str, float]:
        """What the lab finds of the policy, at temperature 1."""
        metrics: dict[str, float] = {}
        for game in self.config.games:
            states = self._lab_states[game.name]
            asked = experiment(game.name, "", states, self._chat, self._generate, self._sampling, (AS_IS, TRUE))
            metrics.update(lab_metrics(asyncio.run(asked)))
        return metrics

    @functools.cached_property
    def _lab_states(self) -> dict[str, list[State]]:
        num = self.config.eval.lab_states
        return {game.name: lab_states(game.task(), num) for game in self.config.games}

    @functools.cached_property
    def _chat(self) -> "Chat":
        from g1_ray.models.chat import Chat

        return Chat(self.model_path)

    async def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Sequence[Completion]]:
        """Answers outside of training, from all engines together; those that are up are asked again where one dies."""
        deadline = time.monotonic() + self.config.eval.timeout_s
        while True:
            try:
                if engines := [self.actors.engines[i] for i in self.current()]:
                    return await self._from(engines, requests, sampling, deadline)
            except ray.exceptions.RayError as error:
                log.warning("asked again: %s", first_line(error))
            self._check_time(deadline)
            await asyncio.sleep(1.0)
            self.look()  # who has died is found, and brought back

    async def _from(
        self, engines: Sequence[Any], requests: Sequence[Request], sampling: Sampling, deadline: float
    ) -> list[Sequence[Completion]]:
        self._turn += 1
        shares = [list(requests[i :: len(engines)]) for i in range(len(engines))]
        asked = [(engines[(i + self._turn) % len(engines)], part) for i, part in enumerate(shares) if part]
        answering = asyncio.gather(*(engine.ask.remote(part, sampling) for engine, part in asked))
        while not (await asyncio.wait([answering], timeout=LOOK_EVERY_S))[0]:
            self.look()
            self._check_time(deadline)
        answers: list[Any] = [None] * len(requests)
        for i, part in enumerate(answering.result()):
            answers[i :: len(engines)] = part
        return answers

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the engines gave no answer in {self.config.eval.timeout_s:g} s")


def named(role: str, which: Iterable[int], call: str) -> list[str]:
    """E.g. ["learner 0: save", "learner 1: save"]."""
    return [f"{role} {index}: {call}" for index in which]


class NoAnswer(RuntimeError):
    """A call outside of the graphs came to no end in time."""


def get_all(
    refs: Sequence[ray.ObjectRef],
    timeout_s: float = CALL_TIMEOUT_S,
    look: Callable[[], None] | None = None,
    who: Sequence[str] = (),
) -> list[Any]:
    """The results of actor calls, each waited for so long; `who` says whose they are, e.g. "learner 0: save"."""
    return [get(ref, timeout_s, look, who[i] if who else "") for i, ref in enumerate(refs)]


def await_parts(
    parts: Mapping[str, Sequence[ray.ObjectRef]], tell: Callable[[str], None], timeout_s: float = START_TIMEOUT_S
) -> None:
    """Waits for the calls that bring parts of a run up, and tells how many of each are, as they come.

    Raises what the first call that fails raised, and `RuntimeError` that says who is not there in time.
    """
    deadline, left = time.monotonic() + timeout_s, [ref for refs in parts.values() for ref in refs]
    while left:
        told = ", ".join(
            f"{name} {len(refs) - sum(r in left for r in refs)}/{len(refs)}" for name, refs in parts.items()
        )
        tell(f"starting: {told}")
        up: list[ray.ObjectRef] = []
        while not up:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not everything is up after {timeout_s:g} s: {told}")
            up, _ = ray.wait(left, num_returns=len(left), timeout=1.0, fetch_local=False)
        for ref in up:
            get(ref)
        left = [ref for ref in left if ref not in up]


def get(
    ref: ray.ObjectRef, timeout_s: float = CALL_TIMEOUT_S, look: Callable[[], None] | None = None, who: str = ""
) -> Any:
    """The result of an actor call; `look` is called while it is waited for, and ends the wait if it raises.

    Raises `NoAnswer` that says `who` gave none in time, `ValueError` as the call did.
    """
    deadline = time.monotonic() + timeout_s
    while look and time.monotonic() < deadline and not ray.wait([ref], timeout=LOOK_EVERY_S, fetch_local=False)[0]:
        look()
    try:
        return ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        raise NoAnswer(f"{who + ': ' if who else ''}no answer after {timeout_s:g} s") from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):  # what the user gave
            raise error.cause from None
        raise
