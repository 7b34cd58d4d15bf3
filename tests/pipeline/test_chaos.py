"""Parts of real runs are killed or stopped, and the runs go on: in `make test` once each, `make chaos` for long.

G1_RAY_KILLS says how many a run of `make chaos` has (default 20), G1_RAY_CHAOS_SEED what is drawn from.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from test_pipeline import check_books, config, lines

from g1_ray.config import RunConfig
from g1_ray.pipeline.checkup import CALL_TIMEOUT_S
from g1_ray.pipeline.run import Pipeline
from jobs.train import train

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(3600)]
ROLES = {"env worker": "ray::EnvActor", "buffer": "ray::BufferActor", "engine": "ray::EngineActor",
         "learner": "ray::LearnerActor", "core": "EngineCore"}  # fmt: skip
LATEST_S = {"env worker": 120, "buffer": 120, "engine": 240, "learner": 180, "core": 300}
"""From the kill to the next step, on two cores that others use too, a hang's notice included."""


def small(out: Path, kind: str, **learner: int) -> RunConfig:
    made = config(out, "run", 100_000, kind, staleness=1, lora=0)
    return made.model_copy(
        update={
            "checkpoint_every": 4,
            "canary_every": 2,
            "eval": made.eval.model_copy(update={"every": 0, "lab_every": 0, "runs": 0}),
            "asynchrony": made.asynchrony.model_copy(update={"hang_s": 20.0, "num_env_workers": 2, "env_cpus": 0.2}),
            "learner": made.learner.model_copy(update=learner),
            "engine": made.engine.model_copy(update={"core": "process"}),  # with vLLM, one more to be killed
        }
    )


def processes(role: str) -> list[psutil.Process]:
    """Those of a role, of the cluster that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join([process.name(), *process.cmdline()]).find(ROLES[role]) >= 0:
                found.append(process)
        except psutil.Error:
            continue
    return found


class Onlooker(threading.Thread):
    """Beside a run in this process."""

    def __init__(self, run: RunConfig) -> None:
        super().__init__(daemon=True)
        self.run_config = run

    def steps(self) -> list[float]:
        """When each step was made, in the order of the file."""
        file = self.run_config.folder / "metrics.jsonl"
        return [json.loads(line)["time"] for line in file.read_text().split("\n")[:-1]] if file.is_file() else []

    def until(self, ready, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (over := ready()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return bool(over)


class Reaper(Onlooker):
    """Kills, waits until the run has made another step, and so on; then has it stop, if it `ends` it."""

    def __init__(
        self,
        run: RunConfig,
        kills: list[tuple[str, signal.Signals]],
        seed: int = 0,
        ends: bool = True,
        pause_s: float = 4.0,
    ) -> None:
        super().__init__(run)
        self.kills, self.rng, self.ends, self.pause_s = kills, random.Random(seed), ends, pause_s
        self.took: list[tuple[str, str, float]] = []
        """Role, signal, seconds to the next step."""
        self.late: list[str] = []

    def run(self) -> None:
        try:
            assert self.until(lambda: len(self.steps()) >= 2, 600), "no step was made"
            for role, number in self.kills:
                time.sleep(self.rng.random() * self.pause_s)
                assert self.until(lambda role=role: processes(role), 120), f"no {role}"
                at, victim = time.time(), self.rng.choice(processes(role))
                victim.send_signal(number)
                # A step that was nearly made comes all the same: two tell that it goes on.
                if not self.until(lambda at=at: sum(step > at for step in self.steps()) >= 2, LATEST_S[role]):
                    self.late.append(f"{role} {number.name}")
                    break
                self.took.append((role, number.name, time.time() - at))
                print(
                    f"\n{time.strftime('%H:%M:%S')} {role} {number.name}: {self.took[-1][2]:.1f} s", end="", flush=True
                )
        except Exception as error:  # noqa: BLE001 - told by the test
            self.late.append(repr(error))
        finally:
            if self.ends:
                os.kill(os.getpid(), signal.SIGTERM)  # the run ends in order


def check(run: RunConfig, reaper: Reaper) -> None:
    """What holds after any number of deaths."""
    notes = [line["note"] for line in lines(run.folder, "notes.jsonl")]
    assert not reaper.late and len(reaper.took) == len(reaper.kills), (reaper.late, notes[-20:])
    report = check_books(run.folder)
    steps = [line["step"] for line in lines(run.folder, "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and report["steps"] == len(steps)
    fates = Counter(line["group"] for line in lines(run.folder, "ledger.jsonl") if "fate" in line)
    assert set(fates.values()) == {1}  # nothing is trained on twice, nothing booked twice
    trained = [line for line in lines(run.folder, "ledger.jsonl") if line.get("fate") == "trained"]
    assert len(trained) == len(steps) * run.rollout.groups_per_step
    recovered = {name.partition("/")[2] for name in report["last_metrics"] if name.startswith("recovered/")}
    assert recovered >= {"engine" if role == "core" else role for role, _ in reaper.kills}
    assert report["groups"]["quarantined"] == 0  # no group is blamed


def leftovers(before: set[str]) -> list[str]:
    """Files in shared memory that were not there before; Ray's object store and Python's semaphores aside."""
    return [name for name in set(os.listdir("/dev/shm")) - before if not name.startswith(("plasma", "sem."))]


def outlives(run: RunConfig, kills: list[tuple[str, signal.Signals]], seed: int = 0) -> None:
    before, reaper = set(os.listdir("/dev/shm")), Reaper(run, kills, seed)
    reaper.start()
    assert train(run) == 0
    check(run, reaper)
    assert reaper.until(lambda: not any(map(processes, ROLES)) and not leftovers(before), 30)


def test_a_run_outlives_the_death_of_an_env_worker_and_of_an_engine(ray_cluster, tmp_path, capfd):
    """Those of learner and buffer: `test_deterministic.py`."""
    outlives(small(tmp_path, "transformers"), [(role, signal.SIGKILL) for role in ("env worker", "engine")])
    assert "constructor arguments" not in capfd.readouterr().err  # Ray's warning that a part can't be started anew


@pytest.mark.parametrize("role, when", [("buffer", "save"), ("buffer", "close"), ("learner", "save")])
def test_a_run_outlives_a_part_that_hangs_while_the_driver_waits_for_it(ray_cluster, tmp_path, monkeypatch, role, when):
    """Outside of the graphs: while a checkpoint is made, and when the books are closed."""
    made = small(tmp_path, "transformers").model_copy(update={"steps": 6})
    call, stopped, stopped_at = getattr(Pipeline, when), [], []

    def stop_and_call(pipeline: Pipeline, *arguments: object, **more: object) -> object:
        if not stopped:
            stopped.extend(processes(role))
            stopped[0].send_signal(signal.SIGSTOP)
            stopped_at.append(time.time())
        return call(pipeline, *arguments, **more)

    monkeypatch.setattr(Pipeline, when, stop_and_call)
    began = time.monotonic()
    assert train(made) == 0
    assert time.monotonic() - began < CALL_TIMEOUT_S  # nobody has waited for an answer that never comes
    report = check_books(made.folder)
    assert report["steps"] == 6
    if when == "save":
        assert report["last_metrics"][f"recovered/{role}"] == 1
    if (role, when) == ("learner", "save"):  # until it is noticed, rollouts go on as far as they may
        ticks = [json.loads(line) for line in (made.folder / "trace.jsonl").read_text().splitlines()]
        meanwhile = [
            tick for tick in ticks if tick["kind"] == "rollout" and stopped_at[0] < tick["start"] < tick["end"]
        ]
        assert any(tick["end"] < stopped_at[0] + made.asynchrony.hang_s and tick["groups"] for tick in meanwhile)
    assert not stopped[0].is_running() or stopped[0].status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("kind, ranks", [("transformers", 1), ("vllm", 1), ("transformers", 2)])
def test_kills_and_stops_of_random_roles(ray_cluster, tmp_path, kind, ranks):
    """One in six a SIGSTOP."""
    seed = int(os.environ.get("G1_RAY_CHAOS_SEED", "0"))
    rng, roles = random.Random(seed), [role for role in ROLES if role != "core" or kind == "vllm"]
    drawn = [rng.choice(roles) for _ in range(int(os.environ.get("G1_RAY_KILLS", "20")))]
    kills = [(role, signal.SIGSTOP if rng.random() < 1 / 6 else signal.SIGKILL) for role in drawn]
    outlives(small(tmp_path, kind, num_ranks=ranks), kills, seed)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_driver_that_is_killed_at_any_moment_is_gone_on_from(tmp_path):
    """G1_RAY_DRIVER_KILLS times (default 5): no line is missing or there twice, and no more steps are made again than
    since the newest checkpoint."""
    rng, before = random.Random(int(os.environ.get("G1_RAY_CHAOS_SEED", "0"))), set(os.listdir("/dev/shm"))
    run = small(tmp_path, "transformers").model_copy(update={"steps": 100_000, "checkpoint_every": 2})
    file = tmp_path / "run.json"
    file.write_text(run.to_json())
    env = {**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "jobs", "train", str(file), "--resume", "auto"]
    reaper = Reaper(run, [])
    for number in range(int(os.environ.get("G1_RAY_DRIVER_KILLS", "5"))):
        there = len(reaper.steps())
        with (tmp_path / f"{number}.log").open("w") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        begun = time.time()
        came = reaper.until(lambda begun=begun: any(step > begun for step in reaper.steps()), 300)
        assert came and driver.poll() is None, (tmp_path / f"{number}.log").read_text()[-3000:]
        time.sleep(rng.random() * 8)
        at, steps = time.time(), len(reaper.steps())
        driver.kill()
        driver.wait()
        again = [line["step"] for line in lines(run.folder, "metrics.jsonl")]
        print(
            f"\n{time.strftime('%H:%M:%S')} driver killed at step {steps}, {at - begun:.0f} s after its start", end=""
        )
        assert again == list(range(1, len(again) + 1)) and len(again) >= there - run.checkpoint_every
        assert reaper.until(lambda: not leftovers(before), 60), leftovers(before)  # actors end by themselves
    last = len(reaper.steps()) + 3
    assert subprocess.run([*command, f"steps={last}"], env=env, capture_output=True, timeout=600).returncode == 0
    report = check_books(run.folder)
    steps = [line["step"] for line in lines(run.folder, "metrics.jsonl")]
    assert steps == list(range(1, last + 1)) and report["groups"]["quarantined"] == 0
    fates = Counter(line["group"] for line in lines(run.folder, "ledger.jsonl") if "fate" in line)
    assert (
        set(fates.values()) == {1} and sum(fates.values()) == report["groups"]["issued"] - report["groups"]["in_flight"]
    )
    rows = pq.read_table(run.folder / "trajectories").to_pylist()
    places = Counter((row["group"], row["rollout"], row["turn"]) for row in rows)
    assert set(places.values()) == {1}
