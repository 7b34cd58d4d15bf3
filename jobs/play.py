"""Play a game in the terminal, by hand or watching a player; save the run as a clip or as a player's moves."""

import argparse
from pathlib import Path

import numpy as np

from envs import PLAYERS, Codec, Task
from envs.answers import Cause
from envs.core import Game
from envs.env import board_text
from envs.players import Choose
from g1_ray.evaluation.play import Run, Stopped
from jobs.options import add_task_options, check_numbers, task_of


def main(argv: list[str] | None = None) -> int:
    """`g1-ray play NAME`."""
    parser = argparse.ArgumentParser(prog="g1-ray play", description=__doc__)
    parser.add_argument("name", help="the game: see g1-ray games")
    add_task_options(parser)
    parser.add_argument("--player", choices=sorted(PLAYERS), help="who plays; by hand when left out")
    parser.add_argument("--seed", type=int, default=0, help="which board (default 0)")
    parser.add_argument("--moves", type=int, default=0, help="play so many moves, on fresh boards as boards end, as in "
                        "the paper (default 0: one episode)")  # fmt: skip
    parser.add_argument("--save", action="append", default=[], metavar="FILE",
                        help="write the run as .webp, .gif or .mp4; or add it to a .parquet that g1-ray evaluate plays "
                        "as human:FILE")  # fmt: skip
    args = parser.parse_args(argv)

    from g1_ray.evaluation.clips import ENDINGS, save_clip
    from g1_ray.evaluation.play import play

    for file in args.save:
        if not file.lower().endswith((*ENDINGS, ".parquet")):
            raise ValueError(f"--save {file}: clips are {', '.join(ENDINGS)} files, moves a .parquet file")
    check_numbers(args, seed=0, moves=0)
    task = task_of(args.name, args.preset, args.reasoning, args.perception)
    if args.player and not args.moves and not task.reasoning.horizon and task.new_game().endless:
        raise ValueError(f"{args.name} with horizon=0 never ends: give --moves or a horizon")
    who = args.player or "you"
    watched = _Watched(task, PLAYERS[args.player]) if args.player else _ByHand(task)
    run = play(task, who, watched, args.seed, args.moves)
    watched.end()
    for file in args.save:
        if file.endswith(".parquet"):
            add_run(Path(file), args.name, who, run)
        elif run.moves:
            save_clip(run, file, who)
        print(f"wrote {file}")
    return 0


def add_run(path: Path, game: str, player: str, run: Run) -> None:
    """Adds a run to a file of moves, in the place of one with the same seed."""
    from g1_ray.evaluation.moves import read_runs, write_moves

    others = [other for other in read_runs(path) if other.seed != run.seed] if path.exists() else []
    write_moves(path, game, player, [*others, run])


class _AtTheTable:
    """A player whose boards are printed."""

    def __init__(self, task: Task) -> None:
        self.task, self.game, self.made = task, task.new_game(), 0

    def show(self, game: Game) -> None:
        """Prints the board before a move."""
        if game.moves == 0 and self.made:
            print("that board is over: a fresh one\n")
        self.game = game
        print(board_text(self.task, game))

    def end(self) -> None:
        """Prints how the last board stands."""
        if self.made:
            print(board_text(self.task, self.game))
            print(result(self.game))


class _Watched(_AtTheTable):
    """Another player, whose moves are printed."""

    def __init__(self, task: Task, player: Choose) -> None:
        super().__init__(task)
        self.player = player

    def __call__(self, game: Game, rng: np.random.Generator) -> int:
        self.show(game)
        action = self.player(game, rng)
        self.made += 1
        print(f"{self.made}: {game.actions.write(action)}\n")
        return action


class _ByHand(_AtTheTable):
    """Whoever sits at the terminal."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        print(Codec(task).prompt().split("\n\n")[0])
        print(f"\nA move is {self.game.actions.ask}; 'hint' asks the oracle, 'quit' ends.\n")

    def __call__(self, game: Game, rng: np.random.Generator) -> int:
        """Asks for a move until there is one. Raises `Stopped` at the end of the input, or where it is 'quit'."""
        while True:
            self.show(game)
            try:
                words = input("move> ").strip()
            except EOFError:
                words = "quit"
            if words == "quit":
                raise Stopped
            if words == "hint":
                print(f"the oracle plays {game.actions.write(game.oracle())}\n")
                continue
            reading = game.actions.read(words)
            if isinstance(reading, Cause):
                print(f"not a move ({reading}): expected {game.actions.ask}\n")
                continue
            self.made += 1
            outcome = game.fork().step(reading)
            told = f"+{outcome.gain:g}" if outcome.legal else "illegal"
            print(f"{told}   score {game.score + outcome.gain:g}, move {game.moves + 1}\n")
            return reading


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
