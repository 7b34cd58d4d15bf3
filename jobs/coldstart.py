"""Perception-enhanced cold start: make a data set of a teacher's answers and fine-tune a model on it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from g1_ray.files import LOCK, Lock, part_of, read_json, write_text
from g1_ray.logs import start_logging
from g1_ray.tables import visible
from jobs.options import Parser, add_config_options

if TYPE_CHECKING:
    from g1_ray.coldstart.config import ColdstartConfig, LessonConfig, SftConfig
    from g1_ray.coldstart.examples import Example
    from g1_ray.coldstart.sft import Trainer


def options() -> Parser:
    """What the command takes."""
    parser = Parser("coldstart", __doc__)
    add_config_options(parser, "jobs/configs/coldstart.toml", "sft.batch_size=32")
    parser.add_argument("--dry-run", action="store_true", help="print the config as resolved and stop")
    parser.add_argument("--data-only", action="store_true", help="make the data set and stop")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray coldstart`."""
    args = options().parse_intermixed_args(argv)

    from g1_ray.coldstart.config import load_coldstart

    config = load_coldstart(args.config, args.overrides)
    if args.dry_run:
        print(config.model_dump_json(indent=2))
        return 0
    check_teacher(config)
    lock = open_folder(config, args.resume)
    start_logging("coldstart", config.folder)
    for game in config.games:
        make_data(config, game)
    if not args.data_only:
        from g1_ray.coldstart.dataset import read_dataset
        from g1_ray.coldstart.sft import last_checkpoint

        fine_tune(config, lambda game: read_dataset(data_of(config, game)), print)
        print(f"wrote {last_checkpoint(config.folder)}")
    lock.release()
    return 0


def open_folder(config: "ColdstartConfig", resume: bool) -> Lock:
    """Makes the folder of a cold start this process's, with the config in it.

    Raises `ValueError` where it holds something and `resume` is not set, or where it is of other data or another model.
    """
    from g1_ray.config_text import changes

    path = config.folder
    there = path.exists() and not (path.is_dir() and all(file.name == LOCK for file in path.iterdir()))
    if there and not resume:
        raise ValueError(f"{path}: there is a run already; give --resume, or another name=...")
    if resume and not there:
        raise ValueError(f"{path}: no run to go on with.\nLeave out --resume to start one, or mend name or out.")
    lock = Lock(path)
    if (path / "config.json").is_file():
        before = read_json(part_of(path, "config.json"), dict)
        changed = changes(before, config)
        for key, change in changed.items():
            if key.partition(".")[0] in ("seed", "model", "teacher", "games"):
                raise ValueError(f"{path} is a run with another {key} ({change}); give another name=...")
            print(visible(f"goes on with another {key}: {change}"))
    write_text(path / "config.json", config.model_dump_json(indent=2) + "\n")
    return lock


def data_of(config: "ColdstartConfig", game: "LessonConfig") -> Path:
    """Where the examples of a game are."""
    return config.folder / "data" / f"{game.name}.parquet"


def check_teacher(config: "ColdstartConfig") -> None:
    """Raises `ValueError` where a teacher that has yet to answer can't be reached."""
    from g1_ray.evaluation.endpoint import Endpoint, EndpointError

    if config.teacher.kind == "endpoint" and not all(data_of(config, game).exists() for game in config.games):
        try:
            Endpoint(config.teacher).meet()
        except EndpointError as error:
            raise ValueError(f"teacher: {error}") from None


def make_data(config: "ColdstartConfig", game: "LessonConfig") -> None:
    """Writes the examples of a game, unless they are there."""
    from g1_ray.coldstart.dataset import write_dataset
    from g1_ray.coldstart.examples import Maker, examples_of_moves, make_examples

    path = data_of(config, game)
    if path.exists():
        return
    skipped: Counter[str] = Counter()
    if game.moves:
        examples = examples_of_moves(game, config.seed)
    else:
        maker = Maker(game, config.teacher, config.seed, path.with_suffix(".replies.jsonl"))
        examples = make_examples(maker, game.examples, config.workers, lambda cause: skipped.update([cause]))
    rows = write_dataset(path, examples)
    unusable = f"; unusable answers: {dict(skipped)}" if skipped else ""
    print(f"{path}: {rows} examples{unusable}", flush=True)


def fine_tune(
    config: "ColdstartConfig", examples_of: "Callable[[LessonConfig], list[Example]]", show: Callable[[str], None]
) -> "Trainer":
    """Trains on every game's examples, from the start or from where that was stopped; the trained model."""
    from g1_ray.coldstart.sft import Trainer, fit, last_checkpoint, make_lot
    from g1_ray.models.card import Card
    from g1_ray.models.find import model_path

    checkpoint = last_checkpoint(config.folder)
    total = sum(game.ratio for game in config.games)
    shares = [game.ratio / total for game in config.games]
    how = f"supervised fine-tuning on answers of a teacher ({config.teacher.model or config.teacher.kind})"
    card = Card(config.name, config.model, how, {game.name: game.task() for game in config.games})
    start = checkpoint or model_path(config.model)
    examples = [examples_of(game) for game in config.games]
    trainer = Trainer(start, config.sft, num_steps(config.sft, [*map(len, examples)], shares), config.seed, card)
    if checkpoint:
        trainer.resume(checkpoint)
        show(f"goes on from {checkpoint}")
    lots = [make_lot(trainer.chat, its, share) for its, share in zip(examples, shares, strict=True)]
    fit(trainer, lots, config.folder, show)
    return trainer


def num_steps(config: "SftConfig", sizes: Sequence[int], shares: Sequence[float]) -> int:
    """Optimizer steps: as given, or as many as it takes to go through every game's examples often enough.

    `sizes` and `shares`: of each game, its examples and its share of every batch.
    """
    if config.steps:
        return config.steps
    longest = max(size / share for size, share in zip(sizes, shares, strict=True))
    return max(1, round(config.epochs * longest / config.batch_size))


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("coldstart", main))
