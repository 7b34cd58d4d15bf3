"""Make a tiny Qwen2.5-VL from scratch; with --train, the two models that ship with g1_ray."""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from envs import PLAYERS, State
from envs.players import Choose
from envs.rewards import reward_named
from envs.teacher import Oracle
from g1_ray.coldstart.config import ColdstartConfig, LessonConfig, load_coldstart
from g1_ray.config import EngineConfig, StatesConfig
from g1_ray.files import write_json
from g1_ray.rollout.starts import draw
from g1_ray.seeds import seed_of
from g1_ray.types import Sampling
from jobs.options import check_numbers

MODELS = ("tiny-base", "tiny-coldstart")
CONFIGS = Path(__file__).parent / "configs"
MAX_TOKENS = 200
"""Longest answer where models are measured; the workings of the tiny models' games are shorter."""


def main(argv: list[str] | None = None) -> int:
    """`g1-ray tiny`."""
    names = [game.name for game in config_of("tiny-base").games]
    parser = argparse.ArgumentParser(prog="g1-ray tiny", description=__doc__)
    parser.add_argument("out", help="folder to write: an untrained model, or with --train a folder for each of the two")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the examples (default 0)")
    parser.add_argument("--train", action="store_true", help="make OUT/tiny-base and OUT/tiny-coldstart")
    parser.add_argument("--games", nargs="+", default=names, choices=names, help="with --train: leave out the others")
    parser.add_argument("--measure", type=int, default=0, metavar="N", help="instead: see how both answer N new states")
    parser.add_argument("--scale", type=float, default=1.0, help="with --train: times as many steps and examples")
    args = parser.parse_args(argv)
    check_numbers(args, seed=0)
    if not args.scale > 0:
        raise ValueError(f"--scale {args.scale}: must be above 0")
    out = Path(args.out)
    if args.measure:
        measure(out, recipe("tiny-base", args).games, args.measure)
        return 0
    from g1_ray.models.tiny import TASKS, make_tiny

    start = out / "untrained" if args.train else out
    make_tiny(start, TASKS, args.seed)
    if not args.train:
        print(f"wrote {out}")
    for name in MODELS if args.train else ():
        if not (out / name / "made.json").exists():
            train(recipe(name, args), out, args)
    return 0


def config_of(name: str) -> ColdstartConfig:
    """How a model is made; what it starts from is put in later."""
    return load_coldstart(CONFIGS / f"coldstart-{name}.toml", ["model=tiny-base"])


def recipe(name: str, args: argparse.Namespace) -> ColdstartConfig:
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


def train(config: ColdstartConfig, out: Path, args: argparse.Namespace) -> None:
    """Trains OUT/<name> from the untrained model, or goes on where that was stopped."""
    from g1_ray.coldstart.examples import Example, Maker, make_examples
    from g1_ray.models.tiny import ship
    from jobs.coldstart import fine_tune

    began, name = time.monotonic(), config.name

    def examples_of(game: LessonConfig) -> list[Example]:
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
    write_json(out / name / "made.json", made, indent=1)
    print(f"wrote {out / name}, {time.monotonic() - began:.0f} s", flush=True)


def measure(out: Path, games: Sequence[LessonConfig], num: int) -> None:
    """Prints how the two models and the players answer `num` states that no model was trained on."""
    for game in games:
        states = held_out(game, num)
        for name in MODELS:
            for how, temperature in (("temperature 1", 1.0), ("greedy", 0.0)):
                told = asyncio.run(probe(out / name, states, temperature))
                print(f"{game.name:11} {name:15} {how:14} {_shown(told)}", flush=True)
        players: dict[str, Choose] = {"teacher": Oracle(game.task(), game.err), **PLAYERS}
        for player, choose in players.items():
            print(f"{game.name:11} {player:30} {_shown(probe_player(choose, states))}", flush=True)


def held_out(game: LessonConfig, num: int, seed: int = 0) -> list[State]:
    """States of a game that no training draws: where chance and an erring oracle lead.

    Open ones of 2048: in the pair games all legal moves earn the same.
    """
    task, reward = game.task(), reward_named(game.reward)
    policy, mix = Oracle(task), StatesConfig(random_walk=1, policy=1, open_only=game.game == "2048")
    return [draw(task, mix, seed_of("held out", seed, i), reward, policy).state for i in range(num)]


async def probe(path: Path, states: Sequence[State], temperature: float) -> dict[str, float]:
    """How the model in a folder answers states of one task: what the lab finds, as is."""
    from g1_ray.engines.make import make_engine
    from g1_ray.evaluation.lab import AS_IS, experiment
    from g1_ray.models.chat import Chat

    size = EngineConfig(kind="transformers", gpus=0, max_model_len=512, max_num_seqs=256)
    engine, sampling = make_engine(str(path), size, "float32", Sampling()), Sampling(temperature, 1.0, MAX_TOKENS)
    await engine.start()
    lab = await experiment("probe", "", states, Chat(path), engine.generate, sampling, (AS_IS,))
    await engine.stop()
    found = lab.interventions[AS_IS]
    told = {"P_acc": found.p_acc, "R_acc": found.r_acc, "scores": found.reward_rate, "legal": found.legal}
    return told | {"unreadable": found.unreadable}


def probe_player(choose: Choose, states: Sequence[State]) -> dict[str, float]:
    """How a player that looks at the game itself does on states."""
    import numpy as np

    rng, games = np.random.default_rng(0), [state.game() for state in states]
    outcomes = [game.step(choose(game, rng)) for game in games]
    return {
        "scores": sum(outcome.gain > 0 for outcome in outcomes) / len(outcomes),
        "legal": sum(outcome.legal for outcome in outcomes) / len(outcomes),
    }


def _shown(told: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in told.items() if value == value)


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("tiny", main))
