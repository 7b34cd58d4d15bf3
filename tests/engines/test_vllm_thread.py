"""vLLM in a thread of this process: what else is in it, and a step that fails. Slow: a start takes ten seconds."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("vllm")

from envs import State, Task  # noqa: E402
from g1_ray.config import EngineConfig  # noqa: E402
from g1_ray.engines.vllm import VLLMEngine  # noqa: E402
from g1_ray.engines.vllm_thread import ThreadedLLM, has_room  # noqa: E402
from g1_ray.models.chat import Chat  # noqa: E402
from g1_ray.models.find import MODELS  # noqa: E402
from g1_ray.types import Request, Sampling  # noqa: E402

PATH = str(MODELS / "tiny-base")
CONFIG = EngineConfig(gpus=0, kv_cache_gb=0.1, max_model_len=512, max_num_seqs=64)
pytestmark = pytest.mark.slow


def engine_with(core: str) -> VLLMEngine:
    return VLLMEngine(PATH, CONFIG.model_copy(update={"core": core}), "float32", Sampling(max_tokens=400))


def request() -> Request:
    task = Task.make("2048", perception={"tile_px": 28})
    return Request(Chat(PATH).prompt([(State.start(task, 6), None)]), 4, 6)


def test_the_second_in_a_process_has_a_process_of_its_own() -> None:
    async def both() -> None:
        first, second = engine_with("auto"), engine_with("auto")
        assert has_room()
        await first.start()
        with pytest.raises(ValueError, match="engine.core = 'thread': somebody else in this process"):
            await engine_with("thread").start()
        await second.start()
        assert isinstance(first._llm, ThreadedLLM) and not isinstance(second._llm, ThreadedLLM)
        ours, theirs = await asyncio.gather(first.generate([request()]), second.generate([request()]))
        assert [a.token_ids.tolist() for a in ours[0]] == [a.token_ids.tolist() for a in theirs[0]]
        await first.stop()
        assert has_room()  # for the next one
        assert len((await second.generate([request()]))[0]) == 4
        await second.stop()

    asyncio.run(both())


def test_a_step_that_fails_ends_the_engine_and_all_who_wait_are_told() -> None:
    async def fail() -> None:
        engine = engine_with("thread")
        await engine.start()
        asking = [asyncio.create_task(engine.generate([request()])) for _ in range(3)]
        llm: Any = engine._llm
        while not llm._engine.has_unfinished_requests():
            await asyncio.sleep(0.01)
        llm._engine.step = lambda: 1 // 0
        told = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(each) for each in told] == [ZeroDivisionError] * 3
        for call in (engine.alive, engine.version, lambda: engine.generate([request()])):  # and whoever comes later
            with pytest.raises(ZeroDivisionError):
                await call()
        with pytest.raises(ZeroDivisionError):
            engine.check()
        await engine.stop()
        assert has_room()

    asyncio.run(fail())


def test_one_that_nobody_waits_for_any_more_leaves_room_for_another() -> None:
    async def start() -> None:
        beginning = asyncio.create_task(ThreadedLLM.begun(engine_with("thread")._arguments()))
        await asyncio.sleep(0.1)
        beginning.cancel()
        async with asyncio.timeout(60):
            while not has_room():
                await asyncio.sleep(0.1)

    asyncio.run(start())


def test_what_can_not_start_leaves_room_for_another() -> None:
    async def start() -> None:
        with pytest.raises(Exception, match="no-such-model"):
            await ThreadedLLM.begun({"model": "/no-such-model"})
        assert has_room()

    asyncio.run(start())
