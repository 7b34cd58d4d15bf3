"""Command-line options that several commands share."""

import argparse
import importlib
from typing import NoReturn

from envs import Perception, Task, game_spec
from envs.options import nearest
from envs.perception import FOLDERS
from envs.registry import check_module
from g1_ray.grammar import parse_axis


class Parser(argparse.ArgumentParser):
    """A command's options. What is given wrong is a `ValueError` of one line, like all that a user gives."""

    def __init__(self, command: str, description: str | None, epilog: str | None = None) -> None:
        form = argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter
        super().__init__(f"g1-ray {command}", description=description, epilog=epilog, formatter_class=form)

    def error(self, message: str) -> NoReturn:
        """Raises `ValueError`."""
        what, _, given = message.partition(": ")
        if what == "unrecognized arguments" and given.startswith("-"):
            option = given.split()[0].partition("=")[0]
            message = f"unknown option {option!r}{nearest(option, self._option_string_actions)}"
            raise ValueError(message)
        raise ValueError(message if "choose from" in message else f"{message}; {self.prog} --help tells more")


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """--preset, --reasoning and --perception."""
    parser.add_argument("--preset", default="", help="a named setting of the game, such as paper")
    parser.add_argument("--reasoning", default="", help="a level, or options: size=5,goal=256")
    parser.add_argument("--perception", default="", help="a level, or options: tiles=photos,noise=0.3")


def add_config_options(parser: argparse.ArgumentParser, such_as: str, override: str) -> None:
    """A config file and what replaces options of it."""
    parser.add_argument("config", help=f"a TOML file, such as {such_as}")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"options to replace, such as {override}")


def add_trust_options(parser: argparse.ArgumentParser) -> None:
    """--import and --photos: what a folder's files speak of and don't decide."""
    parser.add_argument("--import", action="append", default=[], dest="modules", metavar="MODULE", help="import your "
                        "own module first, with the games or rewards of the folder")  # fmt: skip
    parser.add_argument("--photos", action="append", default=[], metavar="PATH", help="a folder of photos that its "
                        "games' tiles are of, as its states name it")  # fmt: skip


def trust(args: argparse.Namespace) -> None:
    """Imports, and lets be opened, what the command line names. Raises `ValueError` where there is no such module."""
    for module in args.modules:
        check_module(f"{module}:")
        importlib.import_module(module)
    FOLDERS.update(args.photos)


def task_of(name: str, preset: str, reasoning: str, perception: str) -> Task:
    """The task that the command line describes. Raises `ValueError` that names what is wrong."""
    spec = game_spec(name)
    return Task.make(
        name,
        preset=preset,
        reasoning=parse_axis(reasoning, spec.game_type.options_type),
        perception=parse_axis(perception, Perception),
    )


def check_numbers(args: argparse.Namespace, **least: int) -> None:
    """Raises `ValueError` for an option that is less than it may be."""
    for name, low in least.items():
        if getattr(args, name) < low:
            raise ValueError(f"--{name} {getattr(args, name)}: must be {low} or more")
