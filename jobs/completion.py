"""Print what makes a shell complete the commands of g1-ray, their options and files.

bash: g1-ray completion bash > ~/.local/share/bash-completion/completions/g1-ray
zsh:  g1-ray completion zsh > DIR/_g1-ray, where DIR is one of $fpath
"""

import argparse
import importlib

from jobs.options import Parser

EPILOG = "".join((__doc__ or "").partition("\n\n")[2:])


def options() -> Parser:
    """What the command takes."""
    parser = Parser("completion", (__doc__ or "").partition("\n")[0], EPILOG)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh", "fish"), help="whose language it is in")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray completion SHELL`."""
    args = options().parse_args(argv)

    import shtab

    print(shtab.complete(whole(), args.shell))
    return 0


def whole() -> argparse.ArgumentParser:
    """All commands as one parser."""
    import shtab

    from jobs.__main__ import COMMANDS

    parser = argparse.ArgumentParser("g1-ray")
    parser.add_argument("--version", action="store_true", help="the version of g1_ray")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        its = importlib.import_module(f"jobs.{name}").options()
        for action in its._actions:
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[its], add_help=False, help=text, description=text)
    return parser


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("completion", main))
