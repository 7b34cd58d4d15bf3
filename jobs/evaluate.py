"""Any players on any games, all on the same seeds: tables with intervals, every move, clips. What is there is kept."""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from envs import Task
from envs.options import nearest
from g1_ray.tables import visible
from jobs.options import Parser, check_numbers

if TYPE_CHECKING:
    from g1_ray.config import GameConfig
    from g1_ray.evaluation.evaluation import Evaluation
    from g1_ray.evaluation.job import Entry
    from g1_ray.evaluation.players import Player

SECONDS_BETWEEN_TROUBLES = 15.0
"""Of endpoints, told where there is no terminal."""
EPILOG = """players: uniform, random-legal, greedy, oracle, teacher; human:FILE (g1-ray play --save FILE.parquet);
  a model's folder, name or run; an endpoint's URL. Each may have a name and options:
  cold=tiny-coldstart?temperature=0  runs/demo?engine.kind=vllm  gpt=https://host/v1?model=NAME&key_env=API_KEY
games: 2048, shisen, ..., with options of either axis: small=2048?size=3&tiles=numbers  swap?reasoning=2&noise=0.3"""


def options() -> Parser:
    """What the command takes."""
    parser = Parser("evaluate", __doc__, EPILOG)
    parser.add_argument("--games", nargs="+", default=[], metavar="GAME", help="default: all")
    parser.add_argument("--players", nargs="+", default=["uniform", "random-legal", "greedy", "oracle"],
                        metavar="PLAYER", help="default: the four classic players")  # fmt: skip
    parser.add_argument("--runs", type=int, default=30, help="runs of each player (default 30; paper: 10)")
    parser.add_argument("--moves", type=int, default=100, help="moves a run, on fresh boards as boards end, as in the "
                        "paper; 0: whole episodes (default 100)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run; the next have the next ones")
    parser.add_argument("--against", default="", metavar="PLAYER", help="whom scores are compared with, seed by seed")
    parser.add_argument(
        "--out", default="", metavar="FOLDER", help="keep everything there, and go on with what is there"
    )
    parser.add_argument("--clips", choices=("webp", "gif", "mp4"), help="with --out: every first run")
    parser.add_argument("--grid", action="store_true", help="each game also on held-out tiles, other sizes, perturbed, "
                        "and a heat map of it all")  # fmt: skip
    parser.add_argument("--lab", type=int, default=0, metavar="STATES", help="with models: ask about so many states "
                        "under interventions, to see whether seeing or thinking holds them back")  # fmt: skip
    parser.add_argument("--address", default="", help="Ray cluster to join (default: RAY_ADDRESS, else a local one)")
    parser.add_argument(
        "--cluster", default="", metavar="FILE", help="a cluster file, where the cluster may grow to it"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray evaluate`."""
    args = options().parse_args(argv)
    check_numbers(args, runs=1, moves=0, seed=0, lab=0)
    if args.clips and not args.out:
        raise ValueError("--clips needs --out")

    from envs import game_names
    from g1_ray.evaluation.evaluation import Evaluation, play_all
    from g1_ray.evaluation.folder import Protocol
    from g1_ray.evaluation.grid import variants
    from g1_ray.evaluation.job import Entry
    from g1_ray.evaluation.named import parse_game, parse_player
    from g1_ray.logs import start_logging

    games = [parse_game(text) for text in args.games or game_names()]
    players = [parse_player(text) for text in args.players]
    check_names(args, players)
    if args.grid:
        games = [variant for game in games for variant in variants(game)]
    entries = [Entry(game, player) for game in games for player in players]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as nowhere:  # processes may still write their logs
        out = Path(args.out or nowhere)
        check_players(entries, args, out)
        evaluation = Evaluation.open(out, entries, Protocol(args.runs, args.moves, args.seed), args.lab)
        start_logging("evaluate", out)
        try:
            if left := args.lab or not all(map(evaluation.is_over, entries)):
                connect(evaluation, args)
            with Show(evaluation) as show:
                if left:
                    play_all(evaluation, show)
            finish(evaluation, args, out)
        finally:
            evaluation.folder.close()
    return 1 if evaluation.failed else 0


def check_names(args: argparse.Namespace, players: "Sequence[Player]") -> None:
    """Raises `ValueError` where what is asked for has no player."""
    names = [player.name for player in players]
    if args.against and args.against not in names:
        raise ValueError(f"--against {args.against}: none of --players{nearest(args.against, names)}")
    if args.lab and not any(player.in_lab for player in players):
        raise ValueError("--lab is for models that are loaded here; there is none among --players")


def check_players(entries: "list[Entry]", args: argparse.Namespace, out: Path) -> None:
    """Raises `ValueError` where a player that has yet to play will not be able to, before anything starts."""
    from g1_ray.cluster.join import find_cluster
    from g1_ray.cluster.placement import this_machine
    from g1_ray.evaluation.evaluation import check_room
    from g1_ray.evaluation.folder import moves_of

    left = {entry.player.name: entry.player for entry in entries if args.lab or not moves_of(out, entry).is_file()}
    if elsewhere(args):
        find_cluster(args.address)
    else:
        check_room(left.values(), this_machine())
    for player in left.values():
        player.check()
        if not elsewhere(args):
            player.check_here()


def elsewhere(args: argparse.Namespace) -> bool:
    """Whether players play on a cluster that is there already."""
    return bool(args.address or os.environ.get("RAY_ADDRESS"))


def connect(evaluation: "Evaluation", args: argparse.Namespace) -> None:
    """Joins the cluster. Raises `ValueError` where it has no room for a player."""
    from g1_ray.cluster.join import find_cluster, join, nodes_to_come
    from g1_ray.evaluation.evaluation import check_room

    join(find_cluster(args.address))
    if nodes := nodes_to_come(args.cluster):
        check_room([entry.player for entry in evaluation.entries if not evaluation.is_over(entry)], nodes)


class Show:
    """Says how an evaluation is going: the moves that are made, of how many, the time left, and who is done."""

    def __init__(self, evaluation: "Evaluation") -> None:
        from g1_ray.runs.progress import Count

        self.evaluation = evaluation
        if kept := sum(map(evaluation.is_over, evaluation.entries)):
            print(f"{kept} of {len(evaluation.entries)} lines of the table are there", flush=True)
        done, total = evaluation.progress()
        self.wrong, self.told = 0, -SECONDS_BETWEEN_TROUBLES
        self.count = Count("moves", total, done)

    def __enter__(self) -> "Show":
        self.count.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.count.__exit__(*error)

    def __call__(self, entry: "Entry | None") -> None:
        """Hears of every piece of news, and of the entry that is over with it, if one is."""
        evaluation = self.evaluation
        over = sum(map(evaluation.is_over, evaluation.entries)) if entry else 0
        about = f"{' '.join(entry.key)} is done, {over} of {len(evaluation.entries)}" if entry else ""
        wrong = sum(count for counts in evaluation.troubles.values() for count in counts.values())
        if wrong > self.wrong and time.monotonic() - self.told > SECONDS_BETWEEN_TROUBLES:
            self.wrong, self.told = wrong, time.monotonic()
            about = "; ".join([*filter(None, [about]), *(troubled(*told) for told in evaluation.troubles.items())])
        self.count(evaluation.progress()[0], about)


def troubled(name: str, counts: Counter[str]) -> str:
    """What went wrong on the way to a player's replies."""
    return f"{name}: " + ", ".join(f"{count} x {what}" for what, count in counts.most_common())


def is_the_papers(game: "GameConfig") -> bool:
    """Whether what the paper publishes of a game of that name is of boards like these."""
    return game.name == game.game and game.task().reasoning == Task.make(game.game).reasoning


def why_stopped(evaluation: "Evaluation") -> list[str]:
    """For each reason, who gave no more replies on which games, and what helps."""
    games: dict[tuple[str, str], list[str]] = {}
    for (game, name), failed in evaluation.failed.items():
        games.setdefault((name, failed.why), []).append(game)
    return [f"{name} stopped on {', '.join(on)}: {why}" for (name, why), on in games.items()]


def finish(evaluation: "Evaluation", args: argparse.Namespace, out: Path) -> None:
    """Prints the table and what went wrong, and writes what is to be kept."""
    from g1_ray.evaluation.clips import save_clip
    from g1_ray.evaluation.grid import save_grid
    from g1_ray.evaluation.lab import lab_table, write_labs
    from g1_ray.evaluation.moves import file_name
    from g1_ray.evaluation.results import results_table, write_results
    from g1_ray.runs.progress import Count
    from g1_ray.tables import aligned

    results = evaluation.results(args.against)
    games = {entry.game.name: entry.game for entry in evaluation.entries if args.moves == 100}
    published = [name for name, game in games.items() if is_the_papers(game)]
    rows = results_table(evaluation.lines(args.against), args.against, published)
    stopped = why_stopped(evaluation)
    if results:
        print(aligned(rows))
        write_results(out, results, rows, stopped)
        if args.grid:
            save_grid(out / "grid.png", results)
    if evaluation.labs:
        print("\n" + aligned(lab_table(evaluation.labs)))
        write_labs(out, evaluation.labs)
    for name, counts in evaluation.troubles.items():
        print(visible(troubled(name, counts)))
    print(visible("".join(f"{line}\n" for line in stopped)), end="", flush=True)
    if stopped and args.out and evaluation.num_answers:
        print("what was answered is kept; the same command goes on from there")
    over = [entry for entry in evaluation.entries if args.clips and evaluation.is_over(entry)]
    with Count("clips", len(over)) as count:
        for entry in over:
            path = out / file_name(*entry.key, f".{args.clips}")
            save_clip(evaluation.runs[entry.key][0], path, entry.player.name, 200)
            count(count.done + 1)
    if args.out and results:
        print(f"wrote {out}: table.md, results.parquet, moves/; see them with g1-ray report {out}")


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("evaluate", main))
