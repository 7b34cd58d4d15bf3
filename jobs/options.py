"""Command-line options that several commands share."""

import argparse

from envs import Perception, Task, game_spec
from g1_ray.grammar import parse_axis


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """--preset, --reasoning and --perception."""
    parser.add_argument("--preset", default="", help="a named setting of the game, such as paper")
    parser.add_argument("--reasoning", default="", help="a level, or options: size=5,goal=256")
    parser.add_argument("--perception", default="", help="a level, or options: tiles=photos,noise=0.3")


def add_config_options(parser: argparse.ArgumentParser, such_as: str, override: str) -> None:
    """A config file and what replaces options of it."""
    parser.add_argument("config", help=f"a TOML file, such as {such_as}")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"options to replace, such as {override}")


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
