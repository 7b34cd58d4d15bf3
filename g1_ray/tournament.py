"""Every player of a run's table on every game of the run: classic players, the teacher, and models, as Ray tasks.

All play the same seeds. A model answers at temperature 1, as in training, and greedily.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from envs.players import PLAYERS
from g1_ray.actors import QUIET, make_engine
from g1_ray.config import GameConfig, RunConfig
from g1_ray.evaluation import Choose, PlayedRun, Result, play_classic, play_model, result_of, table
from g1_ray.teacher import Oracle
from g1_ray.types import Completion, Request, Sampling

CLASSIC = ("uniform", "random-legal", "teacher", "oracle")
"""Players of every table that are no models."""
TEMPERATURES = {"T=1": 1.0, "greedy": 0.0}


@dataclass(frozen=True)
class Entry:
    """A player on a game."""

    game: GameConfig
    player: str
    model_path: str = ""
    """'' for players that are no models."""
    temperature: float = 1.0


def entries_of(config: RunConfig, models: Mapping[str, str]) -> list[Entry]:
    """Who plays what: the lines of the table in order. `models` has paths by the names they are to have."""
    entries = []
    for game in config.games:
        classic = [Entry(game, name) for name in CLASSIC]
        asked = [
            Entry(game, f"{name}, {how}", path, temperature)
            for name, path in models.items()
            for how, temperature in TEMPERATURES.items()
        ]
        entries += [*classic[:-1], *asked, classic[-1]]
    return entries


def play_all(config: RunConfig, entries: Sequence[Entry]) -> list[list[PlayedRun]]:
    """The runs of every entry, in Ray tasks: one for each model, with an engine for it, and one for all the others.

    Raises what a task raises.
    """
    together: dict[str, list[int]] = {}
    for i, entry in enumerate(entries):
        together.setdefault(entry.model_path, []).append(i)
    task = ray.remote(play_together)
    engine = config.engine
    refs = {}
    for path in sorted(together, reverse=True):  # the models first, as they take longest
        needs = {"num_cpus": engine.cpus, "num_gpus": engine.gpus} if path else {"num_cpus": 1}
        here = [entries[i] for i in together[path]]
        options = {**needs, "max_retries": 1, "runtime_env": {"env_vars": QUIET}}
        refs[path] = task.options(**options).remote(config, here)
    runs: dict[int, list[PlayedRun]] = {}
    for path, ref in refs.items():
        runs |= dict(zip(together[path], ray.get(ref, timeout=config.eval.timeout_s), strict=True))
    return [runs[i] for i in range(len(entries))]


def play_together(config: RunConfig, entries: Sequence[Entry]) -> list[list[PlayedRun]]:
    """The runs of entries that are all of one model, or all of none."""
    if entries[0].model_path:
        return asyncio.run(_play_model(config, entries))
    seeds = _seeds(config)
    return [play_classic(e.game, e.player, _player(e), seeds, config.eval.moves) for e in entries]


def _seeds(config: RunConfig) -> range:
    return range(config.eval.seed, config.eval.seed + config.eval.runs)


def _player(entry: Entry) -> Choose:
    return Oracle(entry.game.task()) if entry.player == "teacher" else PLAYERS[entry.player]


async def _play_model(config: RunConfig, entries: Sequence[Entry]) -> list[list[PlayedRun]]:
    """The runs of a model, all at once, by an engine that is there for them alone."""
    from g1_ray.chat import Chat

    path, kind = entries[0].model_path, config.eval.engine or config.engine.kind
    asked = config.model_copy(update={"engine": config.engine.model_copy(update={"kind": kind})})
    engine = make_engine(asked, path)
    await engine.start()
    loop, chat = asyncio.get_running_loop(), Chat(path)

    def ask(requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        future = asyncio.run_coroutine_threadsafe(engine.generate(requests, sampling), loop)
        return future.result(config.eval.timeout_s)

    def play(entry: Entry) -> list[PlayedRun]:
        sampling = Sampling(entry.temperature, 1.0, config.rollout.max_tokens)
        return play_model(entry.game, entry.player, chat, ask, _seeds(config), config.eval.moves, sampling)

    try:  # each entry plays in a thread of its own, so that their answers are made together
        return await asyncio.gather(*(asyncio.to_thread(play, entry) for entry in entries))
    finally:
        await engine.stop()


def results_of(entries: Sequence[Entry], runs: Sequence[Sequence[PlayedRun]]) -> list[Result]:
    """The lines of the table."""
    return [result_of(entry.game.name, entry.player, played) for entry, played in zip(entries, runs, strict=True)]


def write_results(folder: Path, results: Sequence[Result], runs: Sequence[Sequence[PlayedRun]]) -> None:
    """Writes table.md, results.json, and moves.jsonl: a line for each move, with the state it was made in."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(results)
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    (folder / "table.md").write_text("".join("| " + " | ".join(line) + " |\n" for line in lines))
    (folder / "results.json").write_text(json.dumps([dataclasses.asdict(result) for result in results], indent=1))
    with (folder / "moves.jsonl").open("w") as file:
        for result, played in zip(results, runs, strict=True):
            for run in played:
                for number, move in enumerate(run.moves):
                    head = {"game": result.game, "player": result.player, "seed": run.seed, "move": number}
                    body = {f.name: getattr(move, f.name) for f in dataclasses.fields(move) if f.name != "state"}
                    state = move.state.data.hex()
                    file.write(json.dumps({**head, **body, "snapshot": state}) + "\n")
