"""Perception-enhanced cold start: examples of a teacher's answers, each with the board described as it truly is.

    seed -> state (from a mix of sources) -> teacher -> Example -> parquet -> g1_ray.coldstart.sft

Example i depends on the seed and on i alone, so a data set is the same however many processes made it.
"""

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from envs import Codec, Game, State, Task
from envs.rewards import reward_named
from envs.styles import Generalist
from envs.teacher import Lesson, Oracle, Teacher, explain
from g1_ray.coldstart.config import LessonConfig, TeacherConfig
from g1_ray.evaluation.endpoint import Endpoint, EndpointConfig, EndpointError
from g1_ray.evaluation.moves import read_runs
from g1_ray.evaluation.play import Reply
from g1_ray.evaluation.replies import kept_replies
from g1_ray.files import Journal
from g1_ray.rollout.starts import draw
from g1_ray.runs.progress import Count
from g1_ray.seeds import seed_of

_LINE = TypeAdapter(tuple[str, str, int, Reply])
"""Of a teacher's replies: URL, model, what the answer was sampled with, reply."""
CHUNK = 128
"""Examples that a process makes at a time."""
PATIENCE = 32
"""Unusable answers in a row after which an endpoint is given up."""


@dataclass(frozen=True)
class Example:
    """A state and what a teacher answers to it."""

    game: str
    """Name of the game in the config."""
    state: State
    answer: str
    action: int
    erred: bool
    source: str
    """Where the state came from: fresh, random_walk, policy, oracle_backward, or moves: a file of them."""


class Unusable(ValueError):
    """An answer that nothing can be learned from; the message says why."""


class EndpointTeacher(Teacher):
    """A teacher behind an endpoint, with the true board put into its answers; they are kept in a file of `replies`."""

    def __init__(self, task: Task, config: EndpointConfig, replies: Path | None = None) -> None:
        self.endpoint, self._task, self.codec = Endpoint(config), task, Codec(task)
        self._prompt, self._lock = self.codec.prompt(), threading.Lock()
        self._source = config.url, config.model
        self._journal = Journal(replies) if replies else None
        kept = kept_replies(replies, _LINE) if replies else ()
        self._known = {seed: reply for *source, seed, reply in kept if tuple(source) == self._source}

    def answer(self, game: Game, rng: np.random.Generator) -> Lesson:
        """The endpoint's answer with the true board in place of what it saw. Raises `Unusable` where it has no move."""
        reply = self._ask(State.of(self._task, game), int(rng.integers(1 << 31)))
        read = self.codec.read(reply.text)
        if read.action is None:
            raise Unusable(str(read.cause))
        if not (read.thinking or "").strip():
            raise Unusable("no thinking")
        text = self.codec.write(game.perception(), (read.thinking or "").strip(), read.action)
        return Lesson(text, read.action, False)

    def _ask(self, state: State, seed: int) -> Reply:
        """The reply, known or new. Raises `ValueError` where the endpoint gives none to anything any more."""
        if seed in self._known:
            return self._known[seed]
        try:
            reply = self.endpoint.ask(state, self._prompt, seed)
        except EndpointError as error:
            if error.game_only:
                raise Unusable(error.cause) from None
            kept = "\nits answers are kept; --resume goes on with them" if self._journal else ""
            raise ValueError(f"teacher: {error}{kept}") from None
        if self._journal:
            with self._lock:
                self._journal.append([*self._source, seed, dataclasses.asdict(reply)])
        return reply


@dataclass(frozen=True)
class Maker:
    """Makes the examples of one game. States that a policy visits are visited by the erring oracle."""

    game: LessonConfig
    teacher: TeacherConfig
    seed: int
    replies: Path | None = None
    """File that an endpoint's answers are kept in, so that none is asked for twice."""

    @functools.cached_property
    def parts(self) -> tuple[Task, Oracle, Teacher]:
        """The task, the policy and the teacher."""
        task = self.game.task()
        oracle = Oracle(task, self.game.err)
        match self.teacher.kind:
            case "oracle":
                return task, oracle, oracle
            case "generalist":
                return task, oracle, Generalist(task, self.teacher.styles, self.teacher.follow)
        return task, oracle, EndpointTeacher(task, self.teacher, self.replies)

    def __call__(self, index: int) -> Example | str:
        """Example number `index`, or why there is none."""
        tries = [self._try(index, number) for number in range(self.game.longest_of if index % 2 else 1)]
        usable = [example for example in tries if isinstance(example, Example)]
        return max(usable, key=lambda example: len(example.answer)) if usable else tries[0]

    def _try(self, index: int, number: int) -> Example | str:
        task, policy, teacher = self.parts
        # The first try is the example that there would be without others.
        seed = seed_of("example", self.seed, self.game.name, index, *([number] if number else []))
        state, source = draw(task, self.game.states, seed, reward_named(self.game.reward), policy)
        try:
            lesson = teacher.answer(state.game(), np.random.default_rng(seed))
        except Unusable as error:
            return str(error)
        return Example(self.game.name, state, lesson.text, lesson.action, lesson.erred, source)

    def chunk(self, indices: Sequence[int]) -> list[Example | str]:
        """Several of them."""
        return [self(index) for index in indices]

    def executor(self, workers: int) -> tuple[Executor, int]:
        """What makes examples side by side, and how many it makes at a time."""
        if self.teacher.kind == "endpoint":
            assert self.parts  # made here, once, for all threads
            return ThreadPoolExecutor(self.teacher.concurrency), 1
        return ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")), CHUNK


def make_examples(
    maker: Maker, num: int, workers: int = 0, skipped: Callable[[str], None] = lambda cause: None
) -> Iterator[Example]:
    """The first `num` usable examples, in order; `workers`: processes, 0: one a core. `skipped` hears of the others.

    Raises `ValueError` where a teacher's answers are of no use.
    """
    executor, size = maker.executor(workers)
    with executor as pool, Count(f"examples of {maker.game.name}", num) as count:
        made, bad, first = 0, 0, 0
        while made < num:
            # Chunks never depend on how many are still wanted, so neither do examples on how many are made.
            chunks = [range(at, at + size) for at in range(first, first + num - made, size)]
            first = chunks[-1].stop
            for chunk in pool.map(maker.chunk, chunks):
                for example in chunk:
                    if isinstance(example, str):
                        bad += 1
                        skipped(example)
                        if bad == PATIENCE:
                            raise ValueError(f"{maker.game.name}: {bad} unusable answers in a row, the last: {example}")
                        continue
                    bad = 0
                    if made < num:
                        made += 1
                        count(made)
                        yield example


def examples_of_moves(game: LessonConfig, seed: int) -> Iterator[Example]:
    """The legal moves of a game's file of moves, up to `examples`, each as an answer that tells the true board.

    What the player thought stays where it said it; else the game's working stands there, where that leads to the move.
    Raises `ValueError` where the file has no such move, or is of other options than the game (its horizon may differ).
    """
    task, codec, left = game.task(), Codec(game.task()), game.examples
    for run in read_runs(Path(game.moves)):
        for number, move in enumerate(run.moves):
            if _endless(move.state.task) != _endless(task):
                raise ValueError(f"{game.moves}: moves of {move.state.task.to_json()},\nnot of {task.to_json()}")
            if not move.legal or move.action is None or not left:
                continue
            state, left = move.state.game(), left - 1
            rng = np.random.default_rng(seed_of("moves", seed, run.seed, number))
            said = (codec.read(move.text).thinking or "").strip()
            thinking = said or explain(state, codec.names, move.action, rng).working
            text = codec.write(state.perception(), thinking, move.action)
            yield Example(game.name, move.state, text, move.action, bool(move.regret), "moves")
    if left == game.examples:
        raise ValueError(f"{game.moves}: no legal move in it; play the game to its end first")


def _endless(task: Task) -> Task:
    return dataclasses.replace(task, reasoning=dataclasses.replace(task.reasoning, horizon=0))
