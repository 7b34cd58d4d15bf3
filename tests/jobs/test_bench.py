"""Measuring works, on the smallest models: `make gpu` does the same on a GPU."""

import contextlib
import importlib.util
import json

import pytest

from jobs.__main__ import main


def rows(capsys, tmp_path, *argv):
    file = tmp_path / "figures.json"
    assert main(["bench", *argv, "--json", str(file)]) == 0
    made = json.loads(file.read_text())["rows"]
    told = capsys.readouterr().out.splitlines()
    assert [line.partition("   ")[0] for line in told] == [row["what"] for row in made]
    return made


def test_a_learner_beside_padded_batches(capsys, tmp_path):
    rounded, ours, theirs = rows(capsys, tmp_path, "learner")
    assert 0 < rounded["log-probabilities off by, nats"] < 0.1
    assert rounded["gradient norm / in float32"] == pytest.approx(1, abs=0.1)
    assert theirs["ours/theirs"] == pytest.approx(ours["answers/s"] / theirs["answers/s"])


def test_an_engine_and_weights_on_their_way_into_it(capsys, tmp_path):
    answers, sync = rows(capsys, tmp_path, "engine", "sync")
    assert answers["log-probabilities off the learner's by, nats"] < 1e-4 and answers["tokens/s"] > 0
    assert sync["canary, nats"] < 1e-4 and sync["a sync left out is noticed"]


def test_a_device_that_is_not_there_is_told(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "learner", "--device", "cuda"]) == 2
    assert "--device cuda: no GPU is to be seen" in capsys.readouterr().err
    assert main(["bench", "pipeline", "--minutes", "0"]) == 2
    assert "--minutes 0: must be more than 0" in capsys.readouterr().err
    assert main(["bench", "everything"]) == 2
    assert "'everything'" in capsys.readouterr().err


@pytest.mark.xdist_group("ray")
def test_a_buffer_books_all_that_it_is_given(capsys, tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setattr("jobs.bench.buffer.cluster", lambda: contextlib.nullcontext(ray_cluster))
    monkeypatch.setattr("jobs.bench.buffer.STEPS", 4)
    monkeypatch.setattr("jobs.bench.buffer.GROUPS_PER_STEP", 32)
    monkeypatch.setattr("jobs.bench.driver.cluster", lambda: contextlib.nullcontext(ray_cluster))
    monkeypatch.setattr("jobs.bench.driver.SECONDS", 0.5)
    monkeypatch.setattr("jobs.bench.driver.LANES", (4,))
    *buffers, driver = rows(capsys, tmp_path, "buffer", "driver")
    assert len(buffers) == 6 and all(row["samples/s"] > 0 for row in buffers[1:])
    assert driver["rollouts/s"] > 0


def test_a_learner_beside_trl_has_its_loss_and_its_gradient(capsys, tmp_path, monkeypatch):
    if importlib.util.find_spec("trl") is None:
        assert main(["bench", "learner", "--beside", "trl"]) == 2
        assert "pip install -e '.[trl]'" in capsys.readouterr().err
        pytest.skip("no trl")
    monkeypatch.setattr("jobs.bench.trl.ROUNDS", 1)
    (row,) = rows(capsys, tmp_path, "learner", "--beside", "trl")
    assert row["TRL's is off by"] < 1e-7 and row["TRL's / ours"] == pytest.approx(1, abs=1e-5)
    assert row["TRL/ours, CPU"] > 0


def test_what_is_measured_beside_trl_is_told(capsys):
    assert main(["bench", "engine", "--beside", "trl"]) == 2
    assert "for the learner alone" in capsys.readouterr().err
