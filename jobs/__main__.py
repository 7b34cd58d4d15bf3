"""`g1-ray`: parses the name of the command, and imports that command only."""

import importlib
import sys
from collections.abc import Callable

COMMANDS = {
    "games": "list the games and their options, draw contact sheets",
    "play": "play a game in the terminal, by hand or by a player",
    "evaluate": "play games with players, in tables with intervals and clips",
    "tiny": "make a tiny VLM from scratch, for machines with no GPU and no network",
    "coldstart": "fine-tune a VLM on a teacher's answers with the true perception put in",
    "train": "train a VLM on games by reinforcement learning, on a laptop or a cluster",
    "graph": "print the graphs of a run and where its parts are placed",
    "explain": "tell why a board, an answer or a group of rollouts earns what it earns",
    "runs": "list runs: games, state, steps, best reward",
    "report": "write a page that shows a run or an evaluation: curves, tables, rollouts board by board",
    "export": "hand rollouts and evaluations to other tools: data sets with pictures, inspect-ai",
    "bench": "measure the speed of the environments",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: g1-ray COMMAND [OPTIONS]; g1-ray COMMAND --help tells its options\n")
        print("\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items()))
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        from envs.options import nearest

        print(f"g1-ray: unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    return run(argv[0], importlib.import_module(f"jobs.{argv[0]}").main, argv[1:])


def run(name: str, main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Runs a command's main; what the user gave wrong is told in a few lines, all else keeps its traceback."""
    try:
        return main(argv) or 0
    except ValueError as error:
        print(f"g1-ray {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
