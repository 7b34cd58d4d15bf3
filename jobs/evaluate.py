"""Any players on any games, all on the same seeds: tables with intervals, every move, clips. What is there is kept."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from envs import Task
from envs.options import nearest
from jobs.options import Parser, check_numbers

if TYPE_CHECKING:
    from g1_ray.config import GameConfig
    from g1_ray.evaluation.evaluation import Evaluation
    from g1_ray.evaluation.job import Entry

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
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray evaluate`."""
    args = options().parse_args(argv)
    check_numbers(args, runs=1, moves=0, seed=0, lab=0)
    if args.clips and not args.out:
        raise ValueError("--clips needs --out")

    from envs import game_names
    from g1_ray.cluster.join import join
    from g1_ray.evaluation.evaluation import Evaluation, play_all
    from g1_ray.evaluation.folder import Protocol
    from g1_ray.evaluation.grid import variants
    from g1_ray.evaluation.job import Entry
    from g1_ray.evaluation.players import parse_game, parse_player
    from g1_ray.logs import start_logging

    games = [parse_game(text) for text in args.games or game_names()]
    players = [parse_player(text) for text in args.players]
    for player in players:
        player.check()
    names = [player.name for player in players]
    if args.against and args.against not in names:
        raise ValueError(f"--against {args.against}: none of --players{nearest(args.against, names)}")
    if args.lab and not any(player.in_lab for player in players):
        raise ValueError("--lab is for models that are loaded here; there is none among --players")
    if args.grid:
        games = [variant for game in games for variant in variants(game)]
    entries = [Entry(game, player) for game in games for player in players]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as nowhere:  # processes may still write their logs
        out = Path(args.out or nowhere)
        evaluation = Evaluation.open(out, entries, Protocol(args.runs, args.moves, args.seed), args.lab)
        start_logging("evaluate", out)
        try:
            if left := args.lab or not all(map(evaluation.is_over, entries)):
                join(args.address)
            with Show(evaluation) as show:
                if left:
                    play_all(evaluation, show)
        finally:
            evaluation.folder.close()
        finish(evaluation, args, out)
    return 1 if evaluation.failed else 0


class Show:
    """Says how an evaluation is going: the moves that are made, of how many, the time left, and who is done."""

    def __init__(self, evaluation: "Evaluation") -> None:
        from g1_ray.runs.progress import Count

        self.evaluation = evaluation
        if kept := sum(map(evaluation.is_over, evaluation.entries)):
            print(f"{kept} of {len(evaluation.entries)} lines of the table are there", flush=True)
        done, total = evaluation.progress()
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
        self.count(evaluation.progress()[0], about)


def is_the_papers(game: "GameConfig") -> bool:
    """Whether what the paper publishes of a game of that name is of boards like these."""
    return game.name == game.game and game.task().reasoning == Task.make(game.game).reasoning


def finish(evaluation: "Evaluation", args: argparse.Namespace, out: Path) -> None:
    """Prints the table and what went wrong, and writes what is to be kept."""
    from g1_ray.evaluation.clips import save_clip
    from g1_ray.evaluation.grid import save_grid
    from g1_ray.evaluation.lab import lab_table, write_labs
    from g1_ray.evaluation.moves import file_name
    from g1_ray.evaluation.results import results_table, write_results
    from g1_ray.tables import aligned

    results = evaluation.results(args.against)
    games = {entry.game.name: entry.game for entry in evaluation.entries if args.moves == 100}
    rows = results_table(results, args.against, published=[name for name, game in games.items() if is_the_papers(game)])
    if results:
        print(aligned(rows))
        write_results(out, results, rows)
        if args.grid:
            save_grid(out / "grid.png", results)
    if evaluation.labs:
        print("\n" + aligned(lab_table(evaluation.labs)))
        write_labs(out, evaluation.labs)
    for name, counts in evaluation.troubles.items():
        print(f"{name}: " + ", ".join(f"{count} x {what}" for what, count in counts.most_common()))
    for name, why in evaluation.failed.items():
        print(f"{name}: {why}\nits answers are kept; the same command goes on from there", flush=True)
    for entry in evaluation.entries if args.clips else ():
        if evaluation.is_over(entry):
            path = out / file_name(*entry.key, f".{args.clips}")
            save_clip(evaluation.runs[entry.key][0], path, entry.player.name, 200)
    if args.out and results:
        print(f"wrote {out}: table.md, results.parquet, moves/; see them with g1-ray report {out}")


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("evaluate", main))
