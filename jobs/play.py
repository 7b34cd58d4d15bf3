"""Play a game in the terminal, by hand or watching a player; save the run as a clip or as a player's moves."""

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from envs import PLAYERS, Codec, Task
from envs.core import Game
from g1_ray.files import check_writable
from jobs.options import Parser, add_task_options, check_numbers, task_of

if TYPE_CHECKING:
    from g1_ray.evaluation.play import Move, Question, Reply, Run
    from g1_ray.evaluation.players import Asked, Opened
    from g1_ray.evaluation.screen import Screen


def options() -> Parser:
    """What the command takes."""
    parser = Parser("play", __doc__)
    parser.add_argument("name", help="the game: see g1-ray games")
    add_task_options(parser)
    parser.add_argument("--player", default="", help="who plays, any that g1-ray evaluate takes: oracle, "
                        "tiny-coldstart, runs/demo, a URL; by hand when left out")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="which board (default 0)")
    parser.add_argument("--moves", type=int, default=0, help="play so many moves, on fresh boards as boards end, as in "
                        "the paper (default 0: one episode)")  # fmt: skip
    parser.add_argument("--pause", type=float, default=0.5, help="seconds to look at each move of a player, on a "
                        "terminal (default 0.5)")  # fmt: skip
    parser.add_argument("--save", action="append", default=[], metavar="FILE",
                        help="write the run as .webp, .gif or .mp4; or add it to a .parquet that g1-ray evaluate plays "
                        "as human:FILE")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray play NAME`."""
    args = options().parse_args(argv)

    from g1_ray.evaluation.clips import ENDINGS, save_clip

    for file in args.save:
        if not file.lower().endswith((*ENDINGS, ".parquet")):
            raise ValueError(f"--save {file}: clips are {', '.join(ENDINGS)} files, moves a .parquet file")
        check_writable(Path(file), "file")
    check_numbers(args, seed=0, moves=0, pause=0)
    task = task_of(args.name, args.preset, args.reasoning, args.perception)
    if args.player and not args.moves and not task.reasoning.horizon and task.new_game().endless:
        raise ValueError(f"{args.name} with horizon=0 never ends: give --moves or a horizon")
    who, run = watched(task, args) if args.player else by_hand(task, args)
    for file in args.save:
        if file.endswith(".parquet"):
            add_run(Path(file), args.name, who, run)
        elif run.moves:
            save_clip(run, file, who)
        print(f"wrote {file}")
    return 0


def add_run(path: Path, game: str, player: str, run: "Run") -> None:
    """Adds a run to a file of moves, in the place of one with the same seed."""
    from g1_ray.evaluation.moves import read_runs, write_moves

    others = [other for other in read_runs(path) if other.seed != run.seed] if path.exists() else []
    write_moves(path, game, player, [*others, run])


def watched(task: Task, args: argparse.Namespace) -> tuple[str, "Run"]:
    """Shows a player's run; gives back its name and the run, as far as it came where Ctrl-C ended it."""
    from g1_ray.evaluation.play import Run, play
    from g1_ray.evaluation.screen import Screen

    name, player = args.player, None
    if args.player not in PLAYERS:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # nothing else is drawn on the screen
        from g1_ray.evaluation.named import parse_player
        from g1_ray.evaluation.players import Asked, Chooser

        player = parse_player(args.player)
        player.check()
        name = player.name
    moves: list[Move] = []
    with Screen(task, name, words=player is not None and isinstance(player, Asked)) as screen:

        def on_move(move: "Move") -> None:
            moves.append(move)
            screen.count(move)
            if screen.console.is_terminal:
                time.sleep(args.pause)

        with contextlib.suppress(KeyboardInterrupt):
            if player is not None and isinstance(player, Asked):
                asyncio.run(_watch(task, player, screen, args, on_move))
            else:
                assert player is None or isinstance(player, Chooser), player
                choose = PLAYERS[name] if player is None else player.choose(task, args.seed)

                def shown(game: Game, rng: np.random.Generator) -> int:
                    screen.show(game)
                    return choose(game, rng)

                play(task, name, shown, args.seed, args.moves, on_move=on_move)
    return name, Run(args.seed, tuple(moves))


async def _watch(
    task: Task, player: "Asked", screen: "Screen", args: argparse.Namespace, on_move: "Callable[[Move], None]"
) -> None:
    """A run of a player that is asked, its words as they come."""
    import torch

    from g1_ray.evaluation.play import play_asked

    screen.say(f"{player.name} is being loaded")
    async with player.opened([player], [task], torch.cuda.device_count()) as opened:

        async def ask(question: "Question") -> "Reply":
            screen.show(question.state.game())
            if opened.watch is None:
                reply = await opened.ask(player, question)
                screen.hear(reply)
                return reply
            async with contextlib.aclosing(opened.watch(player, question)) as growing:
                async for reply in growing:
                    screen.hear(reply)
            return reply

        telling = asyncio.create_task(_tell_troubles(opened, screen))
        try:
            await play_asked(task, task.name, player.name, ask, args.seed, args.moves, on_move=on_move)
        finally:
            telling.cancel()


async def _tell_troubles(opened: "Opened", screen: "Screen") -> None:
    """Says what goes wrong on the way to the replies, when it does."""
    told: dict[str, int] = {}
    while True:
        await asyncio.sleep(0.5)
        if (troubles := opened.troubles()) != told:
            told = troubles
            screen.say("asked again: " + ", ".join(f"{count} x {what}" for what, count in told.items()))


def by_hand(task: Task, args: argparse.Namespace) -> tuple[str, "Run"]:
    """Whoever sits at the terminal plays."""
    from g1_ray.evaluation.hand import hand_of, keys
    from g1_ray.evaluation.play import play
    from g1_ray.evaluation.screen import Screen

    game = task.new_game()
    print(textwrap.fill(Codec(task).prompt().split("\n\n")[0], shutil.get_terminal_size().columns) + "\n")
    with keys() as read_key:
        hand = hand_of(game.actions, read_key if sys.stdout.isatty() else None)
        if not hand.help:
            print(f"A move is {game.actions.ask}; 'hint' asks the oracle, 'quit' ends.\n")
        with Screen(task, "you", help=hand.help, live=bool(hand.help)) as screen:
            hand.screen = screen
            return "you", play(task, "you", hand, args.seed, args.moves, on_move=screen.count)


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("play", main))
