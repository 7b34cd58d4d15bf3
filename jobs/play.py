"""Play a game in the terminal, by hand or watching a player; save the run as a clip."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from envs import PLAYERS, Codec, Task
from envs.answers import Cause
from envs.core import Game
from envs.env import board_text
from g1_ray.clips import ENDINGS, save_clip
from g1_ray.episodes import Run, play, replay
from jobs.options import add_task_options, task_of


def main(argv: list[str] | None = None) -> int:
    """`g1-ray play NAME`."""
    parser = argparse.ArgumentParser(prog="g1-ray play", description=__doc__)
    parser.add_argument("name", help="the game: see g1-ray games")
    add_task_options(parser)
    parser.add_argument("--player", choices=sorted(PLAYERS), help="who plays; by hand when left out")
    parser.add_argument("--seed", type=int, default=0, help="which board (default 0)")
    parser.add_argument("--save", default="", metavar="FILE", help="write the run as .webp or .gif")
    args = parser.parse_args(argv)
    if args.save and not args.save.lower().endswith(ENDINGS):
        raise ValueError(f"--save {args.save}: clips are {' or '.join(ENDINGS)} files")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must be 0 or more")
    task = task_of(args.name, args.preset, args.reasoning, args.perception)
    if args.player and not task.reasoning.horizon and task.new_game().endless:
        raise ValueError(f"{args.name} with horizon=0 never ends: give a horizon")
    run = watch(task, args.player, args.seed) if args.player else by_hand(task, args.seed)
    if args.save:
        save_clip(task, run, args.save, args.player or "you")
        print(f"wrote {args.save}")
    return 0


def watch(task: Task, player: str, seed: int) -> Run:
    """Prints an episode of a player, move by move."""
    run = play(task, player, seed)
    for made, (game, action) in enumerate(replay(task, run), 1):
        print(board_text(task, game))
        print(f"{made}: {game.actions.write(action)}\n" if action is not None else result(game))
    return run


@dataclass
class _Hand:
    actions: list[int] = field(default_factory=list)
    legal: int = 0


def by_hand(task: Task, seed: int) -> Run:
    """Asks for moves until the episode is over, the input ends or it is 'quit'."""
    game, codec, hand = task.new_game(), Codec(task), _Hand()
    game.reset(seed)
    print(codec.prompt().split("\n\n")[0])
    print(f"\nA move is {game.actions.ask}; 'hint' asks the oracle, 'quit' ends.\n")
    while not game.over:
        print(board_text(task, game))
        try:
            words = input("move> ").strip()
        except EOFError:
            words = "quit"
        if words == "quit":
            break
        if words == "hint":
            print(f"the oracle plays {game.actions.write(game.oracle())}\n")
            continue
        reading = game.actions.read(words)
        if isinstance(reading, Cause):
            print(f"not a move ({reading}): expected {game.actions.ask}\n")
            continue
        outcome = game.step(reading)
        hand.actions.append(reading)
        hand.legal += outcome.legal
        print(f"{f'+{outcome.gain:g}' if outcome.legal else 'illegal'}   score {game.score:g}, move {game.moves}\n")
    print(board_text(task, game))
    print(result(game))
    kinds = int(game.perception().max())
    return Run(seed, (seed,), (tuple(hand.actions),), game.score, hand.legal, int(game.won()), kinds)


def result(game: Game) -> str:
    """How a game stands, in a line."""
    if game.won():
        word = "won"
    elif not game.over:
        word = "stopped"
    else:
        word = "time is up" if game.moves == game.options.horizon else "no legal move is left"
    return f"{word}: score {game.score:g} after {game.moves} moves"


if __name__ == "__main__":
    raise SystemExit(main())
