"""`g1-ray`: parses the name of the command, and imports that command only."""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable

from jobs.errors import VARIABLE, told

log = logging.getLogger(__name__)
COMMANDS = {
    "games": "list the games and their options, draw contact sheets",
    "play": "play a game in the terminal, by hand or by a player",
    "evaluate": "play games with players, in tables with intervals and clips",
    "tiny": "make a tiny VLM from scratch, for machines with no GPU and no network",
    "coldstart": "fine-tune a VLM on a teacher's answers with the true perception put in",
    "train": "train a VLM on games by reinforcement learning, on a laptop or a cluster",
    "serve": "serve models: a page to play with them, a game API, OpenAI's API",
    "paper": "put the paper's claims to the test at laptop size, and write what came of it",
    "graph": "print the graphs of a run and where its parts are placed",
    "explain": "tell why a board, an answer or a group of rollouts earns what it earns",
    "status": "say how a run is: alive or not, its parts, what went wrong last",
    "runs": "list runs: games, state, steps, best reward",
    "report": "write a page that shows a run or an evaluation: curves, tables, rollouts board by board",
    "export": "hand rollouts and evaluations to other tools: data sets with pictures, inspect-ai",
    "bench": "measure speed: environments, learner, engine, weight sync, a whole run",
    "doctor": "look at this machine and say what is missing, and what helps",
    "completion": "print what makes a shell complete commands and options",
}
USAGE = """usage: g1-ray COMMAND [OPTIONS]; g1-ray COMMAND --help tells its options, g1-ray --version the version

  g1-ray play 2048                                        # a game by hand, in the terminal
  g1-ray evaluate --games shisen --players greedy oracle  # players side by side, with intervals
  g1-ray train jobs/configs/quickstart.toml               # two games in one run, on a laptop
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        commands = (f"  {name:10} {text}" for name, text in COMMANDS.items())
        return run("--help", lambda _: print("\n".join([USAGE, *commands])))
    if argv[0] == "--version":
        return run("--version", lambda _: print(version()))
    if argv[0] not in COMMANDS:
        from envs.options import nearest

        print(f"g1-ray: unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    name = argv[0]
    return run(name, lambda its: int(importlib.import_module(f"jobs.{name}").main(its)), argv[1:])


def version() -> str:
    """Of g1_ray and of the Python that runs it."""
    from importlib import metadata

    try:
        of = metadata.version("g1-ray")
    except metadata.PackageNotFoundError:
        of = "(not installed, run from its folder)"
    return f"g1-ray {of}, Python {sys.version.split()[0]}"


def run(name: str, main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> int:
    """Runs a command's main, with the current folder on Python's path, for games and parts given as module:name.

    What the user gave wrong is told in a few lines; all else keeps its traceback.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        try:
            return main(argv) or 0
        finally:
            _flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        return 141
    except Exception as error:
        if os.environ.get(VARIABLE) not in (None, "", "0") or not (text := told(error)):
            raise
        log.info("%s", "".join(traceback.format_exception(error)))
        print(f"g1-ray {name}: {text}", file=sys.stderr)
        return 2


def _flush() -> None:
    """Writes out what was printed, while an error of it can still be told; what can't be written is let go."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    sys.exit(main())
