"""Learner and engine beside each other in one process: what they agree on, and whether they see."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import toys

from g1_ray.config import EngineConfig, RunConfig
from g1_ray.engines.make import engine_of_run
from g1_ray.engines.weight_sync import BlindError, check_sight
from g1_ray.learner.learner import Learner
from g1_ray.models.chat import Chat
from g1_ray.rollout.env_worker import EnvWorker, phrases
from g1_ray.types import Request


class Pair:
    """A learner and an engine of one run, with one model."""

    def __init__(self, config: RunConfig) -> None:
        config = config.model_copy(update={"engine": EngineConfig(kind="transformers", gpus=0, max_model_len=1024)})
        self.learner = Learner(config)
        self.learner.setup(toys.free_address())
        self.engine: Any = engine_of_run(config, toys.tiny_model())
        self.runner = asyncio.Runner()
        self.runner.run(self.engine.start())
        self.canaries = EnvWorker(config, phrases(config, toys.tiny_model())).canaries()

    def check(self) -> None:
        scored = {
            "the learner": self.learner.logprobs(self.canaries),
            "engine 0": self.runner.run(self.engine.logprobs(self.canaries)),
        }
        check_sight(0, ["2048"], scored)

    def close(self) -> None:
        self.learner.close()
        self.runner.run(self.engine.stop())
        self.runner.close()


@pytest.fixture(params=[0.7, 1.3])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(toys.config(rollout={"temperature": request.param, "max_tokens": 12}))
    yield pair
    pair.close()


def test_all_log_probabilities_are_those_of_the_run_s_temperature(pair: Pair) -> None:
    """Of answers as they are sampled, of the same as the engine scores them, and as the learner does."""
    prompt = toys.group(1).rollouts[0].turns[0].prompt
    ((*answers,),) = pair.runner.run(pair.engine.generate([Request(prompt, 6, 1)]))
    sequences = [(prompt, answer.token_ids) for answer in answers]
    scored, learned = pair.runner.run(pair.engine.logprobs(sequences)), pair.learner.logprobs(sequences)
    for answer, ours, theirs in zip(answers, scored, learned, strict=True):
        np.testing.assert_allclose(answer.logprobs, ours, atol=1e-5)
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
    pair.check()


def zeros(chat: Chat, patch: pytest.MonkeyPatch) -> None:
    plain = chat.pixel_values
    patch.setattr(chat, "pixel_values", lambda states: (np.zeros_like(plain(states)[0]), plain(states)[1]))


def one_picture(chat: Chat, patch: pytest.MonkeyPatch) -> None:
    plain = chat.pixel_values
    patch.setattr(chat, "pixel_values", lambda states: plain([toys.state(1)] * len(states)))


@pytest.mark.parametrize("loses", [zeros, one_picture])
@pytest.mark.parametrize("blind", [("the learner", "engine 0"), ("engine 0",), ("the learner",)])
def test_who_loses_the_picture_is_named(pair: Pair, monkeypatch: pytest.MonkeyPatch, blind: Any, loses: Any) -> None:
    for name, chat in (("the learner", pair.learner.chat), ("engine 0", pair.engine._chat)):
        if name in blind:
            loses(chat, monkeypatch)
    with pytest.raises(BlindError, match=f"version 0: {' and '.join(blind)} blind on 2048"):
        pair.check()
