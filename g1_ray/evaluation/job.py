"""One job of an evaluation: players on games, in one process, whose news are yielded as they come.

    players that look at the game   a share of the seeds each
    players that are asked          all that share an engine or a client; all of their runs on all games at once

Needs no Ray: `evaluation` runs it as Ray tasks.
"""

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from envs.rewards import reward_named
from g1_ray.config import GameConfig
from g1_ray.evaluation.endpoint import EndpointError
from g1_ray.evaluation.lab import Lab, lab_states
from g1_ray.evaluation.play import Question, Reply, Run, Stopped, play, play_asked
from g1_ray.evaluation.players import Asked, Chooser, Opened, Player

log = logging.getLogger(__name__)
Key = tuple[str, str, int, int]
"""Of a question: game, player, seed, move, e.g. ("2048", "tiny-base", 0, 17)."""
TICK_S = 5.0
"""Longest time that troubles are kept back while no reply comes."""


@dataclass(frozen=True)
class Entry:
    """A player on a game: a line of the table."""

    game: GameConfig
    player: Player

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all other entries, e.g. ("2048", "tiny-base")."""
        return self.game.name, self.player.name


@dataclass(frozen=True)
class Job:
    """Entries, all of players that share what they answer from if they are asked, and the seeds they play."""

    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    """E.g. (0, 1, 2)."""
    moves: int
    """Of a run, e.g. 100; 0: one episode."""
    known: Mapping[Key, Reply] = field(default_factory=dict)
    """Replies that are there already: nothing is asked twice."""
    gpus: float = 0.0
    """Of the cluster."""
    lab: int = 0
    """States that models are examined on, e.g. 64."""


@dataclass(frozen=True)
class Answered:
    """News: a reply came."""

    key: Key
    reply: Reply


@dataclass(frozen=True)
class RunOver:
    """News: a run is over."""

    key: tuple[str, str]
    run: Run


@dataclass(frozen=True)
class Failed:
    """News: a player gives no more replies; what it has given is kept."""

    player: str
    why: str
    """E.g. "https://host/v1: no reply in 8 tries; HTTP status 500: out of memory"."""
    cause: str = ""
    """In few words: "500"."""
    game: str = ""
    """On which it gives none; '': on none at all."""


@dataclass(frozen=True)
class Troubled:
    """News: what went wrong on the way to a player's replies since the last of these, and how often."""

    player: str
    counts: Mapping[str, int]
    """E.g. {"429": 3, "timed out": 1}."""


@dataclass(frozen=True)
class LabOver:
    """News: what the lab found of a model on a game."""

    lab: Lab


News = Answered | RunOver | Failed | Troubled | LabOver


def work(job: Job, opened: Opened | None = None) -> Iterator[list[News]]:
    """Does the job; yields the news that there are, as soon as there are any. `opened`: who answers, where it is up."""
    if isinstance(job.entries[0].player, Asked):
        yield from AskedJob(job, opened).work()
        return
    for entry in job.entries:
        assert isinstance(entry.player, Chooser), entry.player
        task, name, reward = entry.game.task(), entry.player.name, reward_named(entry.game.reward)
        for seed in job.seeds:
            yield [RunOver(entry.key, play(task, name, entry.player.choose(task, seed), seed, job.moves, reward))]


class AskedJob:
    """A job of players that are asked: its event loop runs while somebody waits for news."""

    def __init__(self, job: Job, opened: Opened | None = None) -> None:
        self.job, self._given = job, opened
        self.players: list[Asked] = [entry.player for entry in job.entries if isinstance(entry.player, Asked)]
        self._news: list[News] = []
        self._told = asyncio.Event()
        self._failed: set[tuple[str, str]] = set()
        """Entries that are given up."""
        self._opened: Opened | None = None
        self._troubles: Counter[str] = Counter()
        """That are told."""

    def work(self) -> Iterator[list[News]]:
        """Does the job; yields the news that there are, as soon as there are any."""
        with asyncio.Runner() as runner:
            playing = runner.get_loop().create_task(self._play())
            while not playing.done():
                runner.run(self._until_news(playing))
                self._tell_troubles()
                if self._news:
                    news, self._news = self._news, []
                    yield news
            playing.result()

    async def _until_news(self, playing: asyncio.Task[None]) -> None:
        told = asyncio.create_task(self._told.wait())
        await asyncio.wait([playing, told], timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        self._told.clear()

    def _tell_troubles(self) -> None:
        if self._opened and (new := Counter(self._opened.troubles()) - self._troubles):
            self._troubles += new
            self._tell(Troubled(self.players[0].name, dict(new)))

    def _tell(self, news: News) -> None:
        self._news.append(news)
        self._told.set()

    async def _play(self) -> None:
        """All runs at once, and then the lab."""
        job, player = self.job, self.players[0]
        tasks = [entry.game.task() for entry in job.entries]
        given = contextlib.nullcontext(self._given) if self._given else None
        async with given or player.opened(self.players, tasks, job.gpus) as opened:
            self._opened = opened
            log.info("%s: %d runs", ", ".join(each.name for each in self.players), len(job.entries) * len(job.seeds))
            await asyncio.gather(*(self._run(entry, seed) for entry in job.entries for seed in job.seeds))
            if job.lab and opened.examine:
                for entry, its in zip(job.entries, self.players, strict=True):
                    states = lab_states(entry.game.task(), job.lab)
                    self._tell(LabOver(await opened.examine(its, entry.game.name, states)))

    async def _run(self, entry: Entry, seed: int) -> None:
        """One run, as far as the player goes."""
        ask = functools.partial(self._ask, entry.player)
        task, reward = entry.game.task(), reward_named(entry.game.reward)
        try:
            run = await play_asked(task, *entry.key, ask, seed, self.job.moves, reward)
        except Stopped:
            return
        self._tell(RunOver(entry.key, run))

    async def _ask(self, player: Player, question: Question) -> Reply:
        """The reply to a question, known or new. Raises `Stopped` where the player gives none any more."""
        assert isinstance(player, Asked)
        if question.key in self.job.known:
            return self.job.known[question.key]
        entry = question.game, question.player
        if entry in self._failed:
            raise Stopped
        assert self._opened is not None
        try:
            reply = await self._opened.ask(player, question)
        except EndpointError as error:
            if entry not in self._failed:
                self._give_up(entry, error)
            raise Stopped from None
        self._tell(Answered(question.key, reply))
        return reply

    def _give_up(self, entry: tuple[str, str], error: EndpointError) -> None:
        """A player on a game, or on all of them."""
        game, player = entry
        gone = [entry] if error.game_only else [other.key for other in self.job.entries if other.player.name == player]
        self._failed |= set(gone)
        self._tell(Failed(player, str(error), error.cause, game if error.game_only else ""))
