"""Measure speed, each figure beside what bounds it: games beside a memory copy, a learner beside padded batches."""

import argparse
import importlib
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g1_ray.files import check_writable, write_json
from jobs.options import Parser

Row = dict[str, Any]
"""`what` was measured, and figures by name."""
PARTS = {
    "envs": "the environments, on one core",
    "learner": "FSDP2 steps: precision, tokens a second and memory, beside padded batches of transformers",
    "engine": "answers a second, and how far the learner's log-probabilities are off",
    "sync": "a learner's weights on their way into an engine, beside a memory copy; a sync that was left out is found",
    "buffer": "the replay buffer: samples a second, in process and through Ray, ledger and trajectories included",
    "driver": "what the driver can keep going: rollouts a second where calls do nothing",
    "simulate": "what would bound a run on 8, 64 and 512 GPUs: measured costs of calls, checked with actors that sleep",
    "pipeline": "a whole run: engine and learner on one device, trained samples a second, and whether it learns",
}
SIZES = ("tiny", "20m", "0.1b", "3b")


def options() -> Parser:
    """What the command takes."""
    parser = Parser("bench", __doc__, "\n".join(f"{name:10} {about}" for name, about in PARTS.items()))
    parser.add_argument("what", nargs="+", choices=[*PARTS], metavar="WHAT", help=", ".join(PARTS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of learner, engine, sync, pipeline")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny"], metavar="SIZE",
                        help=f"of models made at random: {', '.join(SIZES)}")  # fmt: skip
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers", help="kind of engine")
    parser.add_argument("--beside", choices=["transformers", "trl"], default="transformers",
                        help="what the learner is measured beside; trl: GRPOTrainer's loss, on a CPU")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=2.0, help="of the pipeline's training (default 2)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there, after every one")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray bench`."""
    args = options().parse_args(argv)
    if not args.minutes > 0:
        raise ValueError(f"--minutes {args.minutes:g}: must be more than 0")
    if args.beside == "trl" and (args.what != ["learner"] or args.device != "cpu"):
        raise ValueError("--beside trl: for the learner alone, and on a CPU; take g1-ray bench learner --beside trl")
    if args.json:
        check_writable(Path(args.json), "file")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: no GPU is to be seen; leave it out to measure on the CPU")
    rows: list[Row] = []
    begun = time.monotonic()
    for what in args.what:
        for row in of_part(what, args):
            rows.append({**row, "at s": round(time.monotonic() - begun, 1)})
            print("   ".join([row["what"], *(f"{k} {_show(v)}" for k, v in row.items() if k != "what")]), flush=True)
            if args.json:
                about = {"python": platform.python_version(), "device": args.device, **machine(args.device)}
                write_json(Path(args.json), {**about, "rows": rows}, indent=1)
    return 0


def of_part(what: str, args: argparse.Namespace) -> Iterator[Row]:
    """The figures of one part, as they come."""
    module = "engine" if what == "sync" else "trl" if args.beside == "trl" else what
    rows: Iterator[Row] = getattr(importlib.import_module(f"jobs.bench.{module}"), f"{what}_rows")(args)
    return rows


def machine(device: str) -> dict[str, str]:
    """What it was measured on."""
    if device == "cpu":
        return {"machine": platform.processor() or platform.machine()}
    import torch

    return {"machine": torch.cuda.get_device_name(), "torch": torch.__version__}


def _show(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
