"""Metrics in other people's hands, while a run goes on and when it goes on again."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from folders import METRICS, small_config

import jobs
from g1_ray.config import load_config
from g1_ray.runs.run_folder import RunFolder
from g1_ray.runs.trackers import TRACKERS, TrackerKind, check_trackers


class Frail:
    """Takes the steps before the second one."""

    look = "frail show"

    def __init__(self, path, config, step):
        self.begun, self.had, self.closed = step, [], False
        Frail.last = self

    def log(self, step, metrics):
        if step >= 2:
            raise ConnectionError("the server is gone\nand more of it")
        self.had.append((step, metrics))

    def close(self):
        self.closed = True


@pytest.fixture
def table(monkeypatch):
    for name in ("frail", "steady", "shut"):
        monkeypatch.setitem(TRACKERS, name, TrackerKind(Frail))
    monkeypatch.setitem(TRACKERS, "steady", TrackerKind(type("Steady", (Frail,), {"log": lambda *_: None})))
    monkeypatch.setitem(TRACKERS, "shut", TrackerKind(lambda *_: {}["key"]))


def tracked(folder, *names):
    """A run folder that tracks, and how each tracker is looked at; the names need not be in the schema."""
    made = RunFolder.open(small_config(folder))
    made.config = made.config.model_copy(update={"trackers": names})
    return made, made.track()


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, table, caplog):
    folder, looks = tracked(tmp_path, "frail", "steady")
    assert looks == ["frail show", "frail show"]
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            folder.log(step, {"loss": 0.5, "kl": float("nan")})
    folder.close()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "'frail' failed" in told and "step 2 on" in told and told.endswith("ConnectionError: the server is gone")
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 3 and Frail.last.closed


def test_one_that_does_not_open_is_told_before_the_run(tmp_path, table):
    with pytest.raises(ValueError, match=r"^trackers: 'shut' does not open: KeyError: 'key'$"):
        tracked(tmp_path, "frail", "shut")
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])


def test_what_a_tracker_needs_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in (("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("trackio", "trackio")):
        with pytest.raises(ValueError, match=f"{name!r} needs the package {package}: pip install {package}"):
            check_trackers([name])
    check_trackers([])


def goes_on(folder, name):
    """Three steps of a run that goes on from the first one and makes another second step; how to look at it."""
    first, looks = tracked(folder, name)
    for step in (1, 2, 3):
        first.log(step, {"2048/reward": step / 2, "groups/dropped: flat": 3.0})
    first.close()
    lines = (first.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (first.path / "metrics.jsonl").write_text(lines[0])
    again = RunFolder(first.path)
    again.config = again.config.model_copy(update={"trackers": (name,)})
    assert again.track() == looks
    again.log(2, {"2048/reward": 9.0})
    again.close()
    return looks


def test_mlflow_has_one_run_for_a_run_that_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    assert goes_on(tmp_path / "runs", "mlflow") == [f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"]
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("g1_ray").experiment_id])
    assert (run.info.run_name, run.info.status) == ("small", "FINISHED")
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "2048/reward")]
    assert history == [(1, 0.5), (2, 1.0), (3, 1.5), (2, 9.0)] and run.data.metrics["groups/dropped: flat"] == 3


def test_trackio_has_one_run_for_a_run_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert goes_on(tmp_path / "runs", "trackio") == ["trackio show --project g1_ray"]
    (run,) = SQLiteStorage.get_run_records("g1_ray")
    assert run["name"].startswith("small-")
    logged = [(line["step"], line["2048/reward"]) for line in SQLiteStorage.get_logs("g1_ray", run["name"])]
    assert logged == [(1, 0.5), (2, 1.0), (3, 1.5), (2, 9.0)]


class Gauges(dict):
    """What was set, by name and labels."""

    def made(self, name, about, tag_keys):
        assert tag_keys == ("run", "game")
        return SimpleNamespace(set=lambda value, labels: self.update({(name, *labels.values()): value}))


def test_ray_has_every_metric_and_the_dashboard_asks_for_what_there_is(monkeypatch):
    import ray.util.metrics

    gauges = Gauges()
    monkeypatch.setattr(ray.util.metrics, "Gauge", gauges.made)
    config = load_config(JOBS / "configs" / "quickstart.toml")
    tracker = TRACKERS["ray"].open(Path(), config, 1)
    tracker.log(3, {"shisen/reward": 1.5, "groups/trained": 7.0, "reward": 1.0, "recovered/env worker": 2.0})
    name = config.name
    assert gauges == {
        ("g1_step", name, ""): 3.0,
        ("g1_reward", name, "shisen"): 1.5,
        ("g1_groups_trained", name, ""): 7.0,
        ("g1_reward", name, ""): 1.0,
        ("g1_recovered_env_worker", name, ""): 2.0,
    }
    asked = set(re.findall(r"ray_g1_(\w+)", (JOBS / "grafana.json").read_text()))
    logged = {re.sub(r"\W", "_", metric) for metric in METRICS} | {"step"}
    assert asked <= logged, asked - logged


JOBS = Path(jobs.__path__[0])
