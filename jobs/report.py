"""Write a page that shows a training run or an evaluation: curves, tables, clips, and its rollouts board by board.

Of several, their curves and tables side by side.
"""

from pathlib import Path

from g1_ray.files import check_writable
from jobs.options import Parser, add_trust_options, check_numbers, trust


def options() -> Parser:
    """What the command takes."""
    parser = Parser("report", __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a training run (runs/NAME) or an evaluation")
    parser.add_argument("--out", default="", metavar="FILE", help="the page (default: FOLDER/report.html; of several "
                        "folders comparison.html beside the first)")  # fmt: skip
    parser.add_argument("--rollouts", type=int, default=10_000, metavar="N", help="most rollouts on the page, drawn "
                        "evenly (default 10000)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one a core)")
    add_trust_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray report FOLDER ...`."""
    args = options().parse_args(argv)
    trust(args)
    check_numbers(args, rollouts=1, workers=0)

    from g1_ray.report.write import write_comparison, write_report

    check_writable(Path(args.out or args.folders[0]), "file" if args.out else "")
    if len(args.folders) > 1:
        path = write_comparison(args.folders, args.out)
    else:
        path = write_report(args.folders[0], args.out, args.rollouts, args.workers)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("report", main))
