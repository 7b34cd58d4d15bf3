"""Runs on clusters of several nodes: raylets of their own on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cluster import can_unshare

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)]


def scenario(*arguments: object) -> dict:
    """What one comes to, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("nodes.py")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAY_ADDRESS": ""}, timeout=800)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(lines[-1])


def test_every_role_lands_on_its_own_nodes_in_whatever_order_they_come(tmp_path):
    found = scenario("arrivals", tmp_path)
    assert len(found) == 6
    assert all(
        where == {"learner": ["learner"], "engine": ["inference"], "env": ["env"]} for where in found.values()
    ), found


@pytest.mark.chaos
@pytest.mark.parametrize("part", ["engine 0", "learner 0"])
def test_a_run_outlives_the_loss_of_a_node(tmp_path, part):
    made = scenario("loss", tmp_path, part)
    lost, report = made["lost"], made["report"]
    print(f"\n{lost['parts']} lost with their node: {lost['took']:.1f} s to the fourth step after that", end="")
    assert made["status"] == 0 and part in lost["parts"] and report["steps"] >= lost["step"] + 2
    assert report["groups_add_up"] and report["ledger_agrees"] and report["groups"]["quarantined"] == 0
    steps = [json.loads(line)["step"] for line in (Path(made["folder"]) / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, report["steps"] + 1))


def test_a_step_sends_each_node_one_copy_of_what_is_trained(tmp_path):
    """However many engines it has: of the language model without its frozen tower, or of the adapter alone."""
    for name, made in scenario("traffic", tmp_path).items():
        trained, came, steps = made["trained"], made["came"], len(made["loaded"])
        told = ", ".join(f"{node} {came[node] / 1e6:.3f} MB" for node in came)
        print(f"\n{name}: {trained / 1e6:.3f} MB trained; to each node in {steps} steps {told}", end="")
        assert made["status"] == 0 and steps == 4
        assert made["engines"] == {"learner": 0, "two": 2, "one": 1, "env": 0}
        assert all(trained < loaded < trained + made["frozen tower"] / 10 for loaded in made["loaded"])  # names, too
        for node in ("two", "one"):
            assert came[node] == pytest.approx(sum(made["loaded"]), rel=0.005)
        assert came["env"] < 0.1 * trained  # the words of the prompts


@pytest.mark.skipif(not can_unshare(), reason="needs a mount namespace of its own")
def test_a_run_is_refused_where_a_node_has_another_folder_under_its_name(tmp_path):
    made = scenario("hidden", tmp_path)
    assert "does not see the run's folders as they are here: No such file or directory.\nGive out=..." in made["said"]
    assert not made["groups"] and not made["left"]


def test_a_run_asks_for_nodes_and_gives_them_back(tmp_path):
    """Ray's autoscaler, from a head without CPUs."""
    made = scenario("grow", tmp_path)
    print(f"\nidle nodes were gone {made['took']:.1f} s after the run", end="")
    assert made["status"] == 0 and made["left"] == 0
    assert made["report"]["steps"] == 2 and made["report"]["groups_add_up"]
