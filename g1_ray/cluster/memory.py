"""How much memory each role of a run will need: estimates from the numbers of the architecture, before anything starts.

They count what grows with the model, the answers and the packs, and a measured amount for a process with its libraries.
"""

import functools
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g1_ray.config import ModelConfig, RunConfig
from g1_ray.engines.make import ENGINES, GB, published_adapter
from g1_ray.models.find import is_cached, model_path
from g1_ray.models.weights import skeleton, vision_tower

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SLACK = 1.1
"""Of what is allocated for activations, for what the allocator can't use."""
HEAP_SLACK = {"full": 1.3, "LoRA": 1.6}
"""The same on a CPU, measured: glibc's heap keeps holes between activations, where temporaries were, and an adapted
layer leaves three: what the layer gives, its adapter, and that scaled. With MALLOC_MMAP_THRESHOLD_=262144, which keeps
none and takes a fifth to four fifths more time, `SLACK` is enough."""
LOGITS_AT_ONCE = 1 << 27
"""Logits that the learner makes at a time; they are there in float32 three times, with gradient and softmax."""
LEARNER_PROCESS = 1.0 * GB
ENV_PROCESS = 0.2 * GB
BUFFER_PROCESS = 0.6 * GB
"""Resident memory of processes with their libraries loaded and no model, on CPU."""
CUDA_CONTEXT = 1.0 * GB
CUDA_PROCESS = 4.0 * GB
"""Of the node's memory, for a process that uses a GPU."""
ENGINE_WORKSPACE = 3.0 * GB
"""What vLLM needs of a GPU beside weights and KV cache: CUDA graphs and the activations of its largest batch."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a transformer, all alike."""

    depth: int
    width: int
    inner: int
    """Width inside the MLP."""
    keys: int
    """Width of keys and values together."""
    params: int
    """Of one block."""


@dataclass(frozen=True)
class ModelShape:
    """The numbers of an architecture that memory depends on."""

    source: str
    """Where they were found."""
    params: int
    embedding_params: int
    """Of the token embedding, and of the output layer where it is not the same."""
    vision_params: int
    """Of the vision tower and its merger."""
    text: Blocks
    vision: Blocks
    vocabulary: int
    patch: int
    """Pixels of the side of a patch."""
    merge: int
    """Patches of the side of a visual token."""
    linears: Mapping[str, int]
    """Inputs and outputs of the linear layers of the language model, summed, by the last part of their names."""

    def kv_bytes(self, dtype: str) -> int:
        """Keys and values of a token."""
        return self.text.depth * self.text.keys * BYTES[dtype]

    def lora_params(self, config: ModelConfig) -> int:
        """Of the adapters: rank x (inputs + outputs) of every target in every block."""
        return config.lora.rank * sum(self.linears.get(target, 0) for target in config.lora.targets)


KNOWN: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "known.toml").read_text())
"""Memory of GPUs by type, and sizes of models by name, known without their files."""


@functools.cache
def shape_of(path: str) -> ModelShape | None:
    """The architecture of a model: from its folder, the Hugging Face cache or the published numbers; None: unknown.

    The model is built without its weights and looked at, so that no family's names of options have to be known.
    """
    name = model_path(path)
    if Path(name).is_dir() or is_cached(name):
        return _shape_of(skeleton(name), name if Path(name).is_dir() else "the Hugging Face cache")
    if name not in KNOWN["models"]:
        return None
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**KNOWN["models"][name]))
    return _shape_of(model, "published numbers")


def _shape_of(model: "PreTrainedModel", source: str) -> ModelShape:
    from torch.nn import Linear

    from g1_ray.learner.policy import blocks_of

    tower = vision_tower(model)
    assert tower is not None, "check_family asks for one"
    seeing = set(tower.modules())
    blocks = blocks_of(model)
    linears: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module not in seeing:
            linears[name.rpartition(".")[2]] += module.in_features + module.out_features
    ends = {id(part.weight): part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    text, vision = model.config.get_text_config(), model.config.vision_config
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        source=source,
        params=model.num_parameters(),
        embedding_params=sum(weight.numel() for weight in ends.values()),
        vision_params=sum(weight.numel() for weight in tower.parameters()),
        text=_blocks(
            [block for block in blocks if block not in seeing],
            2 * head * (getattr(text, "num_key_value_heads", None) or heads),
        ),
        vision=_blocks([block for block in blocks if block in seeing]),
        vocabulary=text.vocab_size,
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        linears=linears,
    )


def _blocks(blocks: "Sequence[Module]", keys: int = 0) -> Blocks:
    """Their numbers; `keys` not given: as wide as the block, for keys and values each.

    A block's first linear layer begins with its width; the inside of its MLP is the widest input of any.
    """
    from torch.nn import Linear

    linears = [module for module in blocks[0].modules() if isinstance(module, Linear)]
    width = linears[0].in_features
    return Blocks(
        depth=len(blocks),
        width=width,
        inner=max(linear.in_features for linear in linears),
        keys=keys or 2 * width,
        params=sum(weight.numel() for weight in blocks[0].parameters()),
    )


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
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the labels of its node have to be."""
    one_node: bool = False
    """Whether all of them have to be on one node."""

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
    engine = replace(engine_need(config, shape), labels=config.engine.labels)
    learner = replace(learner_need(config, shape), labels=config.learner.labels, one_node=config.learner.one_node)
    return engine, learner, replace(env, labels=asynchrony.env_labels), buffer


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
    adapter = shape.lora_params(config.model) if published_adapter(config) else 0
    weights = BYTES[dtype] * (shape.params + adapter) / gpus
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
    need = _need("learner rank", learner.num_ranks, cpus, learner.gpus, parts, LEARNER_PROCESS, share)
    # A model is read into the node's memory, as it is stored, before its layers are divided.
    read = BYTES[config.model.dtype] * shape.params if shape and learner.gpus else 0
    return replace(need, node_memory=need.node_memory + read)


def _learner_parts(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    model, ranks = config.model, config.learner.num_ranks
    dtype = BYTES[model.dtype]
    # A frozen vision tower is not divided over the ranks, and the reference has none.
    whole = shape.vision_params if model.vision_is_frozen else 0
    divided = shape.params - whole
    trained = shape.lora_params(model) if model.lora.rank else divided
    models = 2 if config.has_reference else 1
    return {
        "weights": 4 * trained / ranks + dtype * (whole + (divided / ranks if model.lora.rank else 0)),
        "gradients": 4 * trained / ranks,
        "Adam": 8 * trained / ranks,
        "gathered weights": models * dtype * _gathered(config, shape, divided),
        "reference": (models - 1) * dtype * divided / ranks,
        "activations": _slack(config) * _activations(config, shape),
        "logits": 3.0 * 4 * min(LOGITS_AT_ONCE, config.learner.tokens_per_pack * shape.vocabulary),
    }


def _slack(config: RunConfig) -> float:
    return SLACK if config.learner.gpus else HEAP_SLACK["LoRA" if config.model.lora.rank else "full"]


def _gathered(config: RunConfig, shape: ModelShape, divided: int) -> int:
    """Of each model, parameters that are there whole while it computes: all, or embeddings, the block and the next."""
    models = 2 if config.has_reference else 1
    kept = models * BYTES[config.model.dtype] * shape.params <= config.learner.keep_gathered_gb * GB
    return divided if kept else shape.embedding_params + 2 * shape.text.params


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
    side = shape.patch * shape.merge
    sizes = [game.task().renderer.shape for game in config.games]
    return max(-(-height // side) * -(-width // side) for height, width, _ in sizes)


def _activations(config: RunConfig, shape: ModelShape) -> float:
    """What the backward pass of a pack keeps: the inputs of all blocks and the inside of one, or of all of them."""
    tokens, dtype = config.learner.tokens_per_pack, BYTES[config.model.dtype]
    checkpointing = config.model.gradient_checkpointing
    pictures = picture_tokens(config, shape)
    patches = shape.merge**2 * tokens * pictures / (pictures + config.rollout.max_tokens)
    text = tokens * _kept(shape.text, dtype, checkpointing, _gathered_keys(config))
    if config.model.freeze_vision or config.model.lora.rank:
        return text + patches * _inside(shape.vision, dtype)
    return text + patches * _kept(shape.vision, dtype, checkpointing)


def _gathered_keys(config: RunConfig) -> float:
    """Keys that attention gathers for each token of a pack: an answer's own and its prompt's (`learner.attention`)."""
    answers, length = config.rollout.group_size, config.rollout.max_tokens
    prompt = max(1, config.engine.max_model_len - length)
    return (prompt + answers * (prompt + length)) / (prompt + answers * length)


def _kept(blocks: Blocks, dtype: int, checkpointing: bool, gathered: float = 0.0) -> float:
    """Of a token, for the backward pass through all blocks."""
    inside = _inside(blocks, dtype, gathered)
    return blocks.depth * blocks.width * dtype + inside if checkpointing else blocks.depth * inside


def _inside(blocks: Blocks, dtype: int, gathered: float = 0.0) -> float:
    """Of a token, in one block: 6 vectors of its width, keys and values, 4 of its MLP, two norms in float32.

    Attention keeps no matrix, but of `gathered` keys a copy, and of their values, for every head.
    """
    return dtype * ((6 + 2 * gathered) * blocks.width + blocks.keys + 4 * blocks.inner) + 2 * 4 * blocks.width


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
