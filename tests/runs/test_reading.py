"""Runs at a glance."""

import time

import pytest
from folders import small_config

from g1_ray.files import Lock, write_json
from g1_ray.runs.curves import save_curves
from g1_ray.runs.reading import runs_in
from g1_ray.runs.run_folder import RunFolder
from jobs.__main__ import main

BOOKS = {"issued": 1, "trained": 1, "dropped": 0, "quarantined": 0, "in_flight": 0}


def begun(out, name, rewards, **more):
    folder = RunFolder.open(small_config(out, name=name, trackers=[], steps=10, **more))
    for step, reward in enumerate(rewards, 1):
        folder.log(step, {"2048/reward": reward})
        time.sleep(0.002)
    return folder


@pytest.fixture
def out(tmp_path):
    """Runs in every state, a cold start, and what is none of them."""
    begun(tmp_path, "done", [0.1, 0.9, 0.5]).write_report(BOOKS, 1.0)
    begun(tmp_path, "halted", [0.2]).write_report(BOOKS, 1.0, stopped=True)
    begun(tmp_path, "killed", [])
    begun(tmp_path, "broken", [0.3, float("nan")]).note("step 3 failed: out of memory", "Traceback")
    again = begun(tmp_path, "again", [0.4])
    again.write_report(BOOKS, 1.0)
    again.log(2, {"2048/reward": 0.4})  # went on, and was not heard of again
    again.note("failed: NCCL")
    begun(tmp_path, "at-work", [0.6])
    cold = tmp_path / "cold"
    write_json(cold / "config.json", {"name": "cold", "games": [{"game": "swap"}], "sft": {}})
    (cold / "metrics.jsonl").write_text('{"step": 7, "loss": 0.5}\n')
    save_curves(cold)
    write_json(tmp_path / "evaluation" / "config.json", {"players": [], "games": {}})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"name": ')
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_each_run_is_in_the_state_that_it_is_in(out):
    lock = Lock(out / "at-work")
    found = {run.name: run for run in runs_in(out)}
    assert {name: run.state for name, run in found.items()} == {
        "done": "finished", "halted": "stopped", "killed": "stopped", "broken": "failed", "again": "failed",
        "at-work": "running", "cold": "finished", "torn": "damaged",
    }  # fmt: skip
    lock.release()
    assert {run.name: run.state for run in runs_in(out)}["at-work"] == "stopped"
    done = found["done"]
    assert (done.steps, done.planned, done.games, dict(done.best)) == (3, 10, ("2048",), {"2048": 0.9})
    assert found["broken"].steps == 2 and found["broken"].best == {"2048": 0.3} and found["cold"].games == ("swap",)
    assert [run.name for run in runs_in(out / "done")] == ["done"]


def test_the_command_lists_them_the_newest_step_first(out, capsys):
    assert main(["runs", str(out)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "run" and "best reward" in head and len(lines) == 8
    told = {line.split()[0].rpartition("/")[2]: line.split() for line in lines}
    assert told["done"][1:6] == ["2048", "finished", "3", "2048", "0.90"]
    assert told["halted"][1:6] == ["2048", "stopped", "1", "of", "10"]
    order = [line.split()[0].rpartition("/")[2] for line in lines]
    assert order.index("at-work") < order.index("again") < order.index("done")
    assert main(["runs", str(out / "nowhere")]) == 2
    assert "no run there; g1-ray train" in capsys.readouterr().err
