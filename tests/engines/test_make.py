"""Which options an engine reads: those and no others are a player's."""

import asyncio

import pytest

pytest.importorskip("torch")

from envs import State, Task  # noqa: E402
from g1_ray.config import EngineConfig  # noqa: E402
from g1_ray.engines.make import ENGINES, OWN, SHARED, EngineKind, make_engine, options_read  # noqa: E402
from g1_ray.evaluation.named import parse_player  # noqa: E402
from g1_ray.models.chat import Chat  # noqa: E402
from g1_ray.models.find import MODELS  # noqa: E402
from g1_ray.types import Request, Sampling  # noqa: E402

PATH = str(MODELS / "tiny-base")
OUTSIDE = {"kind", "cpus"}
"""Read before an engine is made: which one it is, and what Ray gives it."""


class Seen:
    """A config that knows what was read of it."""

    def __init__(self, config):
        self._config, self.read = config, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self._config, name)


def test_every_option_is_one_that_some_engine_reads_but_how_many_there_are_and_where():
    assert set(EngineConfig.model_fields) - {"num_engines", "labels"} == {*SHARED, *OWN}


@pytest.mark.parametrize("gpus", [0, 1])
def test_vllm_reads_what_is_said(gpus):
    pytest.importorskip("vllm")
    config = Seen(EngineConfig(kind="vllm", gpus=gpus))
    engine = make_engine(PATH, config, "float32", Sampling())
    assert engine._arguments() and not (engine._in_thread() and gpus)
    assert config.read - OUTSIDE == set(options_read("vllm", gpus)) - OUTSIDE


def test_transformers_reads_what_is_said():
    config = Seen(EngineConfig(kind="transformers", gpus=0, max_model_len=512))
    prompt = Chat(PATH).prompt([(State.start(Task.make("2048", perception={"tile_px": 28}), 0), None)])

    async def answer():
        engine = make_engine(PATH, config, "float32", Sampling(max_tokens=2))
        await engine.start()
        await engine.generate([Request(prompt, 1, 0)])
        await engine.stop()

    asyncio.run(answer())
    assert config.read - OUTSIDE == set(options_read("transformers", 0)) - OUTSIDE


@pytest.mark.parametrize("name", [name for name in EngineConfig.model_fields if name != "labels"])
@pytest.mark.parametrize("kind, gpus", [("transformers", 0), ("transformers", 1), ("vllm", 0), ("vllm", 1)])
def test_a_player_has_the_options_that_its_engine_reads_and_no_others(kind, gpus, name):
    values = {"kind": kind, "gpus": gpus, name: {"kind": kind, "gpus": gpus, "core": "thread"}.get(name, 1)}
    player = parse_player("tiny-base?" + "&".join(f"engine.{key}={value}" for key, value in values.items()))
    if name in options_read(kind, gpus):
        assert getattr(player.resolved_engine(8, 100), name) == values[name]
        return
    with pytest.raises(ValueError, match=f"'tiny-base'.* engine.{name} has no effect") as raised:
        player.needs(8)
    told = str(raised.value)
    assert len(told.splitlines()) <= 3 and all(f"engine.{other}" in told for other in options_read(kind, gpus))


def test_an_engine_of_another_kind_may_read_all_of_them(monkeypatch):
    monkeypatch.setitem(ENGINES, "mine", EngineKind(load=dict))
    assert set(options_read("mine", 0)) == set(options_read("mine", 1)) == {*SHARED, *OWN}
