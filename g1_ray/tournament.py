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
    """The runs of every entry. Tasks of Ray: a model's have an engine of their own, as the config describes it.

    Models go first, as they take longest. Raises what a task raises.
    """
    engine = config.engine
    task = ray.remote(play_entry)
    order = sorted(range(len(entries)), key=lambda i: not entries[i].model_path)
    refs = {}
    for i in order:
        needs = {"num_cpus": engine.cpus, "num_gpus": engine.gpus} if entries[i].model_path else {"num_cpus": 1}
        refs[i] = task.options(**needs, max_retries=1, runtime_env={"env_vars": QUIET}).remote(config, entries[i])
    return [ray.get(refs[i], timeout=config.eval.timeout_s) for i in range(len(entries))]


def play_entry(config: RunConfig, entry: Entry) -> list[PlayedRun]:
    """The runs of one entry."""
    seeds = range(config.eval.seed, config.eval.seed + config.eval.runs)
    if not entry.model_path:
        return play_classic(entry.game, entry.player, _player(entry), seeds, config.eval.moves)
    return asyncio.run(_play_model(config, entry, seeds))


def _player(entry: Entry) -> Choose:
    return Oracle(entry.game.task()) if entry.player == "teacher" else PLAYERS[entry.player]


async def _play_model(config: RunConfig, entry: Entry, seeds: Sequence[int]) -> list[PlayedRun]:
    """The runs of a model, by an engine that is there for them alone."""
    from g1_ray.chat import Chat

    kind = config.eval.engine or config.engine.kind
    engine = make_engine(
        config.model_copy(update={"engine": config.engine.model_copy(update={"kind": kind})}), entry.model_path
    )
    await engine.start()
    loop = asyncio.get_running_loop()

    def ask(requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        future = asyncio.run_coroutine_threadsafe(engine.generate(requests, sampling), loop)
        return future.result(config.eval.timeout_s)

    sampling = Sampling(entry.temperature, 1.0, config.rollout.max_tokens)
    chat = Chat(entry.model_path)
    try:  # the runs play in a thread, so that the engine's loop stays free
        return await asyncio.to_thread(
            play_model, entry.game, entry.player, chat, ask, seeds, config.eval.moves, sampling
        )
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
