"""Every player on every game, as Ray tasks.

    jobs (job.py) -> news -> the evaluation's folder (folder.py) -> results

What is in the folder is not played again, and no answer in it is asked for again.
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from g1_ray.cluster.join import PROCESS_ENV
from g1_ray.cluster.placement import Node, check_task
from g1_ray.config import RunConfig
from g1_ray.engines.make import options_read
from g1_ray.evaluation.folder import EvaluationFolder, Protocol
from g1_ray.evaluation.job import Answered, Entry, Failed, Job, LabOver, News, RunOver, Troubled, work
from g1_ray.evaluation.lab import Lab
from g1_ray.evaluation.play import Run
from g1_ray.evaluation.players import Asked, Classic, Model, Player
from g1_ray.evaluation.results import Result, Stopped, result_of
from g1_ray.logs import start_logging

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 5.0
CHUNK = 10
"""Seeds that a task plays, of players that are not asked."""
TEMPERATURES = {"T=1": 1.0, "greedy": 0.0}
"""How models answer in the table of a training run: as in training, and greedily."""


@dataclass
class Evaluation:
    """Who plays what and how long, and what has come of it so far."""

    entries: Sequence[Entry]
    protocol: Protocol
    folder: EvaluationFolder
    runs: dict[tuple[str, str], list[Run]] = dataclasses.field(default_factory=dict)
    failed: dict[tuple[str, str], Failed] = dataclasses.field(default_factory=dict)
    """Entries that there are no more replies for -> why."""
    troubles: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    """What went wrong on the way to a player's replies."""
    lab: int = 0
    """States that models are examined on."""
    labs: list[Lab] = dataclasses.field(default_factory=list)
    num_answers: int = 0
    """That came in this time."""
    answers: Counter[tuple[str, str, int]] = dataclasses.field(default_factory=Counter)
    """Game, player, seed -> moves of that run that are answered."""

    @classmethod
    def open(cls, path: Path, entries: Sequence[Entry], protocol: Protocol, lab: int = 0) -> Self:
        """The evaluation that a folder is to hold, with what it holds of it. Raises `ValueError` for what can't be."""
        _check(entries, protocol)
        folder = EvaluationFolder(path, entries, protocol)
        runs = {entry.key: folder.runs(entry) for entry in entries}
        return cls(entries, protocol, folder, {key: its for key, its in runs.items() if its}, lab=lab)

    def is_over(self, entry: Entry) -> bool:
        """Whether all runs of an entry are there."""
        return len(self.runs.get(entry.key, ())) == self.protocol.runs

    def progress(self) -> tuple[int, int]:
        """Moves that are made, and all there are to make; 0 where runs are whole episodes. Of the players that are
        asked, if there are any: the others take no time beside them."""
        asked = [entry for entry in self.entries if isinstance(entry.player, Asked)]
        entries = asked or self.entries
        runs = {entry.key: self.runs.get(entry.key, ()) for entry in entries}
        over = sum(len(run.moves) for its in runs.values() for run in its)
        under_way = sum(count for (*key, seed), count in self.answers.items()
                        if seed not in [run.seed for run in runs.get((key[0], key[1]), ())])  # fmt: skip
        return over + under_way, len(entries) * self.protocol.runs * self.protocol.moves

    def jobs(self, gpus: float = 0.0) -> list[Job]:
        """What is left to do: models and endpoints first, as they take longest."""
        left = [entry for entry in self.entries if not self.is_over(entry) or (self.lab and entry.player.in_lab)]
        for entry in left:
            self.runs.setdefault(entry.key, [])
        known, seeds = self.folder.replies(), self.protocol.seeds
        self.answers = Counter(key[:3] for key in known)
        together: dict[str, list[Entry]] = {}
        for entry in left:
            if isinstance(entry.player, Asked):
                together.setdefault(repr((entry.player.kind, entry.player.shared())), []).append(entry)
        jobs = []
        for entries in together.values():
            keys = {entry.key for entry in entries}
            theirs = {key: reply for key, reply in known.items() if key[:2] in keys}
            each = entries[0].player.needs(gpus).get("num_gpus", 0.0)
            shares = min(len(seeds), int(gpus / len(together) / each)) if each else 1  # an engine for each
            for i in range(max(1, shares)):
                its = seeds[i :: max(1, shares)]
                jobs.append(Job(tuple(entries), its, self.protocol.moves, theirs, gpus, 0 if i else self.lab))
        for entry in left:
            if not isinstance(entry.player, Asked):
                chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
                jobs += [Job((entry,), chunk, self.protocol.moves) for chunk in chunks]
        return jobs

    def hear(self, news: News) -> Entry | None:
        """Takes in news; returns the entry that is over with it, if one is."""
        match news:
            case Answered():
                self.folder.keep(news)
                self.num_answers += 1
                self.answers[news.key[:3]] += 1
            case Failed():
                for entry in self.entries:
                    if (
                        entry.player.name == news.player
                        and news.game in ("", entry.game.name)
                        and not self.is_over(entry)
                    ):
                        self.failed[entry.key] = news
                self.folder.note(news)
                log.info("%s: %s", news.player, news.why)
            case Troubled():
                self.troubles.setdefault(news.player, Counter()).update(news.counts)
                self.folder.note(news)
            case LabOver():
                self.labs.append(news.lab)
            case RunOver() if len(self.runs[news.key]) < self.protocol.runs:
                self.runs[news.key].append(news.run)
                entry = next(entry for entry in self.entries if entry.key == news.key)
                if self.is_over(entry):
                    self.folder.write_runs(entry, self.runs[news.key])
                    return entry
        return None

    def lines(self, against: str = "") -> list[Result | Stopped]:
        """The lines of the table: `results`, and the entries that stopped, in the order of the entries."""
        lines = {(result.game, result.player): result for result in self.results(against)}
        stopped = {key: Stopped(*key, failed.cause) for key, failed in self.failed.items()}
        return [(lines | stopped)[entry.key] for entry in self.entries if entry.key in lines | stopped]

    def results(self, against: str = "") -> list[Result]:
        """The lines of the entries that are over. `against`: the player whom scores are compared with."""
        results = []
        for entry in self.entries:
            if self.is_over(entry):
                (game, name), prices = entry.key, entry.player.prices
                runs = sorted(self.runs[entry.key], key=lambda run: run.seed)
                reference = () if name == against else self.runs.get((game, against), ())
                results.append(result_of(game, name, runs, reference, prices))
        return results


def _check(entries: Sequence[Entry], protocol: Protocol) -> None:
    keys = [entry.key for entry in entries]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"two players are called {key[1]!r} on {key[0]}; give one another name: NAME=PLAYER")
    for entry in entries:
        game = entry.game.task().new_game()
        endless = game.endless or isinstance(entry.player, Asked)  # who may answer with no legal move for ever
        if not protocol.moves and endless and not game.options.horizon:
            raise ValueError(f"{entry.game.name} with horizon=0 never ends: give moves or a horizon")


def entries_of(config: RunConfig, models: Mapping[str, str]) -> list[Entry]:
    """The table of a training run: classic players, `models` (paths by the names they are to have), the oracle."""
    engine = config.engine.model_dump() | ({"kind": config.eval.engine} if config.eval.engine else {})
    engine = {name: engine[name] for name in options_read(engine["kind"], engine["gpus"])}
    about = {"engine": engine, "dtype": config.model.dtype, "max_tokens": config.rollout.max_tokens}
    asked = [
        Model.model_validate({"name": f"{name}, {how}", "what": path, "temperature": value, **about})
        for name, path in models.items()
        for how, value in TEMPERATURES.items()
    ]
    classic = [Classic(what=name) for name in ("uniform", "random-legal", "greedy", "teacher", "oracle")]
    return [Entry(game, player) for game in config.games for player in (*classic[:-1], *asked, classic[-1])]


def check_room(players: Iterable[Player], nodes: Sequence[Node]) -> None:
    """Raises `ValueError` where a player's process fits on none of the nodes."""
    gpus = sum(node.get("GPU", 0) for node in nodes)
    for player in players:
        needs = player.needs(gpus)
        asks = {"GPU": needs.get("num_gpus", 0), "CPU": needs.get("num_cpus", 0)}
        check_task(f"player {player.name!r}", asks, nodes)


def _work(job: Job, folder: Path) -> Iterator[list[News]]:
    """A job in a process of its own."""
    start_logging(job.entries[0].player.kind, folder)
    yield from work(job)


def play_all(evaluation: Evaluation, tell: Callable[[Entry | None], None], timeout_s: float = 3600.0) -> None:
    """Plays what is left, as Ray tasks on the cluster that this process is connected to.

    `tell` is called with all news, and every few seconds without any; it hears which entry is over with them.

    Raises what a task raises, and `RuntimeError` where there are no news for `timeout_s`.
    """
    import ray

    gpus = float(ray.cluster_resources().get("GPU", 0))
    task = ray.remote(_work)
    options = {"num_returns": "streaming", "max_retries": 0, "runtime_env": {"env_vars": PROCESS_ENV}}
    streams = [
        task.options(**options, **job.entries[0].player.needs(gpus)).remote(job, evaluation.folder.path.absolute())
        for job in evaluation.jobs(gpus)
    ]
    heard = time.monotonic()
    while streams:
        ready, _ = ray.wait(streams, num_returns=1, timeout=min(timeout_s, SECONDS_BETWEEN_LOOKS))
        if not ready and time.monotonic() - heard >= timeout_s:
            raise RuntimeError(f"no news of {len(streams)} tasks for {timeout_s:g} s")
        heard = time.monotonic() if ready else heard
        tell(None)  # who waits is told that nothing has come
        for stream in ready:
            try:
                news = ray.get(next(stream), timeout=timeout_s)
            except StopIteration:
                streams.remove(stream)
                continue
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ValueError):  # what the user gave
                    raise error.cause from None
                raise
            for item in news:
                tell(evaluation.hear(item))
