"""Perception-enhanced cold start: examples of a teacher's answers, each with the board described as it truly is.

    seed -> state (from a mix of sources) -> teacher -> Example -> parquet -> g1_ray.sft

Example i depends on the seed and on i alone, so a data set is the same however many processes made it.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from envs import State, Task
from envs.rewards import reward_named
from g1_ray.config import NAME, GameConfig, OptimizerConfig, Section, StatesConfig, load_section, model_path
from g1_ray.endpoint import EndpointConfig, EndpointTeacher, Unusable
from g1_ray.seeds import seed_of
from g1_ray.states import draw
from g1_ray.teacher import ERR_RATE, Novice, Oracle, Teacher

CHUNK = 128
"""Examples that a process makes at a time."""
PATIENCE = 32
"""Unusable answers in a row after which an endpoint is given up."""


class TeacherConfig(EndpointConfig):
    """Whose answers are learned from."""

    kind: Literal["oracle", "novice", "endpoint"] = Field(
        "oracle",
        description="oracle: with a working, and errs at a game's rate; novice: any legal move, no working; "
        "endpoint: a model behind OpenAI's chat completions",
    )

    @model_validator(mode="after")
    def _check(self) -> TeacherConfig:
        if self.kind == "endpoint" and not (self.url and self.model):
            raise ValueError("kind = 'endpoint' needs url and model")
        return self


class LessonConfig(GameConfig):
    """One of the games that a cold start teaches; `ratio` is its share of every batch."""

    examples: int = Field(1000, ge=1, description="answers to learn from (paper: 1000)")
    err: float = Field(ERR_RATE, ge=0, le=1, description="how often the oracle errs")
    longest_of: int = Field(
        1,
        ge=1,
        description="every other answer is the longest of so many: states that a short working does not help are rare, "
        "and those that a run gets stuck in",
    )
    states: StatesConfig = StatesConfig(fresh=1, random_walk=4, policy=4, oracle_backward=1)


class SftConfig(Section):
    """Supervised fine-tuning."""

    steps: int = Field(0, ge=0, description="optimizer steps; 0: as many as `epochs` takes")
    epochs: float = Field(1.0, gt=0, description="times that the examples are gone through")
    batch_size: int = Field(64, ge=1, description="examples of a step, over all games")
    micro_batch: int = Field(64, ge=1, description="most examples of a forward pass")
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-5, warmup_steps=10)
    final_lr: float = Field(0.1, ge=0, le=1, description="share of the lr that the cosine ends at")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the forward and backward pass on a GPU")
    freeze_vision: bool = Field(False, description="whether the vision tower keeps its weights")
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    checkpoint_every: int = Field(200, ge=0, description="steps; 0: only at the end")
    log_every: int = Field(10, ge=1, description="steps between lines of progress")


class ColdstartConfig(Section):
    """One cold start, whole."""

    name: str = Field(description="its folder is <out>/<name>", pattern=NAME)
    out: str = "runs"
    seed: int = Field(0, ge=0)
    model: str = Field(description="folder or Hugging Face name; 'tiny-base' ships with g1_ray")
    workers: int = Field(0, ge=0, description="processes that make examples; 0: one a core")
    teacher: TeacherConfig = TeacherConfig()
    games: tuple[LessonConfig, ...] = Field(min_length=1)
    sft: SftConfig = SftConfig()

    @model_validator(mode="after")
    def _check(self) -> ColdstartConfig:
        for name, count in Counter(game.name for game in self.games).items():
            if count > 1:
                raise ValueError(f"games: two are called {name!r}; give one of them another name")
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out).expanduser() / self.name


def load_coldstart(path: str | Path, overrides: Sequence[str] = ()) -> ColdstartConfig:
    """The cold start that a TOML file describes, with overrides such as `sft.batch_size=32`.

    Raises `ValueError` of at most three lines.
    """
    config = load_section(ColdstartConfig, path, overrides)
    model_path(config.model)
    return config


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
    """Where the state came from: fresh, random_walk, policy or oracle_backward."""


@dataclass(frozen=True)
class Maker:
    """Makes the examples of one game. States that a policy visits are visited by the erring oracle."""

    game: LessonConfig
    teacher: TeacherConfig
    seed: int

    @functools.cached_property
    def parts(self) -> tuple[Task, Oracle, Teacher]:
        """The task, the policy and the teacher."""
        task = self.game.task()
        oracle = Oracle(task, self.game.err)
        match self.teacher.kind:
            case "oracle":
                return task, oracle, oracle
            case "novice":
                return task, oracle, Novice(task)
        return task, oracle, EndpointTeacher(task, self.teacher)

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
            return ThreadPoolExecutor(self.teacher.concurrency), 1
        return ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")), CHUNK


def make_examples(
    maker: Maker, num: int, workers: int = 0, skipped: Callable[[str], None] = lambda cause: None
) -> Iterator[Example]:
    """The first `num` usable examples, in order; `workers`: processes, 0: one a core. `skipped` hears of the others.

    Raises `ValueError` where a teacher's answers are of no use.
    """
    executor, size = maker.executor(workers)
    with executor as pool:
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
                        yield example
