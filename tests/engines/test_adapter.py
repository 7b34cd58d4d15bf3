"""Learner and engine of a LoRA run beside each other in one process: the adapter is published alone."""

import asyncio
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from transformers import AutoModelForImageTextToText

from g1_ray.config import EngineConfig, RunConfig
from g1_ray.engines.make import ENGINES, EngineKind, engine_of_run, make_engine, published_adapter
from g1_ray.engines.weight_sync import pack_weights
from g1_ray.learner.learner import Learner
from g1_ray.models.find import MODELS
from g1_ray.models.weights import vision_tower
from g1_ray.rollout.env_worker import EnvWorker, phrases
from g1_ray.types import Floats, Request, Sampling

SLOW = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")]


class Trio:
    """The learner of a LoRA run, an engine of that run, and the sequences that both score."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.learner = Learner(config)
        self.learner.setup(toys.free_address())
        self.engine: Any = engine_of_run(config, config.model.path)
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.run(self.engine.start())
        self.canaries = EnvWorker(config, phrases(config, config.model.path)).canaries()

    def adapter(self) -> np.ndarray:
        return pack_weights(self.learner.adapter().items(), self.learner.dtype)

    def scored(self, engine: Any = None) -> Floats:
        return np.concatenate(self.run((engine or self.engine).logprobs(self.canaries)))

    def learned(self) -> Floats:
        return np.concatenate(self.learner.logprobs(self.canaries))

    def close(self) -> None:
        self.learner.close()
        self.run(self.engine.stop())
        self.runner.close()


def config(path: str | Path, kind: str, dtype: str) -> RunConfig:
    config = toys.config(path=str(path), lora=8, dtype=dtype, optimizer={"lr": 1e-2}, rollout={"max_tokens": 16})
    engine = EngineConfig(kind=kind, gpus=0, kv_cache_gb=0.2, max_model_len=512)
    return config.model_copy(update={"engine": engine})


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=SLOW)])
def trio(request: pytest.FixtureRequest) -> Iterator[Trio]:
    trio = Trio(config(MODELS / "tiny-base", request.param, "float32"))
    yield trio
    trio.close()


def test_answers_in_flight_go_on_under_the_new_adapter(trio: Trio) -> None:
    """What is refused changes nothing; each token says whose it is, and is that policy's; nothing old is left."""
    assert np.abs(trio.scored() - trio.learned()).mean() <= 1e-5
    whole = pack_weights(trio.learner.weights().items(), torch.float32)
    some = pack_weights(list(trio.learner.adapter().items())[1:], torch.float32)
    for wrong, count in ((whole, "41"), (some, "0")):
        with pytest.raises(ValueError, match=rf"lack base_model.*lora_A.weight and {count} more: publish the adapter"):
            trio.run(trio.engine.load_policy(wrong, 1))
    assert trio.run(trio.engine.version()) == 0

    prompt = toys.group(1).rollouts[0].turns[0].prompt
    (last,) = (t for t in trio.learner.optimizer.trained if "layers.2.mlp.down_proj.lora_B" in t.name)

    async def publish_while_sampling(version: int) -> Any:
        sampling = asyncio.create_task(trio.engine.generate([Request(prompt, 16, 1)], Sampling(max_tokens=300)))
        await trio.engine.generate([Request(prompt, 1, 2)], Sampling(max_tokens=8))
        await trio.engine.load_policy(trio.adapter(), version)
        (late,) = await trio.engine.generate([Request(prompt, 4, 3)])
        return [*(await sampling)[0], *late]

    # No keys or values depend on the last layer's MLP, so each token is exactly that of the policy that it names.
    policies = [torch.zeros_like(last.shard), *(torch.randn(2, *last.shard.shape, generator=torch.Generator()) / 5)]
    for version in (1, 2):  # from an adapter that changes nothing, and from one that does
        last.shard.detach().copy_(policies[version])
        answers = trio.run(publish_while_sampling(version))
        assert trio.run(trio.engine.version()) == version
        assert set(np.concatenate([answer.versions for answer in answers[16:]])) == {version}
        assert any(set(answer.versions) == {version - 1, version} for answer in answers[:16])
        assert all((np.diff(answer.versions) >= 0).all() for answer in answers)
        off = {}
        for policy in (version - 1, version):
            last.shard.detach().copy_(policies[policy])
            learned = trio.learner.logprobs([(prompt, answer.token_ids) for answer in answers])
            off[policy] = np.abs(np.concatenate(learned) - np.concatenate([answer.logprobs for answer in answers]))
        sampled_by = np.concatenate([answer.versions for answer in answers])
        for policy, other in ((version - 1, version), (version, version - 1)):
            assert off[policy][sampled_by == policy].max() < 1e-3 and off[other][sampled_by == policy].mean() > 0.01
        assert np.abs(trio.scored() - trio.learned()).mean() <= 1e-5


def coarse(folder: Path) -> Path:
    """A model whose linear layers have no weight below 0.04, so that changes below 1.2e-4 are lost in bfloat16."""
    shutil.copytree(toys.tiny_model(), folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tower = vision_tower(model)
    seeing = set(tower.modules()) if tower is not None else set()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module not in seeing:
                signs = torch.where(module.weight < 0, -1.0, 1.0)
                module.weight.copy_(signs * module.weight.abs().clamp_min(0.04))
    model.save_pretrained(folder)
    return folder


def test_a_change_that_is_lost_in_merged_weights_arrives_in_an_adapter(tmp_path: Path) -> None:
    trio = Trio(config(coarse(tmp_path / "model"), "transformers", "bfloat16"))
    merged: Any = make_engine(trio.config.model.path, trio.config.engine, "bfloat16", Sampling())
    trio.run(merged.start())
    start, before = trio.learner.weights(), trio.scored()
    signs = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for t in trio.learner.optimizer.trained:  # the layer's change is 1e-4, with a sign of each output's own
            size = 0.01 if ".lora_A." in t.name else 1e-4 / (32 * 0.01)
            random = torch.randint(0, 2, (len(t.shard), 1), generator=signs) * 2 - 1
            t.shard.copy_(size * (1 if ".lora_A." in t.name else random.expand_as(t.shard)))
    whole = trio.learner.weights()
    assert all(torch.equal(whole[name], start[name]) for name in start)
    trio.run(merged.load_policy(pack_weights(whole.items(), torch.bfloat16), 1))
    trio.run(trio.engine.load_policy(trio.adapter(), 1))
    learned = trio.learned()
    moved = np.abs(trio.scored() - before).mean()
    alone, lost = (float(np.abs(trio.scored(engine) - learned).mean()) for engine in (trio.engine, merged))
    print(f"\nengine and learner differ by {alone:.2g} nats with the adapter, {lost:.2g} with merged weights")
    assert (trio.scored(merged) == before).all() and moved > 1e-3
    assert alone < lost / 4
    trio.run(merged.stop())
    trio.close()


def test_only_kinds_that_say_so_are_given_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(MODELS / "tiny-base", "transformers", "float32")
    assert published_adapter(run) == run.model.lora
    assert published_adapter(toys.config()) is None
    monkeypatch.setitem(ENGINES, "plain", EngineKind(load=lambda: None))
    plain = run.model_copy(update={"engine": run.engine.model_copy(update={"kind": "plain"})})
    on_gpu = {"engine": EngineConfig(kind="vllm", gpus=1)}
    assert published_adapter(plain) is None
    assert published_adapter(run.model_copy(update=on_gpu)) is None  # vLLM's kernels know no float32
    half = config(MODELS / "tiny-base", "vllm", "bfloat16")
    assert published_adapter(half.model_copy(update=on_gpu)) == half.model.lora
