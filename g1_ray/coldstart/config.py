"""What a cold start is made of: its TOML file, checked like that of a run."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from envs.styles import FOLLOW, SHARES, STYLES, check_shares
from envs.teacher import ERR_RATE
from g1_ray.config import NAME, Folder, GameConfig, ModelName, StatesConfig
from g1_ray.config_file import Section, load_section
from g1_ray.config_optimizer import OptimizerConfig
from g1_ray.evaluation.endpoint import EndpointConfig
from g1_ray.models.find import model_path


class TeacherConfig(EndpointConfig):
    """Whose answers are learned from."""

    kind: Literal["oracle", "generalist", "endpoint"] = Field(
        "oracle",
        description="oracle: with a working, and errs at a game's rate; generalist: thinks in many "
        "styles, and seldom moves by that; endpoint: a model behind OpenAI's chat completions",
    )
    styles: dict[str, float] = Field(
        SHARES, description="a generalist's styles of thinking, each with its share: " + ", ".join(STYLES)
    )
    follow: float = Field(FOLLOW, ge=0, le=1, description="how often a generalist moves by what it thought")

    @model_validator(mode="after")
    def _check(self) -> "TeacherConfig":
        if self.kind == "endpoint" and not (self.url and self.model):
            raise ValueError("kind = 'endpoint' needs url and model")
        if self.kind != "generalist" and (self.styles, self.follow) != (SHARES, FOLLOW):
            raise ValueError(f"kind = {self.kind!r}: styles and follow are a generalist's; kind = 'generalist'")
        check_shares(self.styles)
        return self


class LessonConfig(GameConfig):
    """One of the games that a cold start teaches; `ratio` is its share of every batch."""

    examples: int = Field(1000, ge=1, description="answers to learn from (paper: 1000)")
    moves: Folder = Field(
        "",
        description="a file of moves to learn from in the teacher's place, as many as it has, up to `examples`: games "
        "of people (the arena's file, g1-ray play --save), or any player's of an evaluation",
    )
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
    out: Folder = Field("runs", min_length=1, validate_default=True)
    seed: int = Field(0, ge=0)
    model: ModelName = Field(description="folder or Hugging Face name; 'tiny-base' ships with g1_ray")
    workers: int = Field(0, ge=0, description="processes that make examples; 0: one a core")
    teacher: TeacherConfig = TeacherConfig()
    games: tuple[LessonConfig, ...] = Field(min_length=1)
    sft: SftConfig = SftConfig()

    @model_validator(mode="after")
    def _check(self) -> "ColdstartConfig":
        for name, count in Counter(game.name for game in self.games).items():
            if count > 1:
                raise ValueError(f"games: two are called {name!r}; give one of them another name")
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out) / self.name


def load_coldstart(path: str | Path, overrides: Sequence[str] = ()) -> ColdstartConfig:
    """The cold start that a TOML file describes, with overrides such as `sft.batch_size=32`.

    Raises `ValueError` of at most three lines.
    """
    config = load_section(ColdstartConfig, path, overrides)
    model_path(config.model)
    return config
