"""What a run is made of: one TOML file, checked against this schema before anything starts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs import Task
from envs.rewards import reward_named


class Section(BaseModel):
    """A table of the file: unknown keys are refused, values don't change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StatesConfig(Section):
    """Where a game's training states come from: weights, in any unit."""

    fresh: float = Field(0.0, ge=0, description="the start of an episode")
    random_walk: float = Field(1.0, ge=0, description="random legal moves from the start")
    policy: float = Field(0.0, ge=0, description="where the model's own moves led")
    oracle_backward: float = Field(0.0, ge=0, description="some moves before the end of an oracle's episode")
    max_walk: int = Field(40, ge=0, description="most moves of a walk; shorter ones are as likely")
    open_only: bool = Field(False, description="only states in which some legal move earns more than another")


class GameConfig(Section):
    """One of the games that a run trains on."""

    game: str = Field(description="its registered name")
    preset: str = ""
    reasoning: int | dict[str, Any] | None = Field(None, description="a level, or options by name")
    perception: int | dict[str, Any] | None = Field(None, description="a level, or options by name")
    name: str = Field("", description="what it is called in metrics; default: the game's name")
    ratio: float = Field(1.0, gt=0, description="share of the groups, relative to the other games")
    reward: str = Field("ternary", description="reward of a move, from envs.rewards")
    states: StatesConfig = StatesConfig()

    @model_validator(mode="after")
    def _check(self) -> GameConfig:
        reward_named(self.reward)
        self.task()
        if not self.name:
            object.__setattr__(self, "name", self.game.rpartition(":")[2])
        return self

    def task(self) -> Task:
        """The game as it is posed."""
        return Task.make(self.game, preset=self.preset, reasoning=self.reasoning, perception=self.perception)


class LoraConfig(Section):
    """Low-rank adapters (peft) in place of full fine-tuning."""

    rank: int = Field(0, ge=0, description="0: full fine-tuning")
    alpha: float = Field(32.0, gt=0)
    targets: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


class ModelConfig(Section):
    """The model that is trained."""

    path: str = Field(description="folder or Hugging Face name; 'tiny-base' and 'tiny-coldstart' ship with g1_ray")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the forward and backward pass")
    freeze_vision: bool = Field(True, description="whether the vision tower keeps its weights")
    gradient_checkpointing: bool = True
    lora: LoraConfig = LoraConfig()


class RolloutConfig(Section):
    """How the model is asked."""

    turns: int = Field(1, ge=1, description="moves of a rollout; 1: the paper's single-step groups")
    window: int = Field(1, ge=0, description="earlier turns that stay in the prompt, pictures included")
    group_size: int = Field(8, ge=2, description="answers (rollouts) from one start")
    groups_per_step: int = Field(32, ge=1, description="groups of a batch, over all games")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, description="longest answer")


class RewardConfig(Section):
    """reward = game x its reward + format x (well-formed) + perception x (share of cells right)."""

    game: float = 1.0
    format: float = Field(0.0, ge=0)
    perception: float = Field(0.0, ge=0)


class AlgorithmConfig(Section):
    """Group-relative policy optimisation."""

    advantage: Literal["grpo", "dr-grpo"] = Field("grpo", description="dr-grpo: no division by the std, none by length")
    ratio: Literal["token", "sequence"] = Field("token", description="sequence: GSPO's ratio over the whole answer")
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.28, ge=0)
    tis_cap: float = Field(2.0, ge=0, description="truncated importance sampling: largest weight; 0: off")
    kl_coef: float = Field(0.0, ge=0, description="weight of the k3 KL to the model that the run started from")
    skip_flat_groups: bool = Field(True, description="leave out groups whose answers all earn the same (DAPO)")


class OptimizerConfig(Section):
    """AdamW."""

    lr: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)


class LearnerConfig(Section):
    """FSDP2 ranks."""

    num_ranks: int = Field(1, ge=1)
    gpus: float = Field(1, ge=0, description="GPUs of a rank; 0: CPU")
    cpus: float = Field(1, ge=0)
    tokens_per_pack: int = Field(16384, ge=1, description="most tokens of a micro-batch")


class EngineConfig(Section):
    """Inference engines."""

    kind: Literal["vllm", "transformers"] = "vllm"
    num_engines: int = Field(1, ge=1)
    gpus: float = Field(1, ge=0, description="GPUs of an engine, more than one: tensor parallel; 0: CPU")
    cpus: float = Field(1, ge=0)
    memory_utilization: float = Field(0.85, gt=0, le=1, description="share of the GPU's memory that vLLM takes")
    kv_cache_gb: float = Field(1.0, gt=0, description="on CPU: size of vLLM's KV cache")
    max_model_len: int = Field(4096, ge=1, description="longest prompt and answer together, in tokens")
    max_num_seqs: int = Field(256, ge=1, description="answers decoded at once")
    enforce_eager: bool = Field(False, description="no CUDA graphs: a faster start, slower decoding")


class AsyncConfig(Section):
    """How far rollouts may run ahead of the learner."""

    max_staleness: int = Field(2, ge=0, description="optimizer steps; 0: synchronous")
    lanes: int = Field(8, ge=1, description="ticks of the rollout graph in flight")
    groups_per_tick: int = Field(1, ge=1)
    tick_timeout_s: float = Field(300.0, gt=0)
    num_env_workers: int = Field(1, ge=1)
    env_cpus: float = Field(1, ge=0, description="CPUs of an env worker")


class EvalConfig(Section):
    """Evaluation during a run and at its end."""

    every: int = Field(0, ge=0, description="steps between evaluations; 0: only at the end")
    runs: int = Field(10, ge=0, description="runs of each player (paper: 10); 0: no evaluation")
    moves: int = Field(100, ge=0, description="moves a run (paper: 100); 0: whole episodes")
    seed: int = Field(1_000_000, ge=0, description="of the first run; training never sees it")


class RunConfig(Section):
    """One training run, whole."""

    name: str = Field(description="its folder is <out>/<name>")
    out: str = "runs"
    seed: int = Field(0, ge=0)
    steps: int = Field(400, ge=1, description="optimizer steps")
    minutes: float = Field(0.0, ge=0, description="stop after so many minutes of training, steps left or not; 0: never")
    checkpoint_every: int = Field(50, ge=0, description="steps; 0: only at the end")
    keep_checkpoints: int = Field(2, ge=2)
    canary_every: int = Field(10, ge=0, description="steps between comparisons of engine and learner; 0: never")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    model: ModelConfig
    games: tuple[GameConfig, ...] = Field(min_length=1)
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    learner: LearnerConfig = LearnerConfig()
    engine: EngineConfig = EngineConfig()
    asynchrony: AsyncConfig = AsyncConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        names = [game.name for game in self.games]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"games: two are called {name!r}; give one of them another name")
        return self
