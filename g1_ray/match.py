"""One job of an evaluation: players on games, in one process, whose news are yielded as they come.

    classic and recorded players   a share of the seeds each
    a model                        an engine for it alone; all of its runs on all games at once
    an endpoint                    all of its runs at once, as many requests at a time as it is to get

Needs no Ray: `tournament` runs it as Ray tasks.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from envs import Codec, Game, State
from envs.rewards import reward_named
from g1_ray.config import GameConfig, model_path
from g1_ray.endpoint import Endpoint, EndpointError
from g1_ray.evaluation import Ask, Choose, Question, Reply, Run, Stopped, model, play, play_asked
from g1_ray.lab import Lab, experiment, lab_states
from g1_ray.players import PlayerConfig, chooser, is_adapter

Key = tuple[str, str, int, int]
"""Of a question: game, player, seed, move."""


@dataclass(frozen=True)
class Entry:
    """A player on a game: a line of the table."""

    game: GameConfig
    player: PlayerConfig

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all other entries."""
        return self.game.name, self.player.name


@dataclass(frozen=True)
class Job:
    """Entries, all of one model or one endpoint if they are asked, and the seeds they play."""

    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    moves: int
    known: Mapping[Key, Reply] = field(default_factory=dict)
    """Replies that are there already: nothing is asked twice."""
    gpus: float = 0.0
    """Of the cluster."""
    lab: int = 0
    """States that models are examined on."""


@dataclass(frozen=True)
class Answered:
    """News: a reply came."""

    key: Key
    reply: Reply


@dataclass(frozen=True)
class Played:
    """News: a run is over."""

    key: tuple[str, str]
    run: Run


@dataclass(frozen=True)
class Failed:
    """News: a player gives no more replies; what it has given is kept."""

    player: str
    why: str


@dataclass(frozen=True)
class Troubled:
    """News: what went wrong on the way to a player's replies, and how often."""

    player: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Examined:
    """News: what the lab found of a model on a game."""

    lab: Lab


News = Answered | Played | Failed | Troubled | Examined


def work(job: Job) -> Iterator[list[News]]:
    """Does the job; yields the news that there are, as soon as there are any."""
    if not job.entries[0].player.is_asked:
        for entry in job.entries:
            for seed in job.seeds:
                yield [Played(entry.key, _play(entry, seed, job.moves))]
        return
    news: SimpleQueue[News | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(_run_asked, job, news.put)
        ended = False
        while not ended:
            batch = [news.get()]
            while not news.empty():
                batch.append(news.get())
            ended = None in batch
            if told := [item for item in batch if item is not None]:
                yield told
        done.result()


def _play(entry: Entry, seed: int, moves: int) -> Run:
    task, reward, player = entry.game.task(), reward_named(entry.game.reward), entry.player
    if player.kind == "human":
        return play(task, player.name, _recorded(player, seed), seed, moves, reward)
    return play(task, player.name, chooser(player, task), seed, moves, reward)


def _recorded(player: PlayerConfig, seed: int) -> Choose:
    """Plays a recorded run again. Raises `ValueError` where there is none, or the boards are other ones."""
    from g1_ray.moves import read_runs

    runs = {run.seed: run for run in read_runs(Path(player.what))}
    if seed not in runs:
        raise ValueError(f"{player.what}: no run of seed {seed}; it has {', '.join(map(str, sorted(runs)))}")
    moves = iter(runs[seed].moves)

    def choose(game: Game, rng: np.random.Generator) -> int:
        move = next(moves, None)
        if move is None:
            raise Stopped
        if not np.array_equal(move.state.game().perception(), game.perception()):
            raise ValueError(f"{player.what}: seed {seed} was played on another game, or under another protocol")
        assert move.action is not None, "a person's move is always one"
        return move.action

    return choose


def _run_asked(job: Job, tell: Callable[[News | None], None]) -> None:
    try:
        asyncio.run(_play_asked(job, tell))
    finally:
        tell(None)


async def _play_asked(job: Job, tell: Callable[[News], None]) -> None:
    """All runs of a job at once."""
    player = job.entries[0].player
    opening = _endpoint(player, tell) if player.kind == "endpoint" else _model(job)
    async with opening as (asks, examine):
        failed: dict[str, str] = {}

        def asking(entry: Entry) -> Ask:
            async def ask(question: Question) -> Reply:
                if question.key in job.known:
                    return job.known[question.key]
                if entry.player.name in failed:
                    raise Stopped
                try:
                    reply = await asks(entry.player, question)
                except EndpointError as error:
                    if entry.player.name not in failed:
                        failed[entry.player.name] = str(error)
                        tell(Failed(entry.player.name, str(error)))
                    raise Stopped from None
                tell(Answered(question.key, reply))
                return reply

            return ask

        async def one(entry: Entry, seed: int) -> None:
            reward = reward_named(entry.game.reward)
            task, name = entry.game.task(), entry.game.name
            try:
                run = await play_asked(task, name, entry.player.name, asking(entry), seed, job.moves, reward)
            except Stopped:
                return
            tell(Played(entry.key, run))

        await asyncio.gather(*(one(entry, seed) for entry in job.entries for seed in job.seeds))
        if job.lab and examine:
            for entry in job.entries:
                tell(Examined(await examine(entry, job.lab)))


Asks = Callable[[PlayerConfig, Question], Awaitable[Reply]]
Examine = Callable[[Entry, int], Awaitable[Lab]]


@asynccontextmanager
async def _endpoint(player: PlayerConfig, tell: Callable[[News], None]) -> AsyncIterator[tuple[Asks, Examine | None]]:
    endpoint, loop = Endpoint(player), asyncio.get_running_loop()
    with ThreadPoolExecutor(player.concurrency) as pool:

        async def ask(player: PlayerConfig, question: Question) -> Reply:
            prompt = Codec(question.state.task).prompt()
            return await loop.run_in_executor(pool, endpoint.ask, question.state, prompt, question.sampling_seed)

        yield ask, None  # the lab begins a model's answer for it, which endpoints can't
    if endpoint.troubles:
        tell(Troubled(player.name, dict(endpoint.troubles)))


@asynccontextmanager
async def _model(job: Job) -> AsyncIterator[tuple[Asks, Examine | None]]:
    from transformers import AutoConfig

    from g1_ray.actors import engine_of
    from g1_ray.chat import Chat
    from g1_ray.types import Sampling

    player = job.entries[0].player
    with tempfile.TemporaryDirectory() as folder:
        path = _loadable(player, folder)
        chat = Chat(path)
        samplings = {
            entry.player.name: Sampling(entry.player.temperature, entry.player.top_p, entry.player.max_tokens)
            for entry in job.entries
        }
        longest = max(len(chat.prompt([(_first(entry), None)]).token_ids) for entry in job.entries)
        most = AutoConfig.from_pretrained(path).get_text_config().max_position_embeddings
        room = min(most, longest + max(sampling.max_tokens for sampling in samplings.values()))
        config = player.resolved_engine(job.gpus, room)
        dtype = player.dtype or ("bfloat16" if config.gpus else "float32")
        engine = engine_of(path, config, dtype, Sampling())
        await engine.start()

        players = {name: model(chat, engine.generate, sampling) for name, sampling in samplings.items()}

        async def examine(entry: Entry, num: int) -> Lab:
            states = lab_states(entry.game.task(), num)
            return await experiment(*entry.key, states, chat, engine.generate, samplings[entry.player.name])

        try:
            yield (lambda player, question: players[player.name](question)), examine
        finally:
            await engine.stop()


def _first(entry: Entry) -> State:
    task = entry.game.task()
    game = task.new_game()
    game.reset(0)
    return State.of(task, game)


def _loadable(player: PlayerConfig, folder: str) -> str:
    """The model's path; a LoRA adapter is merged into its model first, in `folder`."""
    if not is_adapter(player.what):
        return model_path(player.what)
    from g1_ray.model import merge_adapter

    return merge_adapter(player.what, folder)
