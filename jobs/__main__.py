"""`g1-ray`: parses the name of the command, and imports that command only."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "games": "list the games and their options, draw contact sheets",
    "play": "play a game in the terminal, by hand or by a player",
    "evaluate": "play games with players, in tables with intervals and clips",
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
    try:
        return importlib.import_module(f"jobs.{argv[0]}").main(argv[1:]) or 0
    except ValueError as error:  # what the user gave; everything else is ours and keeps its traceback
        print(f"g1-ray {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
