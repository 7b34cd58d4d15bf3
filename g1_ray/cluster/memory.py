"""How much memory each role of a run will need: estimates from the numbers of the architecture, before anything starts.

They count what grows with the model, the answers and the packs, and a measured amount for a process with its libraries.
"""

import json
import math
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from g1_ray.config import ModelConfig, RunConfig
from g1_ray.engines.make import ENGINES, GB
from g1_ray.models.find import model_path

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SLACK = 1.1
"""Of what is allocated for activations, for what the allocator can't use."""
LOGITS_AT_ONCE = 1 << 27
"""Logits that the learner makes at a time; they are there in float32 three times, with gradient and softmax."""
LEARNER_PROCESS = 1.0 * GB
ENV_PROCESS = 0.9 * GB
BUFFER_PROCESS = 0.6 * GB
"""Resident memory of processes with their libraries loaded and no model, on CPU."""
CUDA_CONTEXT = 1.0 * GB
CUDA_PROCESS = 4.0 * GB
"""Of the node's memory, for a process that uses a GPU."""
ENGINE_WORKSPACE = 3.0 * GB
"""What vLLM needs of a GPU beside weights and KV cache: CUDA graphs and the activations of its largest batch."""


@dataclass(frozen=True)
class VisionShape:
    """A vision tower: D blocks of width W."""

    depth: int
    width: int
    intermediate: int
    patch: int = 14
    merge: int = 2
    frames: int = 2


@dataclass(frozen=True)
class ModelShape:
    """The numbers of an architecture that memory depends on."""

    source: str
    """Where they were found."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    vision: VisionShape
    counted: int = 0
    """Parameters as counted in its files; 0: there are none, they are computed."""

    @property
    def embedding_params(self) -> int:
        """Of the token embedding, and of the output layer where it is not the same."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def block_params(self) -> int:
        """Of one block of the language model, as in Qwen2: grouped-query attention with bias, gated MLP, two norms."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = (self.hidden + 1) * (queries + 2 * keys) + queries * self.hidden
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def vision_params(self) -> int:
        """Of the vision tower and its merger, as in Qwen2.5-VL."""
        look, width = self.vision, self.vision.width
        attention = width * 3 * width + 3 * width + width * width + width
        mlp = 3 * width * look.intermediate + 2 * look.intermediate + width
        merged = width * look.merge**2
        merger = width + merged * merged + merged + merged * self.hidden + self.hidden
        return 3 * look.frames * look.patch**2 * width + look.depth * (attention + mlp + 2 * width) + merger

    @property
    def params(self) -> int:
        """Of the whole model."""
        language = self.embedding_params + self.layers * self.block_params + self.hidden
        return self.counted or language + self.vision_params

    def kv_bytes(self, dtype: str) -> int:
        """Keys and values of a token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES[dtype]

    def lora_params(self, config: ModelConfig) -> int:
        """Of the adapters: rank x (inputs + outputs) of every target in every block."""
        queries, keys, mlp = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        sizes = {
            "q_proj": self.hidden + queries,
            "k_proj": self.hidden + keys,
            "v_proj": self.hidden + keys,
            "o_proj": queries + self.hidden,
            "gate_proj": self.hidden + mlp,
            "up_proj": self.hidden + mlp,
            "down_proj": mlp + self.hidden,
        }
        return config.lora.rank * self.layers * sum(sizes.get(target, 0) for target in config.lora.targets)


KNOWN: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "known.toml").read_text())
"""Memory of GPUs by type, and sizes of models by name, known without their files."""


def shape_of(path: str) -> ModelShape | None:
    """The architecture of a model: from its folder, the Hugging Face cache or the published numbers; None: unknown."""
    name = model_path(path)
    folder = Path(name)
    if folder.is_dir():
        return _shape_in(folder, str(folder))
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return _shape_in(Path(cached).parent, "the Hugging Face cache")
    return _shape_of(KNOWN["models"][name], "published numbers") if name in KNOWN["models"] else None


def _shape_in(folder: Path, source: str) -> ModelShape:
    values = json.loads((folder / "config.json").read_text())
    shape = _shape_of(values, source, f"{folder / 'config.json'}: ")
    return replace(shape, counted=sum(map(_params_in, folder.glob("*.safetensors"))))


def _shape_of(values: Mapping[str, Any], source: str, where: str = "") -> ModelShape:
    text, look = values.get("text_config", values), values.get("vision_config")
    missing = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"} - set(text)
    if missing or look is None:
        what = f"no {sorted(missing)[0]}" if missing else "no vision_config"
        raise ValueError(f"{where}{what}; a vision-language model is needed, such as Qwen2.5-VL")
    heads = text["num_attention_heads"]
    return ModelShape(
        source=source,
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads", heads),
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        tied=bool(values.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        vision=VisionShape(
            depth=look["depth"],
            width=look["hidden_size"],
            intermediate=look["intermediate_size"],
            patch=look.get("patch_size", 14),
            merge=look.get("spatial_merge_size", 2),
            frames=look.get("temporal_patch_size", 2),
        ),
    )


def _params_in(path: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: Mapping[str, Any] = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


@dataclass(frozen=True)
class Need:
    """What one process of a role needs."""

    role: str
    count: int
    """Processes of the role."""
    cpus: float
    gpus: float
    """Of a process; more than one are on one node."""
    parts: Mapping[str, float]
    """Bytes by purpose: of each of its GPUs, or of the node's memory where it has none."""
    node_memory: float
    """Bytes of the node's memory, in all."""
    gpu_share: float = 1.0
    """Share of a GPU's memory that it may take."""

    @property
    def total(self) -> float:
        """Bytes, all parts."""
        return sum(self.parts.values())


def needs_of(config: RunConfig, shape: ModelShape | None) -> tuple[Need, ...]:
    """Every role of a run. Where the shape is unknown, what depends on it is left out."""
    asynchrony = config.asynchrony
    env = _need("env worker", asynchrony.num_env_workers, _some(asynchrony.env_cpus, 0), 0.0, {}, ENV_PROCESS)
    # A token of a waiting group: ids, log-probabilities and versions. The driver is counted with the buffer.
    waiting = 12.0 * config.capacity * config.rollout.group_size * config.rollout.turns * config.engine.max_model_len
    buffer = _need("driver and buffer", 1, 0.0, 0.0, {"waiting groups": waiting}, 2 * BUFFER_PROCESS)
    return engine_need(config, shape), learner_need(config, shape), env, buffer


def engine_need(config: RunConfig, shape: ModelShape | None) -> Need:
    """One engine. On a GPU its KV cache takes what is left of its share; one longest answer has to fit."""
    engine = config.engine
    kind = ENGINES.find(engine.kind)
    share = engine.memory_utilization if kind.has_budget else min(1.0, engine.gpus)
    parts = _engine_parts(config, shape, kind.has_budget) if shape else {}
    cpus = _some(engine.cpus, engine.gpus)
    return _need("engine", engine.num_engines, cpus, engine.gpus, parts, kind.process_bytes, share)


def _engine_parts(config: RunConfig, shape: ModelShape, has_budget: bool) -> dict[str, float]:
    engine, dtype = config.engine, config.model.dtype
    gpus = max(engine.gpus, 1)
    weights = BYTES[dtype] * shape.params / gpus
    if engine.gpus:
        longest = shape.kv_bytes(dtype) * engine.max_model_len / gpus
        return {"weights": weights, "workspace": ENGINE_WORKSPACE, "KV cache, at least": longest}
    if has_budget:
        return {"weights": weights, "KV cache": engine.kv_cache_gb * 2**30}
    return {"weights": weights, "KV cache": shape.kv_bytes(dtype) * engine.max_model_len * engine.max_num_seqs}


def learner_need(config: RunConfig, shape: ModelShape | None) -> Need:
    """One FSDP2 rank. Master weights, Adam's moments and gradients are float32, divided over the ranks."""
    learner = config.learner
    parts = _learner_parts(config, shape) if shape else {}
    cpus, share = _some(learner.cpus, learner.gpus), min(1.0, learner.gpus)
    return _need("learner rank", learner.num_ranks, cpus, learner.gpus, parts, LEARNER_PROCESS, share)


def _learner_parts(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    model, ranks = config.model, config.learner.num_ranks
    dtype = BYTES[model.dtype]
    # A frozen vision tower is not divided over the ranks.
    whole = shape.vision_params if model.freeze_vision else 0
    frozen_model = dtype * ((shape.params - whole) / ranks + whole)
    trained = shape.lora_params(model) if model.lora.rank else shape.params - whole
    frozen_weights = frozen_model if model.lora.rank else dtype * whole
    return {
        "weights": 4 * trained / ranks + frozen_weights,
        "gradients": 4 * trained / ranks,
        "Adam": 8 * trained / ranks,
        # FSDP gathers the embeddings and two blocks at a time: the one that computes and the next.
        "gathered layers": dtype * (shape.embedding_params + 2 * shape.block_params),
        "reference": frozen_model if config.algorithm.kl_coef and not model.lora.rank else 0.0,
        "activations": SLACK * _activations(config, shape),
        "logits": 3.0 * 4 * min(LOGITS_AT_ONCE, config.learner.tokens_per_pack * shape.vocabulary),
    }


def _need(
    role: str, count: int, cpus: float, gpus: float, parts: Mapping[str, float], process: float, share: float = 1.0
) -> Need:
    if gpus:
        return Need(role, count, cpus, gpus, {**parts, "CUDA context": CUDA_CONTEXT}, CUDA_PROCESS, share)
    parts = {**parts, "process": process}
    return Need(role, count, cpus, gpus, parts, sum(parts.values()))


def _some(cpus: float, gpus: float) -> float:
    """CPUs of an actor that asks for nothing at all: groups of resources can't be empty."""
    return cpus or (0.0 if gpus else 0.01)


def picture_tokens(config: RunConfig, shape: ModelShape) -> int:
    """Visual tokens of the largest picture of the run's games."""
    side = shape.vision.patch * shape.vision.merge
    sizes = [game.task().renderer.shape for game in config.games]
    return max(-(-height // side) * -(-width // side) for height, width, _ in sizes)


def _activations(config: RunConfig, shape: ModelShape) -> float:
    """What the backward pass of a pack keeps: the inputs of all blocks and the inside of one, or of all of them.

    The inside of a block, for each token: 6 vectors of the hidden width, keys and values, 4 of the MLP's width, and
    two norms in float32. Attention itself keeps no matrix (FlexAttention).
    """
    tokens, dtype = config.learner.tokens_per_pack, BYTES[config.model.dtype]
    norms, keys = 2 * 4 * shape.hidden, 2 * shape.kv_heads * shape.head_dim
    inside = dtype * (6 * shape.hidden + keys + 4 * shape.intermediate) + norms
    kept = shape.layers * shape.hidden * dtype + inside
    text = tokens * (kept if config.model.gradient_checkpointing else shape.layers * inside)
    look, pictures = shape.vision, picture_tokens(config, shape)
    patches = look.merge**2 * tokens * pictures / (pictures + config.rollout.max_tokens)
    inside = dtype * (7 * look.width + 4 * look.intermediate) + 2 * 4 * look.width
    kept = look.depth * look.width * dtype + inside
    if config.model.freeze_vision or config.model.lora.rank:
        return text + patches * inside
    return text + patches * (kept if config.model.gradient_checkpointing else look.depth * inside)


def memory_table(needs: tuple[Need, ...], shape: ModelShape) -> str:
    """The needs in words, a line a role; parts below a twentieth are not named."""
    lines = [f"memory ({shape.params / 1e6:,.1f} million parameters; {shape.source})"]
    for need in needs:
        where = f"of each GPU, {gb(need.node_memory)} of the node" if need.gpus else "of the node"
        parts = ", ".join(f"{name} {gb(size)}" for name, size in need.parts.items() if size >= 0.05 * need.total)
        lines.append(f"  {f'{need.count} x {need.role}':24} {gb(need.total):>8} {where}: {parts}")
    return "\n".join(lines)


def gb(size: float) -> str:
    """Bytes in words."""
    return f"{size / GB:.1f} GB" if size >= 0.1 * GB else f"{size / 1e6:.0f} MB"
