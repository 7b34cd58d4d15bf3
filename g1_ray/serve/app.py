"""The application: what stands where, on a page.

    client --HTTP--> Ingress (FastAPI, stateless, two or more)      routes.py, openai.py behind guard.py
                       |-- Games (one, with a journal on disk)      arena.py
                       `-- model:NAME (an engine each, as many as are asked for)    models.py

`app` makes it for `g1-ray serve`, `serve run g1_ray.serve:app MODEL=...`, `serve deploy jobs/serve.yaml` and KubeRay.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from g1_ray.cluster.join import PROCESS_ENV
from g1_ray.evaluation.named import parse_player
from g1_ray.evaluation.play import Question, Reply
from g1_ray.serve.backend import GAMES, Backend, deployment_of
from g1_ray.serve.config import ServeConfig, Served, config_of
from g1_ray.serve.guard import Rules

if TYPE_CHECKING:
    from fastapi import FastAPI

LOCK_S = 60.0
"""Longest wait for the games' folder: the one who had it may still be ending."""


class Games:
    """The arena as an actor of its own: one, wherever the folder is."""

    def __init__(self, folder: str, models: list[str]) -> None:
        from g1_ray.serve.arena import Arena

        until = time.monotonic() + LOCK_S
        while True:
            try:
                self.arena = Arena(Path(folder), models)
                return
            except ValueError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    async def call(self, method: str, /, *args: Any, **options: Any) -> Any:
        """A method of the arena, in a thread."""
        return await asyncio.to_thread(getattr(self.arena, method), *args, **options)

    def __del__(self) -> None:
        if hasattr(self, "arena"):
            self.arena.close()


class ModelServer:
    """A model as an actor."""

    async def __init__(self, name: str, spec: str, run: str, gpus: float) -> None:  # type: ignore[misc]
        from g1_ray.logs import start_logging
        from g1_ray.serve.models import Model

        start_logging("serve")
        self.model = Model(name, spec, run)
        await self.model.open(gpus)

    def about(self) -> dict[str, Any]:
        """What clients are told of it."""
        return self.model.about()

    async def answer(self, question: Question) -> AsyncGenerator[Reply, None]:
        """The reply to a question, as it grows."""
        async for reply in self.model.answer(question):
            yield reply

    async def chat(self, chat: Any) -> AsyncGenerator[Any, None]:
        """The pieces of an answer of the OpenAI protocol."""
        async for piece in self.model.chat(chat):
            yield piece

    def check_health(self) -> None:
        """Raises what ended the engine."""
        self.model.check()

    async def __del__(self) -> None:
        if hasattr(self, "model"):
            await self.model.close()


def app(args: Mapping[str, Any] | ServeConfig) -> Application:
    """The application. Raises `ValueError` for options that are wrong."""
    config = args if isinstance(args, ServeConfig) else config_of(args)
    rules = Rules.from_environment(hosts=config.hosts, rate=config.rate, burst=3 * config.rate)
    models = config.served()
    names = [model.name for model in models]
    environment = {"runtime_env": {"env_vars": PROCESS_ENV}}
    games = serve.deployment(
        Games,
        name=GAMES,
        num_replicas=1,
        max_ongoing_requests=1000,
        health_check_period_s=2,
        health_check_timeout_s=20,
        ray_actor_options={"num_cpus": 0, **environment},
    ).bind(str(Path(config.folder).expanduser().absolute()), names)
    parts = [games, *(_model(config, model, environment) for model in models)]

    def ingress() -> "FastAPI":
        from g1_ray.serve.routes import build

        return build(Backend(names), rules)

    front = serve.deployment(
        serve.ingress(ingress)(),
        name="ingress",
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=500,
        health_check_period_s=2,
        health_check_timeout_s=20,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": 0, **environment},
    )
    return front.bind(*parts)


def _model(config: ServeConfig, model: Served, environment: Mapping[str, Any]) -> Application:
    """The deployment of a model."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0.0) if ray.is_initialized() else 0.0
    return serve.deployment(
        ModelServer,
        name=deployment_of(model.name),
        max_ongoing_requests=config.max_ongoing,
        max_queued_requests=config.max_queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min_replicas, max_replicas=config.max_replicas, target_ongoing_requests=8
        ),
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=30,
        ray_actor_options={**parse_player(model.spec).needs(gpus), **environment},
    ).bind(model.name, model.spec, model.run if config.follow else "", gpus)
