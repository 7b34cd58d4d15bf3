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
_WORKINGS = "teacher.styles={none=0.1, places=0.05, kinds=0.05, partial=0.15, working=0.65}"
_RATIOS = ("games.0.ratio=1", "games.1.ratio=0.5")
STAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "tiny-base": (
        (),
        # Most thoughts are whole workings, or what they come to is not learned; then back to the shares of the first.
        (_WORKINGS, *_RATIOS, *(f"games.{i}.examples={n}" for i, n in enumerate((12000, 8000, 32000, 32000, 32000))),
         "sft.steps=1300"),
        (*(f"games.{i}.examples={n}" for i, n in enumerate((3000, 3000, 5000, 5000, 5000))),
         "sft.steps=150", "sft.optimizer.lr=5e-4"),
    ),
    "tiny-coldstart": ((),),
}  # fmt: skip
"""Of a model, what differs from its config in each stage of its training; a stage goes on from the one before."""
CONFIGS = Path(__file__).parent / "configs"
DRILL = 800
"""Steps after which like tiles are noticed: a minute on two cores."""
MAX_TOKENS = 200
"""Longest answer where models are measured; the workings of the tiny models' games are shorter."""


def options() -> Parser:
    """What the command takes."""
    names = [game.name for game in config_of("tiny-base").games]
    parser = Parser("tiny", __doc__)
    parser.add_argument("out", help="folder to write: an untrained model, or with --train a folder for each of the two")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the examples (default 0)")
    parser.add_argument(
        "--paper",
        action="store_true",
        help="one that knows the words of the paper's boards, and has learned to notice like tiles in lists of them",
    )
    parser.add_argument("--drill", type=int, default=DRILL, help=f"with --paper: steps on lists (default {DRILL})")
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
    check_numbers(args, seed=0, drill=0)
    if not args.scale > 0:
        raise ValueError(f"--scale {args.scale}: must be above 0")
    out = Path(args.out)
    if args.measure:
        measure(out, recipe("tiny-base", args).games, args.measure)
        return 0
    if args.drill != DRILL and not args.paper:
        raise ValueError(f"--drill {args.drill}: lists are drilled for the paper's boards only; add --paper")
    if args.paper and args.train:
        raise ValueError("--paper: is for an untrained model; leave out --train, and train it with g1-ray coldstart")
    from g1_ray.models.tiny import PAPER_TASKS, PAPER_TEXT, TASKS, make_tiny

    start = out / "untrained" if args.train else out
    if out.exists() and not (args.train and start.is_dir()) and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"{out} holds something already, which is not written over; give another folder")
    tasks, text = (PAPER_TASKS, PAPER_TEXT) if args.paper else (TASKS, {})
    make_tiny(start, tasks, args.seed, text=text)
    if args.paper and args.drill:
        from g1_ray.coldstart.drill import drill

        drill(str(start), [task for task in tasks if task.name.startswith("shisen")], args.drill, args.seed)
    if not args.train:
        print(f"wrote {out}")
    for name in MODELS if args.train else ():
        if not (out / name / "made.json").exists():
            train(name, out, args)
    return 0


def config_of(name: str, overrides: "Sequence[str]" = ()) -> "ColdstartConfig":
    """How a model is made; what it starts from is put in later."""
    from g1_ray.coldstart.config import load_coldstart

    return load_coldstart(CONFIGS / f"coldstart-{name}.toml", ["model=tiny-base", *overrides])


def recipe(name: str, args: argparse.Namespace, stage: int = 0) -> "ColdstartConfig":
    """A stage of it by the command line: with fewer games, with more or fewer examples and steps."""
    config = config_of(name, STAGES[name][stage])
    games = tuple(
        game.model_copy(update={"examples": max(1, round(game.examples * args.scale))})
        for game in config.games
        if game.name in args.games
    )
    if not games:
        learned = ", ".join(game.name for game in config.games)
        raise ValueError(f"--games {' '.join(args.games)}: {name} learns {learned}; name one of these too")
    sft = config.sft.model_copy(update={"steps": max(1, round(config.sft.steps * args.scale))})
    about = {"name": f"{name}-{stage + 1}", "out": f"{args.out}/runs", "seed": args.seed + stage}
    return config.model_copy(update={**about, "games": games, "sft": sft})


def train(name: str, out: Path, args: argparse.Namespace) -> None:
    """Trains OUT/<name> from the untrained model, stage by stage, or goes on where that was stopped."""
    from g1_ray.coldstart.examples import Example, Maker, make_examples
    from g1_ray.coldstart.sft import last_checkpoint
    from g1_ray.models.tiny import ship
    from jobs.coldstart import fine_tune

    began, start = time.monotonic(), out / "untrained"
    configs = [recipe(name, args, stage) for stage in range(len(STAGES[name]))]
    for config in configs:
        config = config.model_copy(update={"model": str(start)})

        def examples_of(game: "LessonConfig", config: "ColdstartConfig" = config) -> list[Example]:
            examples = list(make_examples(Maker(game, config.teacher, config.seed), game.examples))
            print(f"{config.name}: {len(examples)} examples of {game.name}", flush=True)
            return examples

        trainer = fine_tune(config, examples_of, lambda line: print(f"{name}: {line}", flush=True))
        start = last_checkpoint(config.folder) or start
    ship(trainer.model, trainer.chat, out / name)
    assert trainer.card, "fine_tune gives one"
    steps = sum(config.sft.steps for config in configs)
    replace(trainer.card, name=name, base="").write(out / name, f"{steps} steps in {len(configs)} stages")
    write_json(out / name / "made.json", made(configs, args), indent=1)
    print(f"wrote {out / name}, {time.monotonic() - began:.0f} s", flush=True)


def made(configs: "Sequence[ColdstartConfig]", args: argparse.Namespace) -> dict[str, object]:
    """How a model was made: the command, and all that was learned in each stage."""
    some = "" if len(args.games) == len(config_of("tiny-base").games) else f" --games {' '.join(args.games)}"
    return {
        "command": f"g1-ray tiny OUT --train --seed {args.seed} --scale {args.scale}{some}",
        "stages": [
            {
                "games": [game.model_dump(mode="json") for game in config.games],
                "teacher": config.teacher.model_dump(mode="json", include={"kind", "styles", "follow"}),
                "sft": config.sft.model_dump(mode="json"),
            }
            for config in configs
        ],
    }


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
