"""Hand a run's rollouts or an evaluation's moves to other tools: Hugging Face data sets, inspect-ai's logs."""

from pathlib import Path

from g1_ray.files import check_writable
from jobs.options import Parser, add_trust_options, trust


def options() -> Parser:
    """What the command takes."""
    parser = Parser("export", __doc__)
    parser.add_argument("folder", help="a training run (runs/NAME) or the folder of an evaluation")
    parser.add_argument("--to", required=True, choices=("datasets", "inspect"), help="datasets: parquet with pictures; "
                        "inspect: .eval logs of the evaluation")  # fmt: skip
    parser.add_argument("--out", default="", metavar="PATH", help="folder to write into (default: FOLDER/export)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N rows of a data set, or "
                        "runs of a player (default: all)")  # fmt: skip
    add_trust_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray export FOLDER --to FORMAT`."""
    args = options().parse_args(argv)
    trust(args)
    if args.limit < 0:
        raise ValueError(f"--limit {args.limit}: must be 1 or more, or 0 for all")

    from g1_ray.report.export import export_datasets, export_inspect

    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder / "export"
    check_writable(out, "folder")
    export, unit = (export_datasets, "rows") if args.to == "datasets" else (export_inspect, "runs")
    for path, count in export(folder, out, args.limit).items():
        print(f"{path}: {count} {unit}")
    return 0


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("export", main))
