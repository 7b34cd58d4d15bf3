"""A served model: a player of evaluation, opened in a replica, that answers as it is asked and takes up newer weights.

question -> Model.answer -> replies as they grow (words, tokens, policy versions)
a run that trains -> Follower -> newest checkpoint -> engine.load_policy, between two answers: none mixes weights
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs import Task, game_names
from envs.task import check_folder
from g1_ray.engines.weight_sync import pack_weights
from g1_ray.evaluation.named import parse_player
from g1_ray.evaluation.play import Question, Reply
from g1_ray.evaluation.players import Asked, Opened
from g1_ray.files import read_json
from g1_ray.models.manifest import fault_of
from g1_ray.runs.checkpoints import checkpoints
from g1_ray.runs.reading import check_games, games_of
from g1_ray.runs.shapes import Config

if TYPE_CHECKING:
    from g1_ray.serve.openai import Chat, Delta

log = logging.getLogger(__name__)
POLL_S = 2.0
"""How often a run is looked at for a newer checkpoint."""
DRAIN_S = 120.0
"""Longest wait for answers to end before newer weights are loaded."""


class Turnstile:
    """Answers go through together, a load goes through alone: what comes after it waits for it."""

    def __init__(self) -> None:
        self.inside = 0
        """Answers under way."""
        self._changed, self._loading = asyncio.Condition(), False

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """An answer."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._loading)
            self.inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self.inside -= 1
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def loading(self, timeout_s: float) -> AsyncIterator[None]:
        """A load. Raises `TimeoutError` where an answer does not end."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._loading)
            self._loading = True
        try:
            async with asyncio.timeout(timeout_s):
                async with self._changed:
                    await self._changed.wait_for(lambda: not self.inside)
            yield
        finally:
            async with self._changed:
                self._loading = False
                self._changed.notify_all()


class Model:
    """A player that is asked, ready to answer.

    `spec`: as on the command line; `run`: the folder of the run whose newer checkpoints are taken up.
    """

    def __init__(self, name: str, spec: str, run: str = "") -> None:
        player = parse_player(spec).model_copy(update={"name": name})
        assert isinstance(player, Asked), spec
        self.player, self.run = player, run
        self.tasks = tasks_known(player.what)
        self.version = 0
        """Of the weights that answer: optimizer steps of the run, where it is followed."""
        self._turnstile = Turnstile()
        self._closing = contextlib.AsyncExitStack()
        self._follower: asyncio.Task[None] | None = None

    async def open(self, gpus: float) -> None:
        """Loads it. Raises `ValueError`."""
        tasks = [task for _, task in self.tasks] + [Task.make(name) for name in game_names()]
        self.opened: Opened = await self._closing.enter_async_context(
            type(self.player).opened([self.player], tasks, gpus)
        )
        if self.run:
            await self._look()  # by which the engine learns of which step the weights are that it has
            self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Ends its engine."""
        if self._follower:
            self._follower.cancel()
        await self._closing.aclose()

    def about(self) -> dict[str, Any]:
        """What clients are told of it."""
        return {
            "name": self.player.name,
            "version": self.version,
            "follows": bool(self.run),
            "answering": self._turnstile.inside,
            "chats": self.opened.engine is not None,
            "games": [{"label": name, "game": task.name, **_axes(task)} for name, task in self.tasks],
        }

    def check(self) -> None:
        """Raises what ended its engine, or what follows its run."""
        if self._follower and self._follower.done():
            self._follower.result()
        if self.opened.engine is not None:
            self.opened.engine.check()

    async def answer(self, question: Question) -> AsyncGenerator[Reply, None]:
        """The reply to a question, as it grows."""
        async with self._turnstile.answering():
            if self.opened.watch is None:
                yield await self.opened.ask(self.player, question)
                return
            async with contextlib.aclosing(self.opened.watch(self.player, question)) as growing:
                async for reply in growing:
                    yield reply

    async def chat(self, chat: "Chat") -> "AsyncGenerator[Delta, None]":
        """The answer to a conversation of the OpenAI protocol, in pieces. Raises `Refused`."""
        from g1_ray.serve.openai import answered

        async with self._turnstile.answering():
            async with contextlib.aclosing(answered(chat, self.opened)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _follow(self) -> None:
        """Takes up every newer checkpoint of the run."""
        while True:
            await asyncio.sleep(POLL_S)
            await self._look()

    async def _look(self) -> None:
        """Takes up the newest checkpoint, where it is newer."""
        newest = checkpoints(Path(self.run) / "checkpoints")[-1:]
        if not newest or _step(newest[0]) <= self.version:
            return
        with contextlib.suppress(FileNotFoundError):  # it was pruned as it was read
            if not await asyncio.to_thread(fault_of, newest[0]):
                await self._take_up(newest[0])

    async def _take_up(self, checkpoint: Path) -> None:
        engine, step = self.opened.engine, _step(checkpoint)
        assert engine is not None
        weights = await asyncio.to_thread(_packed, checkpoint, self.opened.dtype)
        async with self._turnstile.loading(DRAIN_S):
            await engine.load_policy(weights, step)
            self.version = step
        log.info("%s: answers from step %d on", self.player.name, step)


def _axes(task: Task) -> dict[str, dict[str, Any]]:
    return {"reasoning": task.reasoning.as_dict(), "perception": task.perception.as_dict()}


def _packed(checkpoint: Path, dtype: str) -> NDArray[np.uint8]:
    """The weights of a checkpoint, as engines take them."""
    import torch

    from g1_ray.models.weights import load_model

    its = getattr(torch, dtype)
    return pack_weights(load_model(str(checkpoint), dtype=its).named_parameters(), its)


def _step(checkpoint: Path) -> int:
    """Optimizer steps of a checkpoint; 0 of a folder that is none."""
    name, _, number = checkpoint.name.partition("-")
    return int(number) if name == "step" and number.isdecimal() else 0


def tasks_known(what: str) -> list[tuple[str, Task]]:
    """What a model was trained on, by name, where its folder or its run says so."""
    from g1_ray.config import GameConfig
    from g1_ray.models.find import model_path

    try:
        folder = Path(model_path(what))
    except ValueError:
        return []
    for path in (folder / "made.json", *(parent / "config.json" for parent in (folder, *folder.parents[:2]))):
        try:
            games = read_json(path, Config).get("games") if path.is_file() else None
            if not isinstance(games, list) or not games:
                continue
            check_games(games_of({"games": games}), path)
            for game in games:
                check_folder(game.get("perception"))
            known = GameConfig.model_fields.keys()
            configs = [GameConfig(**{key: game[key] for key in known & game.keys()}) for game in games]
        except ValueError as error:
            log.warning("%s: its games are not known: %s", path, str(error).splitlines()[0])
            return []
        return [(config.name, config.task()) for config in configs]
    return []
