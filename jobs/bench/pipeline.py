"""A whole run, as `g1-ray train` makes it, of the cold-started model that ships."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jobs.bench import Row

CONFIG = Path(__file__).parents[1] / "configs" / "shisen.toml"


def pipeline_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Shisen-Sho 4x4 for some minutes; engine and learner share the GPU where there is one."""
    share = [f"{part}.gpus=0.5" for part in ("learner", "engine")] if args.device == "cuda" else []
    with tempfile.TemporaryDirectory() as out:
        options = [f"out={out}", "name=bench", f"minutes={args.minutes}", "eval.runs=0", f"engine.kind={args.engine}",
                   "engine.memory_utilization=0.3", "engine.enforce_eager=true", "trackers=[]", *share]  # fmt: skip
        command = [sys.executable, "-m", "jobs", "train", str(CONFIG), *options]
        began = time.time()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
        config = json.loads((Path(out) / "bench" / "config.json").read_text())["rollout"]
        lines = [json.loads(line) for line in (Path(out) / "bench" / "metrics.jsonl").read_text().splitlines()]
    tenth = max(1, len(lines) // 10)
    rewards = [line["shisen/reward"] for line in lines]
    # Those that a step trains on: a line's "groups" counts the flat ones, which are left out, too.
    trained = (len(lines) - 1) * config["groups_per_step"] * config["group_size"]
    yield {
        "what": f"pipeline, shisen 4x4, {args.engine}",
        "start to step 1, s": lines[0]["time"] - began, "steps": len(lines),
        "trained samples/s": trained / (lines[-1]["time"] - lines[0]["time"]) if len(lines) > 1 else float("nan"),
        "reward, first tenth": float(np.mean(rewards[:tenth])), "reward, last tenth": float(np.mean(rewards[-tenth:])),
        "sync pause ms": 1e3 * float(np.median([line["sync/pause_s"] for line in lines])),
    }  # fmt: skip
