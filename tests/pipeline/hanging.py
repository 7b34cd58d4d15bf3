"""An engine, a loss and a reward that stand still when they are told to: for test_hangs.py."""

import asyncio
import ctypes
import json
import os
import time
from typing import Any

import torch.distributed as dist
from orders import ORDERS, TAKEN

from envs.core import Outcome
from envs.rewards import REWARDS, ternary
from g1_ray.engines.make import ENGINES, EngineKind
from g1_ray.engines.transformers import TransformersEngine
from g1_ray.learner.loss import LOSSES, Losses, Tokens, clip


def told(what: str) -> bool:
    """Whether it is this one's turn."""
    try:
        if ORDERS.read_text() != what:
            return False
        ORDERS.rename(TAKEN)
    except OSError:
        return False
    TAKEN.write_text(json.dumps({"time": time.time(), "process": os.getpid()}))
    return True


def stands_still() -> None:
    """In C, with the interpreter's lock: nothing else of the process goes on."""
    ctypes.PyDLL(None).sleep(10_000)


def sleeps() -> None:
    time.sleep(10_000)


class HangingEngine(TransformersEngine):
    async def _waits_for_ever(self) -> None:
        await asyncio.Event().wait()

    async def generate(self, *about: Any) -> Any:
        if told("generate"):
            await self._waits_for_ever()
        if told("generate, loop and all"):
            sleeps()
        return await super().generate(*about)

    async def load_policy(self, *about: Any) -> Any:
        if told("load_policy"):
            await self._waits_for_ever()
        return await super().load_policy(*about)


def loss(tokens: Tokens, config: Any) -> Losses:
    if told(f"step of rank {dist.get_rank()}"):
        sleeps()
    return clip(tokens, config)


def reward(outcome: Outcome) -> float:
    if told("score"):
        stands_still()
    return ternary(outcome)


ENGINES["still"] = EngineKind(load=lambda: HangingEngine)
LOSSES["still"] = loss
REWARDS["still"] = reward
