"""Where the metrics of a run go beside metrics.jsonl: TensorBoard, Ray, W&B, Trackio, MLflow, or what a module adds.

TRACKERS["mine"] = TrackerKind(MyTracker)    in a module of your own, for trackers = ["module:mine"]

A run that goes on writes to what it wrote to before, which is found by the run's identity.
"""

import importlib.util
import logging
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from envs.registry import Registry
from g1_ray.config import RunConfig
from g1_ray.files import read_lines
from g1_ray.runs.shapes import Note

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

PROJECT = "g1_ray"
"""What W&B, Trackio and MLflow keep all runs under."""


class Tracker(Protocol):
    """Takes the metrics of a run. Made from its folder, its config and the first step that it will log."""

    look: str
    """How to see them, e.g. "tensorboard --logdir runs"."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step, all finite."""

    def close(self) -> None:
        """Nothing follows."""


@dataclass(frozen=True)
class TrackerKind:
    """A kind of tracker."""

    open: Callable[[Path, RunConfig, int], Tracker]
    """Imports no sooner what the tracker needs."""
    package: str = ""
    """What has to be installed, e.g. "wandb"."""


class Trackers:
    """The open trackers of a run. One that fails while the run goes on is left out from there on."""

    def __init__(self, path: Path, config: RunConfig, step: int) -> None:
        self._open: dict[str, Tracker] = {}
        for name in config.trackers:
            try:
                self._open[name] = TRACKERS.find(name).open(path, config, step)
            except Exception as error:
                raise ValueError(f"trackers: {name!r} does not open: {_line(error)}") from error

    def looks(self) -> list[str]:
        """How to see each, those that say so."""
        return [tracker.look for tracker in self._open.values() if tracker.look]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step, to all of them."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(step, metrics)
            except Exception as error:
                del self._open[name]
                told = "trackers: %r failed and has nothing from step %d on; metrics.jsonl has all. %s"
                logging.getLogger(__name__).warning(told, name, step, _line(error))

    def close(self) -> None:
        """Closes all."""
        for tracker in self._open.values():
            tracker.close()
        self._open = {}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def identity(path: Path, config: RunConfig) -> str:
    """What a run is known by elsewhere: its name and when it was begun, the same whenever it goes on."""
    return f"{config.name}-{int(read_lines(path / 'notes.jsonl', Note)[0]['time'])}"


class TensorBoard:
    """Event files in the run's folder. What was logged before from a step on is taken back once that is made again."""

    def __init__(self, path: Path, config: RunConfig, step: int) -> None:
        self._folder = path / "tensorboard"
        self.look = shlex.join(["tensorboard", "--logdir", config.out])  # all runs, side by side
        self._begin(step)

    def _begin(self, step: int) -> None:
        from tensorboardX import SummaryWriter

        files = len(list(self._folder.glob("*")))  # their other names are whole seconds
        suffix = f".{step}.{files}"
        self._writer = SummaryWriter(str(self._folder), purge_step=step, filename_suffix=suffix, flush_secs=10)
        self._next = step

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step < self._next:  # the run went back to a checkpoint
            self._writer.close()
            self._begin(step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._next = step + 1

    def close(self) -> None:
        self._writer.close()


class RayMetrics:
    """Gauges of the cluster that the run is on, as Prometheus collects them: jobs/grafana.json shows them.

    A game's metric has the game as a label, `shisen/reward` is ray_g1_reward{run="...", game="shisen"}; others have
    their path in the name, `groups/trained` is ray_g1_groups_trained{run="..."}.
    """

    look = ""

    def __init__(self, path: Path, config: RunConfig, step: int) -> None:
        self._run, self._games = config.name, {game.name for game in config.games}
        self._gauges: dict[str, Gauge] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for path, value in {"step": float(step), **metrics}.items():
            game, _, name = path.rpartition("/")
            if game not in self._games:
                game, name = "", path
            self._gauge(name).set(value, {"run": self._run, "game": game})

    def _gauge(self, name: str) -> "Gauge":
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            known = re.sub(r"\W", "_", name)
            self._gauges[name] = Gauge(f"g1_{known}", f"{name}, of the newest step", tag_keys=("run", "game"))
        return self._gauges[name]

    def close(self) -> None:
        """What was told last stays until the process ends."""


class Wandb:
    """W&B takes no step back: of a step that was logged before a run went on again, the first metrics stay."""

    def __init__(self, path: Path, config: RunConfig, step: int) -> None:
        import wandb

        about = {"name": config.name, "dir": str(path), "config": config.model_dump(mode="json")}
        self._run = wandb.init(project=PROJECT, id=identity(path, config), resume="allow", **about)
        self.look = self._run.url or ""  # none offline

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio knows runs by name, and keeps both where a step is logged again."""

    def __init__(self, path: Path, config: RunConfig, step: int) -> None:
        import trackio

        about = {"config": config.model_dump(mode="json"), "embed": False}
        self._run = trackio.init(project=PROJECT, name=identity(path, config), resume="allow", **about)
        self.look = f"trackio show --project {PROJECT}"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """At MLFLOW_TRACKING_URI. MLflow keeps both where a step is logged again, and shows the later one last."""

    def __init__(self, path: Path, config: RunConfig, step: int) -> None:
        import mlflow
        from mlflow.entities import Metric

        self._metric, self._client, name = Metric, mlflow.MlflowClient(), identity(path, config)
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT)
        found = self._client.search_runs([experiment], f"tags.`{PROJECT}.run` = '{name}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            made = self._client.create_run(experiment, run_name=config.name, tags={f"{PROJECT}.run": name})
            self._run = made.info.run_id
            self._client.log_dict(self._run, config.model_dump(mode="json"), "config.json")
        where = mlflow.get_tracking_uri()
        self.look = where if where.startswith("http") else shlex.join(["mlflow", "ui", "--backend-store-uri", where])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in metrics.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


TRACKERS: Registry[TrackerKind] = Registry(
    "tracker",
    tensorboard=TrackerKind(TensorBoard, "tensorboardX"),
    ray=TrackerKind(RayMetrics),
    wandb=TrackerKind(Wandb, "wandb"),
    trackio=TrackerKind(Trackio, "trackio"),
    mlflow=TrackerKind(MLflow, "mlflow"),
)


def check_trackers(names: Iterable[str]) -> None:
    """Raises `ValueError` where there is no such tracker, or what it needs is not installed."""
    for name in names:
        package = TRACKERS.find(name).package
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(f"trackers: {name!r} needs the package {package}: pip install {package}, or leave it out")
