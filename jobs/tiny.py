"""Make a tiny Qwen2.5-VL from scratch; with --train, the two models that ship with g1_ray."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envs import PLAYERS
from g1_ray.files import write_json
from jobs.options import Parser, check_numbers

if TYPE_CHECKING:
    from g1_ray.coldstart.config import ColdstartConfig, LessonConfig

MODELS = ("tiny-base", "tiny-coldstart")
CONFIGS = Path(__file__).parent / "configs"
MAX_TOKENS = 200
"""Longest answer where models are measured; the workings of the tiny models' games are shorter."""


def options() -> Parser:
    """What the command takes."""
    names = [game.name for game in config_of("tiny-base").games]
    parser = Parser("tiny", __doc__)
    parser.add_argument("out", help="folder to write: an untrained model, or with --train a folder for each of the two")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the examples (default 0)")
    parser.add_argument("--train", action="store_true", help="make OUT/tiny-base and OUT/tiny-coldstart")
    parser.add_argument("--games", nargs="+", default=names, choices=names, help="with --train: leave out the others")
    parser.add_argument(
        "--measure", type=int, default=0, metavar="N", help="instead: evaluate both, with N states in the lab"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="with --train: times as many steps and examples")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray tiny`."""
    args = options().parse_args(argv)
    check_numbers(args, seed=0)
    if not args.scale > 0:
        raise ValueError(f"--scale {args.scale}: must be above 0")
    out = Path(args.out)
    if args.measure:
        measure(out, recipe("tiny-base", args).games, args.measure)
        return 0
    from g1_ray.models.tiny import TASKS, make_tiny

    start = out / "untrained" if args.train else out
    if out.exists() and not (args.train and start.is_dir()) and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"{out} holds something already, which is not written over; give another folder")
    make_tiny(start, TASKS, args.seed)
    if not args.train:
        print(f"wrote {out}")
    for name in MODELS if args.train else ():
        if not (out / name / "made.json").exists():
            train(recipe(name, args), out, args)
    return 0


def config_of(name: str) -> "ColdstartConfig":
    """How a model is made; what it starts from is put in later."""
    from g1_ray.coldstart.config import load_coldstart

    return load_coldstart(CONFIGS / f"coldstart-{name}.toml", ["model=tiny-base"])


def recipe(name: str, args: argparse.Namespace) -> "ColdstartConfig":
    """The same by the command line: with fewer games, with more or fewer examples and steps."""
    config = config_of(name)
    games = tuple(
        game.model_copy(update={"examples": max(1, round(game.examples * args.scale))})
        for game in config.games
        if game.name in args.games
    )
    if not games:
        learned = ", ".join(game.name for game in config.games)
        raise ValueError(f"--games {' '.join(args.games)}: {name} learns {learned}; name one of these too")
    sft = config.sft.model_copy(update={"steps": max(1, round(config.sft.steps * args.scale))})
    about = {"model": f"{args.out}/untrained", "out": f"{args.out}/runs", "seed": args.seed}
    return config.model_copy(update={**about, "games": games, "sft": sft})


def train(config: "ColdstartConfig", out: Path, args: argparse.Namespace) -> None:
    """Trains OUT/<name> from the untrained model, or goes on where that was stopped."""
    from g1_ray.coldstart.examples import Example, Maker, make_examples
    from g1_ray.models.tiny import ship
    from jobs.coldstart import fine_tune

    began, name = time.monotonic(), config.name

    def examples_of(game: "LessonConfig") -> list[Example]:
        examples = list(make_examples(Maker(game, config.teacher, config.seed), game.examples))
        print(f"{name}: {len(examples)} examples of {game.name}, {time.monotonic() - began:.0f} s", flush=True)
        return examples

    trainer = fine_tune(config, examples_of, lambda line: print(f"{name}: {line}", flush=True))
    some = "" if len(args.games) == len(config_of("tiny-base").games) else f" --games {' '.join(args.games)}"
    made = {
        "command": f"g1-ray tiny OUT --train --seed {args.seed} --scale {args.scale}{some}",
        "games": [game.model_dump(mode="json") for game in config.games],
        "teacher": config.teacher.kind,
        "sft": config.sft.model_dump(mode="json"),
    }
    ship(trainer.model, trainer.chat, out / name)
    assert trainer.card, "fine_tune gives one"
    replace(trainer.card, base="").write(out / name, trainer.reached)
    write_json(out / name / "made.json", made, indent=1)
    print(f"wrote {out / name}, {time.monotonic() - began:.0f} s", flush=True)


def measure(out: Path, games: "Sequence[LessonConfig]", num: int) -> None:
    """Evaluates the two models beside the players, and asks the models about `num` states in the lab."""
    from jobs.evaluate import main as evaluate

    specs = []
    for game in games:
        assert isinstance(game.reasoning, dict) and isinstance(game.perception, dict)
        options = "&".join(f"{key}={value}" for key, value in {**game.reasoning, **game.perception}.items())
        specs.append(f"{game.name}={game.game}?{options}")
    models = [f"{name}, {how}={out / name}?max_tokens={MAX_TOKENS}&temperature={value}" for name in MODELS
              for how, value in (("T 1", 1), ("greedy", 0))]  # fmt: skip
    players = [*models, "teacher", *PLAYERS]
    evaluate(["--games", *specs, "--players", *players, "--runs", "10", "--moves", "20", "--lab", str(num)])


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("tiny", main))
