"""Every player on every game, as Ray tasks, and the folder that keeps what came of it.

    jobs (match.py) -> news -> replies.jsonl, a line for each answer as it comes
                            -> moves/GAME--PLAYER.parquet, once all runs of a player on a game are over
                            -> table.md, results.json, results.parquet

What is in the folder is not played again, and no answer in it is asked for again.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from g1_ray.config import RunConfig
from g1_ray.evaluation import Reply, Run
from g1_ray.lab import Lab
from g1_ray.match import Answered, Entry, Examined, Failed, Job, Key, News, Played, Troubled, work
from g1_ray.players import PlayerConfig
from g1_ray.results import Result, result_of

CHUNK = 10
"""Seeds that a task plays, of players that are not asked."""
TEMPERATURES = {"T=1": 1.0, "greedy": 0.0}
"""How models answer in the table of a training run: as in training, and greedily."""


@dataclass(frozen=True)
class Protocol:
    """How long everyone plays."""

    runs: int
    moves: int
    """Of a run, on fresh boards as boards end (paper: 100); 0: one episode."""
    seed: int = 0
    """Of the first run; the next have the next ones."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs."""
        return tuple(range(self.seed, self.seed + self.runs))


class EvaluationFolder:
    """What is kept of an evaluation. Raises `ValueError` where the folder is that of another one."""

    def __init__(self, path: Path, entries: Sequence[Entry], protocol: Protocol) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        now = _describe(entries, protocol)
        if (path / "config.json").is_file():
            now = _joined(path, json.loads((path / "config.json").read_text()), now)
        _write(path / "config.json", json.dumps(now, indent=2) + "\n")
        self._journal: IO[str] | None = None

    def replies(self) -> dict[Key, Reply]:
        """The answers that are there."""
        return dict(_replies(self.path / "replies.jsonl"))

    def keep(self, news: Answered) -> None:
        """Writes an answer down."""
        if self._journal is None:
            _cut_torn_line(self.path / "replies.jsonl")
            self._journal = (self.path / "replies.jsonl").open("a")
        self._journal.write(json.dumps([*news.key, dataclasses.asdict(news.reply)]) + "\n")
        self._journal.flush()

    def runs(self, entry: Entry) -> list[Run]:
        """The runs of a player on a game; none where not all of them are over."""
        from g1_ray.moves import read_runs

        path = self._moves(entry)
        return read_runs(path) if path.is_file() else []

    def write_runs(self, entry: Entry, runs: Sequence[Run]) -> None:
        """Writes down the runs of a player on a game, by seed."""
        from g1_ray.moves import write_moves

        write_moves(self._moves(entry), *entry.key, sorted(runs, key=lambda run: run.seed))

    def _moves(self, entry: Entry) -> Path:
        from g1_ray.moves import file_name

        return self.path / "moves" / file_name(*entry.key)

    def close(self) -> None:
        """Closes all files."""
        if self._journal:
            self._journal.close()


@dataclass
class Evaluation:
    """Who plays what and how long, and what has come of it so far."""

    entries: Sequence[Entry]
    protocol: Protocol
    folder: EvaluationFolder
    runs: dict[tuple[str, str], list[Run]] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Players that gave no more replies -> why."""
    troubles: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    """What went wrong on the way to a player's replies."""
    lab: int = 0
    """States that models are examined on."""
    labs: list[Lab] = dataclasses.field(default_factory=list)
    num_answers: int = 0
    """That came in this time."""

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

    def jobs(self, gpus: float = 0.0) -> list[Job]:
        """What is left to do: models and endpoints first, as they take longest."""
        asked = [entry for entry in self.entries if entry.player.kind == "model" and self.lab]
        left = [entry for entry in self.entries if not self.is_over(entry) or entry in asked]
        for entry in left:
            self.runs.setdefault(entry.key, [])
        known, seeds = self.folder.replies(), self.protocol.seeds
        together: dict[str, list[Entry]] = {}
        for entry in left:
            if entry.player.is_asked:
                together.setdefault(_asked_with(entry), []).append(entry)
        jobs = []
        for entries in together.values():
            keys = {entry.key for entry in entries}
            theirs = {key: reply for key, reply in known.items() if key[:2] in keys}
            jobs.append(Job(tuple(entries), seeds, self.protocol.moves, theirs, gpus, self.lab))
        for entry in left:
            if not entry.player.is_asked:
                chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
                jobs += [Job((entry,), chunk, self.protocol.moves) for chunk in chunks]
        return jobs

    def hear(self, news: News) -> Entry | None:
        """Takes in news; returns the entry that is over with it, if one is."""
        match news:
            case Answered():
                self.folder.keep(news)
                self.num_answers += 1
            case Failed():
                self.failed[news.player] = news.why
            case Troubled():
                self.troubles.setdefault(news.player, Counter()).update(news.counts)
            case Examined():
                self.labs.append(news.lab)
            case Played() if len(self.runs[news.key]) < self.protocol.runs:
                self.runs[news.key].append(news.run)
                entry = next(entry for entry in self.entries if entry.key == news.key)
                if self.is_over(entry):
                    self.folder.write_runs(entry, self.runs[news.key])
                    return entry
        return None

    def results(self, against: str = "") -> list[Result]:
        """The lines of the table, of the entries that are over. `against`: the player whom scores are compared with."""
        results = []
        for entry in self.entries:
            if self.is_over(entry):
                (game, name), prices = entry.key, (entry.player.price_in, entry.player.price_out)
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
        if not protocol.moves and game.endless and not game.options.horizon:
            raise ValueError(f"{entry.game.name} with horizon=0 never ends: give moves or a horizon")


def entries_of(config: RunConfig, models: Mapping[str, str]) -> list[Entry]:
    """The table of a training run: classic players, `models` (paths by the names they are to have), the oracle."""
    engine = config.engine.model_dump() | ({"kind": config.eval.engine} if config.eval.engine else {})
    about = {"kind": "model", "engine": engine, "dtype": config.model.dtype, "max_tokens": config.rollout.max_tokens}
    asked = [
        PlayerConfig.model_validate({"name": f"{name}, {how}", "what": path, "temperature": value, **about})
        for name, path in models.items()
        for how, value in TEMPERATURES.items()
    ]
    classic = [PlayerConfig(kind="classic", what=name) for name in ("uniform", "random-legal", "teacher", "oracle")]
    return [Entry(game, player) for game in config.games for player in (*classic[:-1], *asked, classic[-1])]


def _asked_with(entry: Entry) -> str:
    """Equal for entries that one engine, or one client, answers."""
    player = entry.player
    if player.kind == "endpoint":
        return f"endpoint {player.name}"
    return json.dumps([player.what, player.engine, player.dtype], sort_keys=True)


def play_all(evaluation: Evaluation, tell: Callable[[Entry | None], None], timeout_s: float = 3600.0) -> None:
    """Plays what is left, as Ray tasks on the cluster that this process is connected to.

    `tell` is called with all news, and hears which entry is over with them, if one is.

    Raises what a task raises, and `RuntimeError` where there are no news for `timeout_s`.
    """
    import ray

    from g1_ray.actors import QUIET

    gpus = float(ray.cluster_resources().get("GPU", 0))
    task = ray.remote(work)
    options = {"num_returns": "streaming", "max_retries": 0, "runtime_env": {"env_vars": QUIET}}
    streams = [task.options(**options, **_needs(job)).remote(job) for job in evaluation.jobs(gpus)]
    while streams:
        ready, _ = ray.wait(streams, num_returns=1, timeout=timeout_s)
        if not ready:
            raise RuntimeError(f"no news of {len(streams)} tasks for {timeout_s:g} s")
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
            _hear_all(evaluation, news, tell)


def _hear_all(evaluation: Evaluation, news: Iterable[News], tell: Callable[[Entry | None], None]) -> None:
    for item in news:
        tell(evaluation.hear(item))


def _needs(job: Job) -> dict[str, float]:
    """The resources of a job."""
    player = job.entries[0].player
    if player.kind != "model":
        return {"num_cpus": 0.1 if player.kind == "endpoint" else 1}
    engine = player.resolved_engine(job.gpus, 1)
    return {"num_cpus": engine.cpus, "num_gpus": engine.gpus}


def _describe(entries: Sequence[Entry], protocol: Protocol) -> dict[str, Any]:
    games, players = (
        {getattr(entry, part).name: getattr(entry, part) for entry in entries} for part in ("game", "player")
    )
    return {
        "games": [game.model_dump(mode="json") for game in games.values()],
        "players": [player.model_dump(mode="json") for player in players.values()],
        "protocol": dataclasses.asdict(protocol),
    }


def _joined(path: Path, before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Both: games and players may be added to a folder, but what is there must have been played by the same rules."""
    parts = {}
    for part in ("games", "players"):
        old, new = ({line["name"]: line for line in config[part]} for config in (before, now))
        for name in old.keys() & new.keys():
            if old[name] != new[name]:
                changed = next(key for key in new[name] if old[name].get(key) != new[name][key])
                raise _another(path, f"{part.removesuffix('s')} {name!r}", f"{changed} = {old[name].get(changed)!r}")
        parts[part] = list({**old, **new}.values())
    for key, value in now["protocol"].items():
        if before["protocol"][key] != value:
            raise _another(path, "protocol", f"{key} = {before['protocol'][key]}")
    return {**parts, "protocol": now["protocol"]}


def _another(path: Path, what: str, was: str) -> ValueError:
    return ValueError(f"{path} holds an evaluation with another {what}: {was}\ngive the same, or another --out")


def _replies(path: Path) -> Iterable[tuple[Key, Reply]]:
    for line in path.read_text().split("\n")[:-1] if path.is_file() else ():
        *key, reply = json.loads(line)
        yield (key[0], key[1], key[2], key[3]), Reply(**reply)


def _cut_torn_line(path: Path) -> None:
    """Takes away what a killed process left of its last line."""
    if path.is_file():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            path.write_bytes(data[: data.rfind(b"\n") + 1])


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    beside.rename(path)
