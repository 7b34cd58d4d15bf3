"""Deterministic runs have the same weights bit by bit: whoever was faster, whoever died, however often it went on."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from test_chaos import Reaper, check
from test_pipeline import check_books, config

from g1_ray.config import RunConfig
from jobs.train import train

pytestmark = [pytest.mark.xdist_group("deterministic"), pytest.mark.timeout(3600)]  # beside those of the group "ray"


def small(
    out: Path, name: str, steps: int, turns: int = 1, ranks: int = 1, seed: int = 0, engines: int = 1, **asynchrony: int
) -> RunConfig:
    made = config(out, name, steps, "transformers", staleness=0, lora=0, deterministic=True, seed=seed)
    return RunConfig.model_validate(
        made.model_dump()
        | {
            "canary_every": 0,
            "eval": {"runs": 0},
            "rollout": made.rollout.model_dump() | {"turns": turns, "max_tokens": 64},
            "learner": made.learner.model_dump() | {"num_ranks": ranks, "cpus": 0.4},
            "engine": made.engine.model_dump() | {"num_engines": engines},
            "curriculum": {"kind": "learnability"},
            "asynchrony": made.asynchrony.model_dump() | {"env_cpus": 0.2} | asynchrony,
        }
    )


def weights(run: RunConfig) -> str:
    """The hash of those of the last step."""
    file = run.folder / "checkpoints" / f"step-{run.steps}" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_weights_do_not_depend_on_who_is_faster_or_dies(ray_cluster, tmp_path):
    """A run of other lanes, env workers and engines, whose learner and whose buffer are killed, comes to the same."""
    one = small(tmp_path, "one", 8)
    other = small(tmp_path, "other", 8, engines=2, lanes=3, groups_per_tick=1, num_env_workers=2)
    assert train(one) == 0
    reaper = Reaper(other, [("learner", signal.SIGKILL), ("buffer", signal.SIGKILL)], ends=False, pause_s=0.0)
    reaper.start()
    assert train(other) == 0
    reaper.join()
    check(other, reaper)
    check_books(one.folder)
    assert weights(one) == weights(other)


@pytest.mark.parametrize("option, value, fix", [
    ("asynchrony", {"max_staleness": 1}, "give asynchrony.max_staleness = 0"),
    ("engine", {"kind": "vllm"}, "give engine.kind = transformers"),
])  # fmt: skip
def test_what_is_up_to_chance_is_refused(option: str, value: dict, fix: str):
    about = {"asynchrony": {"max_staleness": 0}, "engine": {"kind": "transformers"}, option: value}
    with pytest.raises(ValidationError, match=fix):
        RunConfig(name="t", deterministic=True, model={"path": "m"}, games=[{"game": "2048"}], **about)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("turns, ranks", [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_forty_steps_are_twenty_a_kill_and_twenty_more(tmp_path, turns, ranks):
    """The driver is killed; G1_RAY_SEEDS (default 1) says with how many seeds."""
    for seed in range(int(os.environ.get("G1_RAY_SEEDS", "1"))):
        rng = random.Random(seed)
        whole, killed = (small(tmp_path, f"{name}-{seed}", 40, turns, ranks, seed) for name in ("whole", "killed"))
        killed = killed.model_copy(update={"checkpoint_every": 5})
        assert started(whole).wait(1200) == 0
        driver, file = started(killed), killed.folder / "metrics.jsonl"
        at = rng.randrange(15, 26)
        while not file.is_file() or file.read_text().count("\n") < at:
            assert driver.poll() is None
            time.sleep(0.05)
        time.sleep(rng.random())
        driver.kill()
        driver.wait()
        assert started(killed).wait(1200) == 0
        told = [json.loads(line)["step"] for line in file.read_text().splitlines()]
        assert told == list(range(1, 41))
        print(f"\nseed {seed}, {turns} turns, {ranks} ranks: killed after step {at}: {weights(killed)[:16]}", end="")
        assert weights(whole) == weights(killed)


def started(run: RunConfig) -> subprocess.Popen:
    file = run.folder.parent / f"{run.name}.json"
    file.write_text(run.to_json())
    env = {**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    with file.with_suffix(".log").open("a") as log:
        command = [sys.executable, "-m", "jobs", "train", str(file), "--resume", "auto"]
        return subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
