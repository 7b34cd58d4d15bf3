"""Engines on several GPUs, without a GPU: what vLLM's own classes make of our arguments."""

import pytest

from g1_ray.config import EngineConfig
from g1_ray.types import Sampling

pytest.importorskip("vllm")


@pytest.fixture
def gpus(monkeypatch):
    """CUDA with eight of them, in the process of an actor that is in a placement group."""
    import ray
    from vllm.config import parallel

    for name, said in {"is_cuda": True, "is_cuda_alike": True, "is_tpu": False, "is_xpu": False}.items():
        monkeypatch.setattr(type(parallel.current_platform), name, lambda self, said=said: said)
    monkeypatch.setattr(type(parallel.current_platform), "device_count", lambda *_: 8, raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: "a group")


@pytest.mark.parametrize("number, executor", [(1, "uni"), (2, "mp"), (4, "mp")])
def test_an_engine_of_several_gpus_has_its_workers_on_its_own_node(gpus, number: int, executor: str):
    from vllm.config import ParallelConfig

    from g1_ray.engines.vllm import VLLMEngine

    arguments = VLLMEngine("m", EngineConfig(gpus=number), "bfloat16", Sampling())._arguments()
    names = ("tensor_parallel_size", "distributed_executor_backend")
    made = ParallelConfig(**{name: arguments[name] for name in names})
    assert made.world_size == made.tensor_parallel_size == number and not made.use_ray
    assert made.distributed_executor_backend == executor
    if number > 1:  # what vLLM would take by itself, and refuse a bundle of several GPUs with
        assert ParallelConfig(tensor_parallel_size=number).use_ray


@pytest.mark.parametrize("number", [2, 4])
def test_its_gpus_are_one_bundle(number: int):
    from g1_ray.cluster.reserve import teams
    from g1_ray.config import RunConfig

    run = RunConfig(name="t", model={"path": "m"}, games=[{"game": "2048"}], engine={"gpus": number, "num_engines": 2})
    assert teams(run)["engine"].each == {"CPU": 1, "GPU": number} and teams(run)["engine"].count == 2
