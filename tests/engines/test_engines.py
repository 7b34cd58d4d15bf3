"""The two engines beside each other, on the model that ships: the same moves."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("vllm")

from envs import Codec, Task  # noqa: E402
from g1_ray.config import EngineConfig
from g1_ray.engines.make import make_engine
from g1_ray.evaluation.lab import lab_states  # noqa: E402
from g1_ray.models.chat import Chat  # noqa: E402
from g1_ray.models.find import MODELS
from g1_ray.types import Request, Sampling  # noqa: E402

PATH = str(MODELS / "tiny-coldstart")
TASKS = [
    Task.make("2048", reasoning={"size": 3}, perception={"tile_px": 28}),
    Task.make("shisen", reasoning={"rows": 4, "cols": 4}, perception={"tile_px": 28}),
]


@pytest.mark.timeout(400)
def test_both_engines_make_the_same_moves():
    """Greedy, float32, 500 states: at least 99 % of the moves are the same (a tie may fall either way)."""
    chat = Chat(PATH)
    states = [state for task in TASKS for state in lab_states(task, 250)]
    requests = [Request(chat.prompt([(state, None)]), 1, i) for i, state in enumerate(states)]
    codecs = {task: Codec(task) for task in TASKS}
    sampling = Sampling(temperature=0.0, max_tokens=160)

    async def moves(kind: str) -> list[int | None]:
        config = EngineConfig(
            kind=kind, gpus=0, kv_cache_gb=0.5, max_model_len=512, max_num_seqs=128, enforce_eager=True
        )
        engine = make_engine(PATH, config, "float32", Sampling())
        await engine.start()
        try:
            answers = await engine.generate(requests, sampling)
        finally:
            await engine.stop()
        texts = [chat.decode(answer.token_ids) for (answer,) in answers]
        return [codecs[state.task].read(text).action for state, text in zip(states, texts, strict=True)]

    ours, theirs = (asyncio.run(moves(kind)) for kind in ("transformers", "vllm"))
    same = np.array([a == b for a, b in zip(ours, theirs, strict=True)])
    assert same.mean() >= 0.99
    assert np.mean([action is not None for action in ours]) > 0.98 and len(set(ours)) > 20  # moves, and not always one
