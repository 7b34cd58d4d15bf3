"""List training runs and cold starts: what they play, whether they still run, how far they are, their best reward."""

import time
from pathlib import Path

from jobs.options import Parser


def options() -> Parser:
    """What the command takes."""
    parser = Parser("runs", __doc__)
    parser.add_argument("folders", nargs="*", default=["runs"], help="folders of runs, or of one (default: runs)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray runs`."""
    args = options().parse_args(argv)

    from g1_ray.runs.reading import runs_in
    from g1_ray.tables import aligned

    found = [run for folder in args.folders for run in runs_in(Path(folder))]
    if not found:
        places = ", ".join(args.folders)
        raise ValueError(f"{places}: no run there; g1-ray train jobs/configs/quickstart.toml makes one")
    rows = [("run", "games", "state", "steps", "best reward", "last step")]
    for run in found:
        rows.append(
            (
                str(run.folder),
                ", ".join(run.games),
                run.state,
                f"{run.steps} of {run.planned}" if run.planned and run.state != "finished" else str(run.steps),
                ", ".join(f"{game} {reward:.2f}" for game, reward in run.best.items()),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(run.seen)),
            )
        )
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("runs", main))
