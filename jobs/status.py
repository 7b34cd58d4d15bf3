"""Say how a run is: whether it is alive, how far, how its parts are, what it trains on, what went wrong last."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.options import Parser


def options() -> Parser:
    """What the command takes."""
    parser = Parser("status", __doc__)
    parser.add_argument("folder", help="of a run, such as runs/quickstart")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray status`."""
    folder = Path(options().parse_args(argv).folder)

    from g1_ray.files import part_of, read_json, read_lines
    from g1_ray.runs.curves import read_metrics
    from g1_ray.runs.reading import summary_of
    from g1_ray.runs.shapes import Note, Status
    from g1_ray.tables import aligned, visible

    run = summary_of(folder) if (folder / "config.json").is_file() else None
    if run is None:
        raise ValueError(f"{folder}: no run there; g1-ray runs lists those of a folder")
    print(f"{folder}: {run.state}, step {run.steps} of {run.planned}, the last one {ago(run.seen)}")
    there = (folder / "metrics.jsonl").exists()
    if metrics := read_metrics(folder) if there else []:
        print(numbers(metrics[-1]))
    if run.state == "running" and (folder / "status.json").exists():
        status = read_json(part_of(folder, "status.json"), Status)
        rows = [("part", "state", "node", "process", "ticks")]
        for part in status["parts"]:
            state = "up" if part["up"] else "down, being brought back"
            rows.append((part["name"], state, part["node"][:8], str(part["process"] or ""), str(part["busy"])))
        print(f"\n{aligned(rows)}\n{status['ticks']} ticks under way, seen {ago(status['time'])}")
    notes = read_lines(part_of(folder, "notes.jsonl"), Note)
    for note in [note for note in notes if not note["note"].startswith(("starts", "goes on"))][-3:]:
        print(visible(f"{time.strftime('%H:%M:%S', time.localtime(note['time']))} {note['note']}"))
    return 0


def numbers(metrics: Mapping[str, Any]) -> str:
    """What the last step was made of, in a line."""
    told = []
    if (groups := metrics.get("groups")) and (flat := metrics.get("flat_groups")) is not None:
        told.append(f"{1 - flat / groups:.0%} of the groups differed in reward")
    for name, text in (("staleness_mean", "staleness {:.1f}"), ("tokens_per_s", "{:,.0f} tokens/s")):
        if metrics.get(name) is not None:
            told.append(text.format(metrics[name]))
    its = {name.removeprefix("groups/"): value for name, value in metrics.items() if name.startswith("groups/")}
    told += [f"{its[name]:.0f} groups {name.replace('_', ' ')}" for name in ("in_flight", "quarantined") if name in its]
    back = [f"{value:.0f} x {name.removeprefix('recovered/')}" for name, value in metrics.items()
            if name.startswith("recovered/")]  # fmt: skip
    return ", ".join(told) + (f"; brought back: {', '.join(back)}" if back else "")


def ago(moment: float) -> str:
    """E.g. "12 s ago"."""
    seconds = max(0.0, time.time() - moment)
    return f"{seconds:.0f} s ago" if seconds < 120 else time.strftime("at %Y-%m-%d %H:%M", time.localtime(moment))


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("status", main))
