"""Make a tiny Qwen2.5-VL from scratch; with --train, the two models that ship with g1_ray."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.options import check_numbers

if TYPE_CHECKING:
    from g1_ray.coldstart.config import LessonConfig

_NUMBERS = {"tiles": "numbers"}
GAMES: tuple[dict[str, Any], ...] = (
    {"name": "2048-3x3", "game": "2048", "reasoning": {"size": 3}, "perception": _NUMBERS, "ratio": 2},
    {"name": "2048-4x4", "game": "2048", "reasoning": {"size": 4}, "perception": _NUMBERS, "ratio": 2},
    {"name": "shisen-4x4", "game": "shisen", "reasoning": {"rows": 4, "cols": 4}, "longest_of": 6, "ratio": 4},
    {"name": "photos-4x4", "game": "shisen-photos", "reasoning": {"rows": 4, "cols": 4}, "longest_of": 6, "ratio": 4},
    {
        "name": "swap-5x5",
        "game": "swap",
        "reasoning": {"rows": 5, "cols": 5, "kinds": 4},
        "states": {"fresh": 1, "random_walk": 0},
        "longest_of": 6,
        "ratio": 4,
    },
)
"""What can be learned, at 28 pixels a cell; ratio: share of a batch, relative to the others."""

NAMES = [game["name"] for game in GAMES]


@dataclass(frozen=True)
class Recipe:
    """How a model is made, from scratch: a model this small learned a working later when it started from another one,
    and later still when it learned more games beside it."""

    teacher: str
    games: Sequence[str]
    examples: int
    """Of each game: seen more than a few times, a teacher's errors are learned by heart."""
    batch: int
    steps: int


RECIPES = {
    "tiny-base": Recipe("novice", NAMES, 20_000, 128, 700),
    "tiny-coldstart": Recipe("oracle", ("2048-3x3", "shisen-4x4"), 36_000, 96, 2000),
}


def main(argv: list[str] | None = None) -> int:
    """`g1-ray tiny`."""
    parser = argparse.ArgumentParser(prog="g1-ray tiny", description=__doc__)
    parser.add_argument("out", help="folder to write: an untrained model, or with --train a folder for each of the two")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the examples (default 0)")
    parser.add_argument("--train", action="store_true", help="make OUT/tiny-base and OUT/tiny-coldstart")
    parser.add_argument("--games", nargs="+", default=NAMES, choices=NAMES, help="with --train: leave out the others")
    parser.add_argument("--measure", type=int, default=0, metavar="N", help="instead: see how both answer N new states")
    parser.add_argument("--scale", type=float, default=1.0, help="with --train: times as many steps and examples")
    args = parser.parse_args(argv)
    check_numbers(args, seed=0)
    if not args.scale > 0:
        raise ValueError(f"--scale {args.scale}: must be above 0")
    out = Path(args.out)
    if args.measure:
        measure(out, lessons(args.games, 1), args.measure)
        return 0
    from g1_ray.models.tiny import TASKS, make_tiny

    if not args.train:
        make_tiny(out, TASKS, args.seed)
        print(f"wrote {out}")
        return 0
    start = out / "untrained"
    make_tiny(start, TASKS, args.seed)
    for name, recipe in RECIPES.items():
        if not (out / name / "made.json").exists():
            train(name, recipe, start, out, args)
    return 0


def lessons(names: Sequence[str], examples: int) -> list[LessonConfig]:
    """The games of those names as a cold start has them, with so many examples of each."""
    from g1_ray.coldstart.config import LessonConfig

    return [
        LessonConfig.model_validate(
            {
                **game,
                "perception": {"tile_px": 28, **game.get("perception", {})},
                "examples": examples,
                "states": game.get("states", {"fresh": 1, "random_walk": 8, "policy": 8}),
            }
        )
        for game in GAMES
        if game["name"] in names
    ]


def train(name: str, recipe: Recipe, start: Path, out: Path, args: argparse.Namespace) -> None:
    """Trains out/name from the model `start`, or goes on where that was stopped."""
    from g1_ray.coldstart.config import SftConfig, TeacherConfig
    from g1_ray.coldstart.examples import Maker, make_examples
    from g1_ray.coldstart.sft import Trainer, fit, last_checkpoint, make_lot
    from g1_ray.models.tiny import ship

    began, seed, scale = time.monotonic(), args.seed, args.scale
    names = [game for game in recipe.games if game in args.games]
    if not names:
        raise ValueError(
            f"--games {' '.join(args.games)}: {name} learns {', '.join(recipe.games)}; name one of these too"
        )
    games = lessons(names, max(1, round(recipe.examples * scale)))
    if recipe.teacher == "novice":  # whose answers are all as long
        games = [game.model_copy(update={"longest_of": 1}) for game in games]
    config = SftConfig.model_validate(
        {
            "batch_size": recipe.batch,
            "micro_batch": recipe.batch,
            "optimizer": {"lr": 2e-3, "warmup_steps": 40, "betas": (0.9, 0.98)},
            "final_lr": 0.02,
            "checkpoint_every": 100,
            "log_every": 25,
        }
    )
    steps = max(1, round(recipe.steps * scale))
    run = out / "runs" / name
    checkpoint = last_checkpoint(run)
    trainer = Trainer(checkpoint or start, config, steps, seed)
    if checkpoint:
        trainer.resume(checkpoint)
    teacher = TeacherConfig.model_validate({"kind": recipe.teacher})
    total = sum(game.ratio for game in games)
    lots = []
    for game in games:
        examples = list(make_examples(Maker(game, teacher, seed), game.examples))
        lots.append(make_lot(trainer.chat, examples, game.ratio / total))
        print(f"{name}: {len(examples)} examples of {game.name}, {time.monotonic() - began:.0f} s", flush=True)
    fit(trainer, lots, run, lambda line: print(f"{name}: {line}", flush=True))
    some = "" if args.games == NAMES else f" --games {' '.join(args.games)}"
    made = {
        "command": f"g1-ray tiny OUT --train --seed {seed} --scale {scale}{some}",
        "games": [game.model_dump(mode="json") for game in games],
        "teacher": teacher.kind,
        "sft": config.model_dump(mode="json") | {"steps": steps},
    }
    ship(trainer.model, trainer.chat, out / name)
    (out / name / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"wrote {out / name}, {time.monotonic() - began:.0f} s", flush=True)


def measure(out: Path, games: Sequence[LessonConfig], num: int) -> None:
    """Prints how the two models and the players answer `num` states that no model was trained on."""
    from envs.players import PLAYERS, Choose
    from envs.teacher import Oracle
    from g1_ray.coldstart.probe import held_out, probe_model, probe_player

    for game in games:
        # Open states where there are some: in the pair games all legal moves earn the same.
        choice = game.states.model_copy(update={"open_only": game.game == "2048"})
        states = held_out(game.model_copy(update={"states": choice}), num)
        for name in RECIPES:
            for how, temperature in (("temperature 1", 1.0), ("greedy", 0.0)):
                score = probe_model(out / name, game, states, temperature)
                print(f"{game.name:11} {name:15} {how:14} {score}", flush=True)
        players: dict[str, Choose] = {"teacher": Oracle(game.task(), game.err), **PLAYERS}
        for player, choose in players.items():
            print(f"{game.name:11} {player:30} {probe_player(choose, states)}", flush=True)


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("tiny", main))
