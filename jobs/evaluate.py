"""Play games with players, all on the same seeds, and write what came out: a table with intervals, raw runs, clips."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from envs import PLAYERS, Task, game_names
from g1_ray.clips import save_clip
from g1_ray.episodes import Run, play
from g1_ray.stats import bootstrap_mean
from jobs.options import add_task_options, task_of

HEADER = ("game", "player", "score", "legal moves", "won", "largest tile")


def main(argv: list[str] | None = None) -> int:
    """`g1-ray evaluate`."""
    parser = argparse.ArgumentParser(prog="g1-ray evaluate", description=__doc__)
    parser.add_argument("--games", nargs="+", default=game_names(), metavar="NAME", help="default: all")
    parser.add_argument("--players", nargs="+", default=list(PLAYERS), choices=list(PLAYERS), help="default: all")
    parser.add_argument("--runs", type=int, default=30, help="runs of each player (default 30)")
    parser.add_argument("--moves", type=int, default=100, help="moves a run, on fresh boards as boards end, as in the "
                        "paper; 0: whole episodes (default 100)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run; the next have the next ones")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--out", default="", metavar="FOLDER", help="write table.md, runs.jsonl and clips there")
    parser.add_argument("--clips", action="store_true", help="with --out: the first run of each as an animation")
    add_task_options(parser)
    args = parser.parse_args(argv)
    for name in ("runs", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: must be 1 or more")
    for name in ("moves", "seed"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} {getattr(args, name)}: must be 0 or more")
    if args.clips and not args.out:
        raise ValueError("--clips needs --out")
    tasks = [task_of(name, args.preset, args.reasoning, args.perception) for name in args.games]
    for task in tasks:
        if not args.moves and not task.reasoning.horizon and task.new_game().endless:
            raise ValueError(f"{task.name} with horizon=0 never ends: give --moves or a horizon")
    if args.moves:  # the run has its own length; boards end only by their rules
        tasks = [dataclasses.replace(t, reasoning=dataclasses.replace(t.reasoning, horizon=0)) for t in tasks]
    seeds = range(args.seed, args.seed + args.runs)
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        (Path(args.out) / "runs.jsonl").write_text("")
    with ProcessPoolExecutor(args.workers) as pool:
        table: list[Sequence[str]] = [HEADER]
        print(line(HEADER))
        for task in tasks:
            for player in args.players:
                runs = list(
                    pool.map(play, [task] * len(seeds), [player] * len(seeds), seeds, [args.moves] * len(seeds))
                )
                table.append(row(task, player, runs))
                print(line(table[-1]), flush=True)
                if args.out:
                    keep(Path(args.out), task, player, runs, args.clips)
    if args.out:
        (Path(args.out) / "table.md").write_text(markdown(table))
        print(f"wrote {Path(args.out) / 'table.md'}")
    return 0


def line(cells: Sequence[str]) -> str:
    """A line of the table for the terminal."""
    return "  ".join(f"{cell:<14}" if i < 2 else f"{cell:<26}" for i, cell in enumerate(cells)).rstrip()


def row(task: Task, player: str, runs: Sequence[Run]) -> tuple[str, ...]:
    """A line of the table: means over runs with 95 % bootstrap intervals."""
    boards = sum(len(run.seeds) for run in runs)
    return (
        task.name,
        player,
        str(bootstrap_mean([run.score for run in runs])),
        str(bootstrap_mean([100 * run.legal / run.moves for run in runs])) + " %",
        f"{sum(run.successes for run in runs)} of {boards} boards",
        task.renderer.names[max(run.kinds for run in runs)] if task.name == "2048" else "",
    )


def keep(folder: Path, task: Task, player: str, runs: Sequence[Run], clips: bool) -> None:
    """Appends the raw runs, enough to play each again, and animates the first."""
    with (folder / "runs.jsonl").open("a") as file:
        for run in runs:
            file.write(json.dumps({"task": task.to_json(), "player": player, **dataclasses.asdict(run)}) + "\n")
    if clips:
        save_clip(task, runs[0], folder / f"{task.name}-{player}.webp", player, frame_ms=200)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The table as markdown."""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
