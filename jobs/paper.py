"""Put the paper's claims to the test at laptop size, and write what came of it: hours, and it goes on where it was."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from g1_ray.files import check_writable
from jobs.options import Parser, check_numbers

if TYPE_CHECKING:
    from g1_ray.report.claims import Claims, Trial

CONFIGS = Path(__file__).parent / "configs"


def options() -> Parser:
    """What the command takes."""
    parser = Parser("paper", __doc__)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="of jobs/claims.toml (default: all)")
    parser.add_argument(
        "--claims", default=str(CONFIGS.parent / "claims.toml"), metavar="FILE", help="other experiments"
    )
    parser.add_argument(
        "--runs", default="runs/paper", metavar="FOLDER", help="where the runs are (default runs/paper)"
    )
    parser.add_argument("--out", default="docs/paper.md", metavar="FILE", help="the page (default docs/paper.md)")
    parser.add_argument("--seeds", type=int, default=0, help="fewer seeds than the experiments have")
    parser.add_argument("--page-only", action="store_true", help="run nothing, write the page of what there is")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="OPTION=VALUE", help="options of every run, e.g. minutes=1"
    )
    parser.add_argument(
        "--coldstart", nargs="+", default=[], metavar="OPTION=VALUE", help="of every cold start, e.g. sft.steps=50"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray paper`."""
    args = options().parse_args(argv)
    check_numbers(args, seeds=0)
    check_writable(Path(args.out), "file")

    from g1_ray.report.claims import load_claims, write_page

    claims, runs = load_claims(Path(args.claims), args.set), Path(args.runs)
    names = [experiment.name for experiment in claims.experiments]
    for name in args.experiments:
        if name not in names:
            raise ValueError(f"no experiment {name!r}; there are {', '.join(names)}")
    check(claims)
    for experiment in claims.experiments:
        for trial in experiment.trials():
            wanted = experiment.name in (args.experiments or names) and trial.seed < (args.seeds or experiment.seeds)
            if args.page_only or not wanted or (runs / trial.name / "report.json").exists():
                continue
            for command in commands(trial, runs, args.coldstart):
                print(f"g1-ray {shlex.join(command)}", flush=True)
                if status := subprocess.run([sys.executable, "-m", "jobs", *command]).returncode:
                    return status
            write_page(Path(args.out), claims, runs)
    write_page(Path(args.out), claims, runs)
    print(f"wrote {args.out}")
    return 0


def commands(trial: "Trial", runs: Path, coldstart: Sequence[str] = ()) -> Iterator[list[str]]:
    """What is left to do for a run: to make the model that it starts from, if that is its own, and to train."""
    options = [*trial.options, f"out={runs}"]
    if config := own_coldstart(trial):
        start = runs / ("tiny-paper" if trial.experiment.boards else "untrained")
        options += starts_from(str(runs / config.stem), trial.experiment.before)
        if not start.exists():
            yield ["tiny", str(start), *(["--paper"] if trial.experiment.boards else [])]
        resume = ["--resume"] if (runs / config.stem).exists() else []  # one that is done makes no more steps
        yield ["coldstart", str(config), f"model={start}", f"out={runs}", *coldstart, *resume]
    yield ["train", config_of(trial), *options, *(["--resume"] if (runs / trial.name).exists() else [])]


def own_coldstart(trial: "Trial") -> Path | None:
    """The config of a cold start that is made for a run; None where its own config names a model that ships."""
    config = CONFIGS / f"coldstart-{trial.config}.toml"
    return config if trial.experiment.before == "cold start" and config.exists() else None


def starts_from(model: str, name: str) -> list[str]:
    """Options of a run that starts from a model, and is compared with it under a name."""
    return [f"model.path={model}", f"eval.baselines={{{json.dumps(name)} = {json.dumps(model)}}}"]


def config_of(trial: "Trial") -> str:
    """The file of a run's config."""
    return str(CONFIGS / f"{trial.config}.toml")


def check(claims: "Claims") -> None:
    """Raises `ValueError` where a run could not start, or would end without what it is compared with."""
    from g1_ray.config import load_config

    for trial in (trial for experiment in claims.experiments for trial in experiment.trials()):
        # Its own cold start may not be there yet.
        start = starts_from("tiny-base", trial.experiment.before) if own_coldstart(trial) else []
        config = load_config(config_of(trial), [*trial.options, *start])
        if trial.experiment.before not in config.eval.baselines or not config.eval.runs:
            its = ", ".join(config.eval.baselines) or "none"
            raise ValueError(
                f"{trial.name}: before = {trial.experiment.before!r} is not evaluated: eval.baselines: {its}, "
                f"eval.runs = {config.eval.runs}"
            )


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("paper", main))
