"""What the ingress stands on: the games' actor and the models, asked again where one of them dies.

Nothing is doubled by that: the games take a revision once, and a model is asked the same question with the same seed.
"""

import asyncio
import dataclasses
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from g1_ray.evaluation.endpoint import EndpointError
from g1_ray.evaluation.play import Question, Reply
from g1_ray.serve.session import Refused

log = logging.getLogger(__name__)
GAMES = "games"
"""The deployment of the games."""
TOLD_S = 0.5
"""How long what a model says of itself is repeated."""
PATIENCE_S = 25.0
"""How long a part that died is waited for."""
_T = TypeVar("_T")


def deployment_of(model: str) -> str:
    """The deployment of a model, named such that it can be part of a file's name."""
    plain = re.sub(r"[^\w.-]+", "-", model)
    return f"model-{plain}" if plain == model else f"model-{plain}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


class Backend:
    """The games and the models of an application."""

    def __init__(self, models: list[str]) -> None:
        self.models = models
        self._told: dict[str, tuple[float, dict[str, Any]]] = {}  # name -> when, what

    async def games(self, call: str, /, *args: Any, **options: Any) -> Any:
        """A method of the arena. Raises `Refused`."""
        handle = serve.get_deployment_handle(GAMES)
        return await _patiently(lambda: handle.call.remote(call, *args, **options))

    async def told(self, model: str) -> dict[str, Any]:
        """What a model says of itself, a moment ago at most; of one that is busy, what it said last."""
        at, about = self._told.get(model, (-TOLD_S, {}))
        if time.monotonic() > at + TOLD_S:
            try:
                about = await _patiently(lambda: serve.get_deployment_handle(deployment_of(model)).about.remote())
            except Refused:
                if not about:
                    raise
            self._told[model] = time.monotonic(), about
        return about

    async def answer(self, question: Question) -> AsyncGenerator[Reply, None]:
        """A model's reply as it grows; begun anew where its engine dies in the middle."""
        handle = serve.get_deployment_handle(deployment_of(question.player)).options(stream=True)
        async for reply in _streamed(lambda: handle.answer.remote(question)):
            yield reply

    async def chat(self, model: str, chat: Any) -> AsyncGenerator[Any, None]:
        """The pieces of an answer of the OpenAI protocol. What was sent can't be taken back, so it is asked once."""
        handle = serve.get_deployment_handle(deployment_of(model)).options(stream=True)
        try:
            async for piece in handle.chat.remote(chat):
                yield piece
        except BackPressureError:
            raise _full() from None
        except (RayActorError, DeploymentUnavailableError):
            raise Refused(503, "died", "the model's engine died; ask again") from None


async def _patiently(call: Callable[[], Awaitable[_T]]) -> _T:
    until, wait = time.monotonic() + PATIENCE_S, 0.05
    while True:
        try:
            return await call()
        except BackPressureError:
            raise _full() from None
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Refused) else error from None
        except (RayActorError, DeploymentUnavailableError) as error:
            if time.monotonic() > until:
                raise Refused(503, "died", "a part of the server died and is not back yet; try again") from error
            log.warning("asked again: %s", type(error).__name__)
            await asyncio.sleep(wait)
            wait = min(2 * wait, 1.0)


async def _streamed(call: Callable[[], AsyncIterator[Reply]]) -> AsyncGenerator[Reply, None]:
    until, wait = time.monotonic() + PATIENCE_S, 0.05
    while True:
        try:
            async for reply in call():
                yield reply
            return
        except BackPressureError:
            raise _full() from None
        except RayTaskError as error:
            said = str(error.cause).strip().partition("\n")[0][:300]
            if isinstance(error.cause, EndpointError):
                raise Refused(503, "model", said) from None
            if isinstance(error.cause, ValueError):  # a prompt that is too long for it
                raise Refused(422, "model", said) from None
            raise
        except (RayActorError, DeploymentUnavailableError) as error:
            if time.monotonic() > until:
                raise Refused(503, "died", "the model's engine died and is not back yet; try again") from error
            yield Reply("", "")
            await asyncio.sleep(wait)
            wait = min(2 * wait, 1.0)


def _full() -> Refused:
    return Refused(429, "full", "the model has as much to do as it takes; try again in a moment")


def reply_fields(reply: Reply) -> dict[str, Any]:
    """A reply for a journal."""
    return dataclasses.asdict(reply)
