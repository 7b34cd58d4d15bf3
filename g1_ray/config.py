"""What a run is made of: one TOML file, checked against this schema before anything starts.

`load_config` reads it with overrides. Whatever is wrong with it is one `ValueError` of at most three lines, which name
the file or override, the key, the value and what is allowed.
"""

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from envs import Task
from envs.registry import check_module
from envs.rewards import reward_named
from g1_ray.config_checks import check_together
from g1_ray.config_file import Section, load_section
from g1_ray.config_optimizer import DecayingOptimizerConfig
from g1_ray.models.find import SHIPPED, is_coldstart, model_path

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What names look like: they become folders and parts of the names of metrics."""
OwnName = Annotated[str, Field(pattern=r"^[\w.]+:[\w-]+$"), AfterValidator(check_module)]
"""`module:name`, for what a module of one's own adds to a registry."""
Folder = Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser().absolute()) if path else "")]
"""A folder or a file of this machine, as seen from where the command runs: actors run elsewhere."""


def _model_name(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() and path not in SHIPPED else path


ModelName = Annotated[str, AfterValidator(_model_name)]
"""The same for a model, which may also be one that ships, or a Hugging Face name."""
Labels = dict[Annotated[str, Field(min_length=1)], str]
EngineName = Literal["vllm", "transformers"] | OwnName


STATE_SOURCES = ("fresh", "random_walk", "policy", "oracle_backward")
"""What `StatesConfig` has a weight for."""


class StatesConfig(Section):
    """Where a game's training states come from: weights, in any unit."""

    fresh: float = Field(0.0, ge=0, description="the start of an episode")
    random_walk: float = Field(1.0, ge=0, description="random legal moves from the start")
    policy: float = Field(0.0, ge=0, description="where the model's own moves led")
    oracle_backward: float = Field(0.0, ge=0, description="some moves before the end of an oracle's episode")
    max_walk: int = Field(40, ge=0, description="most moves of a walk; shorter ones are as likely")
    open_only: bool = Field(False, description="only states in which some legal move earns more than another")

    @model_validator(mode="after")
    def _check(self) -> "StatesConfig":
        if not any(getattr(self, source) for source in STATE_SOURCES):
            raise ValueError("fresh, random_walk, policy and oracle_backward are all 0; give one of them a weight")
        return self

    def only(self, source: str) -> "StatesConfig":
        """The same with one source; with all of them where it is ''."""
        weights = {name: float(name == source) for name in STATE_SOURCES}
        return self.model_copy(update=weights) if source else self


class GameConfig(Section):
    """One of the games that a run trains on."""

    game: str = Field(description="its registered name, or module:name for one of your own")
    preset: str = Field("", description="a named setting of the game, such as paper")
    reasoning: int | dict[str, Any] | None = Field(None, description="a level, or options by name")
    perception: int | dict[str, Any] | None = Field(None, description="a level, or options by name")
    name: str = Field("", description="what it is called in metrics; default: the game's name")
    ratio: float = Field(1.0, gt=0, description="share of the groups, relative to the other games")
    reward: str = Field("ternary", description="reward of a move, from envs.rewards")
    lookahead: int = Field(
        0,
        ge=0,
        le=1000,
        description="random legal moves that follow a legal move, eight times: it earns the mean return, as a share of "
        "the best move's (envs/lookahead.py); 0: its own reward alone",
    )
    states: StatesConfig = StatesConfig()

    @model_validator(mode="after")
    def _check(self) -> "GameConfig":
        reward_named(self.reward)
        if isinstance(self.perception, dict) and (path := self.perception.get("path")):
            self.perception["path"] = str(Path(path).expanduser().absolute())
        self.task()
        if not self.name:
            object.__setattr__(self, "name", self.game.rpartition(":")[2])
        if not re.match(NAME, self.name):
            raise ValueError(f"name = {self.name!r}: use letters, digits, '.', '_' and '-' only")
        return self

    def task(self) -> Task:
        """The game as it is posed."""
        return Task.make(self.game, preset=self.preset, reasoning=self.reasoning, perception=self.perception)


class LoraConfig(Section):
    """Low-rank adapters (peft) in place of full fine-tuning."""

    rank: int = Field(0, ge=0, description="0: full fine-tuning")
    alpha: float = Field(32.0, gt=0, description="the adapter's output is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="linear layers of the language model that get an adapter",
    )


class ModelConfig(Section):
    """The model that is trained."""

    path: ModelName = Field(
        description="folder or Hugging Face name; 'tiny-base' and 'tiny-coldstart' ship with g1_ray", min_length=1
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the forward and backward pass")
    freeze_vision: bool = Field(True, description="whether the vision tower keeps its weights")
    gradient_checkpointing: bool = Field(
        True, description="compute activations again in the backward pass: less memory"
    )
    lora: LoraConfig = LoraConfig()

    @property
    def vision_is_frozen(self) -> bool:
        """Whether pictures look the same to the model from start to end: adapters are for the language model alone."""
        return self.freeze_vision or self.lora.rank > 0


class RolloutConfig(Section):
    """How the model is asked."""

    turns: int = Field(1, ge=1, description="moves of a rollout; 1: the paper's single-step groups")
    window: int = Field(1, ge=0, description="earlier turns that stay in the prompt, pictures included")
    group_size: int = Field(8, ge=2, description="answers (rollouts) from one start")
    screen_size: int = Field(0, ge=0, description="answers that a group begins with, and has no more of where all earn "
                             "the same, as nothing is learned from those; 0: all at once")  # fmt: skip
    groups_per_step: int = Field(32, ge=1, description="groups of a batch, over all games")
    temperature: float = Field(
        1.0, gt=0, description="answers are sampled from softmax(logits / temperature), and that policy is trained"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="only 1: what is sampled from has to be what is trained")
    max_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    perception: Literal["own", "given"] = Field(
        "own", description="given: answers are begun with the board described, and only the rest is sampled and trained"
    )
    wrong_cells: int = Field(0, ge=0, description="cells of a given description that are wrong")

    @model_validator(mode="after")
    def _check(self) -> "RolloutConfig":
        if self.perception == "given" and self.turns > 1:
            raise ValueError(
                f"turns = {self.turns} and perception = 'given': it is given in first turns only; turns = 1"
            )
        if self.screen_size and not 2 <= self.screen_size < self.group_size:
            raise ValueError(
                f"screen_size = {self.screen_size}: at least 2, to differ, and less than group_size, which is "
                f"{self.group_size}; 0: all answers at once"
            )
        if self.screen_size and self.turns > 1:
            raise ValueError(
                f"screen_size = {self.screen_size} and turns = {self.turns}: what a group earns is known after the "
                "last of its turns; give turns = 1, or screen_size = 0"
            )
        if self.wrong_cells and self.perception == "own":
            raise ValueError(f"wrong_cells = {self.wrong_cells}: needs perception = 'given'")
        if self.top_p < 1:
            raise ValueError(
                f"top_p = {self.top_p:g}: answers would come from a cut-off distribution, and the whole one be trained "
                "on them; give top_p = 1, and a lower temperature for surer answers"
            )
        return self

    @property
    def passes(self) -> int:
        """Times that a tick of the rollout graph asks the engine, and plays what it answers."""
        return self.turns + (self.screen_size > 0)


REWARD_PARTS = ("game", "format", "perception")
"""What a reward is the weighted sum of."""


class RewardConfig(Section):
    """reward = game x its reward + format x (well-formed) + perception x (share of cells right)."""

    game: float = Field(1.0, description="weight of the game's own reward")
    format: float = Field(0.0, ge=0, description="weight of a well-formed answer")
    perception: float = Field(0.0, ge=0, description="weight of the share of cells that are described right")

    def total(self, parts: Mapping[str, float]) -> float:
        """The weighted sum of a reward's parts, by their names."""
        return sum(getattr(self, name) * parts[name] for name in REWARD_PARTS)


class AlgorithmConfig(Section):
    """Group-relative policy optimisation."""

    loss: Literal["clip"] | OwnName = Field("clip", description="of the table in learner/loss.py, or module:name")
    advantage: Literal["grpo", "dr-grpo"] = Field("grpo", description="dr-grpo: no division by the std, none by length")
    ratio: Literal["token", "sequence"] = Field("token", description="sequence: GSPO's ratio over the whole answer")
    clip_low: float = Field(0.2, ge=0, description="the ratio is clipped from below at 1 - clip_low")
    clip_high: float = Field(0.28, ge=0, description="and from above at 1 + clip_high")
    tis_cap: float = Field(2.0, ge=0, description="truncated importance sampling: largest weight; 0: off")
    kl_coef: float = Field(0.0, ge=0, description="weight of the k3 KL to the model that the run started from")
    skip_flat_groups: bool = Field(True, description="leave out groups whose answers all earn the same (DAPO)")


class CurriculumConfig(Section):
    """What the next group is about."""

    kind: Literal["weights", "learnability"] = Field(
        "weights",
        description="weights: games by ratio, states by their sources' weights; learnability: of these more where "
        "answers differ, and states again at which they did",
    )
    explore: float = Field(0.3, ge=0, le=1, description="share of the groups that never go back to a known state")
    half_life: float = Field(8.0, gt=0, description="steps after which what is known of a state counts half")


class LearnerConfig(Section):
    """FSDP2 ranks."""

    num_ranks: int = Field(1, ge=1, description="processes that the model and the batch are divided over")
    gpus: float = Field(1, ge=0, le=1, description="GPUs of a rank; 0: CPU, below 1: a share of one")
    cpus: float = Field(1, ge=0, description="CPUs of a rank, which are also its threads")
    labels: Labels = Field({}, description="what the labels of a rank's node have to be: name = value")
    one_node: bool = Field(False, description="all ranks on one node, where NVLink joins them")
    tokens_per_pack: int = Field(16384, ge=1, description="most tokens of a micro-batch")
    keep_gathered_gb: float = Field(16.0, ge=0, description="in model.dtype, policy and reference: weights no larger "
                                    "stay gathered through a step, larger ones for a layer at a time")  # fmt: skip


class EngineConfig(Section):
    """Inference engines."""

    kind: EngineName = Field(
        "vllm", description="transformers: slow, for machines without vLLM; or module:name of your own"
    )
    num_engines: int = Field(1, ge=1, description="engines, each with all of the model")
    gpus: float = Field(1, ge=0, description="GPUs of an engine, more than one: tensor parallel; 0: CPU")
    cpus: float = Field(1, ge=0, description="CPUs of an engine")
    labels: Labels = Field({}, description="what the labels of an engine's node have to be: name = value")
    memory_utilization: float = Field(0.85, gt=0, le=1, description="share of the GPU's memory that vLLM takes")
    kv_cache_gb: float = Field(1.0, gt=0, description="on CPU: size of vLLM's KV cache")
    max_model_len: int = Field(4096, ge=1, description="longest prompt and answer together, in tokens")
    max_num_seqs: int = Field(256, ge=1, description="answers decoded at once")
    enforce_eager: bool = Field(False, description="no CUDA graphs: a faster start, slower decoding")
    core: Literal["auto", "thread", "process"] = Field(
        "auto", description="where vLLM makes its steps: in a process of its own, or a thread of the engine's; auto: "
                            "a process on GPUs, which it keeps busy, else a thread, which costs less, where nothing "
                            "else in its process uses torch.distributed")  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> "EngineConfig":
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus = {self.gpus:g}: a share of one GPU, or whole ones")
        if self.gpus > 1 and self.kind == "transformers":
            raise ValueError(f"gpus = {self.gpus:g}: an engine of kind transformers uses one; give num_engines instead")
        if self.kind == "vllm" and 0 < self.gpus < self.memory_utilization:
            raise ValueError(f"memory_utilization = {self.memory_utilization:g}: at most gpus, which is {self.gpus:g}")
        return self


class AsyncConfig(Section):
    """How far rollouts may run ahead of the learner."""

    max_staleness: int = Field(2, ge=0, description="optimizer steps; 0: synchronous")
    lanes: int = Field(8, ge=1, description="ticks of the rollout graph in flight")
    groups_per_tick: int = Field(1, ge=1, description="groups that travel through the rollout graph together")
    tick_timeout_s: float = Field(300.0, gt=0, description="a tick that takes longer is given up and issued again")
    hang_s: float = Field(60.0, gt=0, description="a part that shows no sign of life for so long is started anew")
    num_env_workers: int = Field(1, ge=1, description="processes that play the games")
    env_cpus: float = Field(1, ge=0, description="CPUs of an env worker")
    env_labels: Labels = Field({}, description="what the labels of an env worker's node have to be: name = value")


class EvalConfig(Section):
    """Evaluation during a run and at its end."""

    every: int = Field(0, ge=0, description="steps between evaluations; 0: only at the end")
    runs: int = Field(10, ge=0, description="runs of each player (paper: 10); 0: no evaluation")
    moves: int = Field(100, ge=0, description="moves a run (paper: 100); 0: whole episodes")
    seed: int = Field(1_000_000, ge=0, description="of the first run; training never sees it")
    label: str = Field("", description="what the trained model is called; default: G1 after a cold start, else G0")
    baselines: dict[str, ModelName] = Field({}, description="models that the trained one is compared with: name = path")
    engine: Literal[""] | EngineName = Field("", description="who answers; default: engine.kind")
    timeout_s: float = Field(3600.0, gt=0, description="longest wait for news of a player")
    lab_every: int = Field(0, ge=0, description="steps between looks into the lab, and after the first; 0: never")
    lab_states: int = Field(64, ge=1, description="states of a game that the lab asks about")

    @model_validator(mode="after")
    def _check(self) -> "EvalConfig":
        if self.every and not self.runs:
            raise ValueError(f"every = {self.every} and runs = 0: give runs, or every = 0")
        for path in self.baselines.values():
            model_path(path, "eval.baselines")
        return self


class RunConfig(Section):
    """One training run, whole."""

    name: str = Field(pattern=NAME, description="its folder is <out>/<name>")
    out: Folder = Field("runs", min_length=1, validate_default=True, description="folder that run folders are made in")
    seed: int = Field(0, ge=0, description="what every random draw derives from")
    deterministic: bool = Field(
        False,
        description="the same weights every time, bit by bit, whatever dies on the way; engines answer one group at a "
        "time; with max_staleness = 0 and transformers engines",
    )
    steps: int = Field(400, ge=1, description="optimizer steps")
    minutes: float = Field(0.0, ge=0, description="stop after so many minutes of training, steps left or not; 0: never")
    checkpoint_every: int = Field(50, ge=0, description="steps; 0: only at the end")
    keep_checkpoints: int = Field(2, ge=2, description="how many of the newest stay")
    canary_every: int = Field(10, ge=0, description="steps between comparisons of engine and learner; 0: never")
    trackers: tuple[Literal["tensorboard", "ray", "wandb", "trackio", "mlflow"] | OwnName, ...] = Field(
        ("tensorboard", "ray"), description="where metrics go beside metrics.jsonl: runs/trackers.py, or module:name"
    )
    model: ModelConfig
    games: tuple[GameConfig, ...] = Field(min_length=1)
    rollout: RolloutConfig = RolloutConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    reward: RewardConfig = RewardConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimizer: DecayingOptimizerConfig = DecayingOptimizerConfig()
    learner: LearnerConfig = LearnerConfig()
    engine: EngineConfig = EngineConfig()
    asynchrony: AsyncConfig = AsyncConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if not self.eval.label:
            label = "G1" if is_coldstart(self.model.path) else "G0"
            object.__setattr__(self, "eval", self.eval.model_copy(update={"label": label}))
        check_together(self)
        return self

    @property
    def capacity(self) -> int:
        """Groups that may be under way: running, waiting, or trained on and not yet in the engines.

        (max_staleness + 1) x groups_per_step, after AReaL, arXiv 2505.24298, section 5.1.
        """
        return (self.asynchrony.max_staleness + 1) * self.rollout.groups_per_step

    @property
    def has_reference(self) -> bool:
        """Whether learners hold a second model, that the run started from; with adapters it is the one without them."""
        return self.algorithm.kl_coef > 0 and not self.model.lora.rank

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out) / self.name

    @property
    def before(self) -> str:
        """What the model that the run started from is called among the baselines; '' where it is none of them."""
        return next((name for name, path in self.eval.baselines.items() if path == self.model.path), "")

    def to_json(self) -> str:
        """The run as resolved, every default filled in; `load_config` reads it again."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a TOML file, or the config.json of a run folder, describes; `path` is such a file.

    An override is `games.0.ratio=2`. Its value is TOML, and what is not TOML is text. Raises
    `ValueError` of at most three lines.
    """
    config = load_section(RunConfig, path, overrides)
    model_path(config.model.path)
    return config


def check_software(config: RunConfig) -> None:
    """Raises `ValueError` where the run needs something that is not installed, engines aside."""
    if config.model.lora.rank and importlib.util.find_spec("peft") is None:
        raise ValueError("model.lora.rank is set, and peft is not installed: pip install peft, or model.lora.rank=0")
