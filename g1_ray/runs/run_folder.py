"""The folder of a run: all that is left of it afterwards, and all that it needs to go on.

    config.json                  as resolved, every default filled in
    metrics.jsonl, tensorboard/  a line for each step
    ledger.jsonl                 a line for each group that came to an end, and one for each checkpoint
    trajectories/*.parquet       a row for each turn: g1_ray/runs/trajectories.py
    checkpoints/step-N/          the newest ones
    status.json                  how its parts are, while it runs
    trace.jsonl, notes.jsonl     when each tick ran; what was out of the ordinary, tracebacks whole
    logs/*.log                   of each process
    report.json                  what it came to
    taken-back/                  what came after a checkpoint that the run went on from

Two processes have it open, and write different files: the driver, and the buffer's actor (ledger and trajectories).
When a run goes on from the checkpoint of step N, whatever came after N is taken back, so that all counts are right, and
kept aside. N is the newest that is intact; newer ones are called `broken-step-M` from then on. Where none is, and steps
were trained, the run does not go on.
"""

import contextlib
import functools
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from g1_ray.config import RunConfig, load_config
from g1_ray.config_text import changes
from g1_ray.files import (
    LOCK,
    Journal,
    Lock,
    check_writable,
    part_of,
    read_json,
    read_lines,
    set_aside,
    steps_in,
    take_back,
    write_json,
    write_text,
)
from g1_ray.models.manifest import fault_of
from g1_ray.runs import checkpoints
from g1_ray.runs.shapes import Entry, Step
from g1_ray.runs.trackers import Trackers
from g1_ray.runs.trajectories import TrajectoryWriter, files_in, packed_rows
from g1_ray.types import Fate, Group

FATES = ("trained", "dropped", "quarantined")
TAKEN_BACK = "taken-back"
log = logging.getLogger(__name__)


class RunFolder:
    """A run folder that exists. `open` makes one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._checkpoints = self.path / "checkpoints"
        if not (self.path / "config.json").is_file():
            raise ValueError(f"{self.path}: no config.json, so this is not the folder of a run")
        self._journals: dict[str, Journal] = {}
        self._trackers: Trackers | None = None
        self._lock: Lock | None = None
        self._made: list[Path] = []  # folders that were not there before it was opened, its own first
        self.changed: dict[str, str] = {}
        """Options that a run goes on with other than before, e.g. {"rollout.group_size": "8 -> 16"}."""
        self.goes_on_from: Path | None = None
        """The checkpoint, every byte of which has been looked at."""

    @classmethod
    def open(cls, config: RunConfig, resume: bool = False) -> "RunFolder":
        """The folder of a run that starts, or, with `resume`, that goes on from its newest checkpoint.

        It is this process's until it is closed. A run that never made a step starts anew. Raises `ValueError` where a
        run is there and `resume` is not set, where none is and `resume` is, where the run that is there is another one,
        and where another process has it.
        """
        before = cls.check(config, resume)
        path = config.folder
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        lock = Lock(path)
        changed: dict[str, str] = {}
        checkpoint, told = None, ["starts"]
        try:
            if before:
                changed = before._changes(config) if resume else {}
                checkpoint, told = before.rewind()
            write_text(path / "config.json", config.to_json())
        except BaseException:
            lock.release()
            raise
        folder = cls(path)
        folder._lock, folder.changed, folder._made = lock, changed, made
        folder.goes_on_from = checkpoint if resume else None
        for line in [*told, *(f"{key}: {what}" for key, what in changed.items())]:
            folder.note(line)
        return folder

    def discard(self) -> None:
        """Of a run that could not even be started: leaves nothing where there was nothing."""
        self.close()
        if self._made:
            shutil.rmtree(self.path)
        with contextlib.suppress(OSError):  # somebody else has come to need one
            for folder in self._made[1:]:
                folder.rmdir()

    @classmethod
    def check(cls, config: RunConfig, resume: bool = False) -> "RunFolder | None":
        """The run that is there, if one is. Raises `ValueError` as `open` does, as far as can be seen from outside."""
        path = config.folder
        check_writable(path)
        there = path.is_dir() and any(file.name != LOCK for file in path.iterdir())
        if path.is_file() or (there and not (path / "config.json").is_file()):
            raise ValueError(f"{path} is there and is not the folder of a run; give another name or out")
        if not there:
            if resume:
                raise ValueError(
                    f"{path}: no run to go on with.\nLeave out --resume to start one, or mend name or out."
                )
            return None
        before = cls(path)
        if not resume and (before.num_steps or steps_in(before._checkpoints)):
            raise ValueError(
                f"{path} holds a run already, {before.num_steps} steps of it.\n"
                f"Give --resume to go on with it, or another name: name={config.name}-2"
            )
        if resume:
            before._changes(config)
        return before

    @functools.cached_property
    def config(self) -> RunConfig:
        """The run's config."""
        return load_config(self.path / "config.json")

    def _changes(self, config: RunConfig) -> dict[str, str]:
        """What differs from the run that is there. A checkpoint is of its model and its seed; all else may change."""
        changed = changes(read_json(part_of(self.path, "config.json"), dict[str, Any]), config)
        changed.pop("out", None)  # it has been moved
        fixed = [key for key in changed if key == "seed" or key.startswith("model.")]
        if fixed:
            raise ValueError(
                f"{self.path} is a run with another {', '.join(fixed)} ({changed[fixed[0]]}); it can't go on with that."
                f"\nPut back what {self.path / 'config.json'} says, or give another name: name={config.name}-2"
            )
        return changed

    # Metrics

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of metrics.jsonl, where NaN and infinities become null, and the same to the trackers without them."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._append("metrics.jsonl", {"step": step, "time": time.time(), **dict.fromkeys(metrics), **finite})
        if self._trackers:
            self._trackers.log(step, finite)

    def track(self) -> list[str]:
        """From now on, metrics go to the config's trackers too. Gives how to look at them."""
        self._trackers = Trackers(self.path, self.config, self.num_steps + 1)
        return self._trackers.looks()

    @property
    def num_steps(self) -> int:
        """Steps that metrics.jsonl has, counted from the run's start."""
        lines = self._lines("metrics.jsonl", Step)
        return int(lines[-1]["step"]) if lines else 0

    def _lines(self, name: str, shape: Any) -> list[Any]:
        return read_lines(part_of(self.path, name), shape)

    # Groups

    def log_fate(self, fate: Fate) -> None:
        """A line of the ledger: what became of a group."""
        self._append("ledger.jsonl", asdict(fate))

    def log_books(self, line: Mapping[str, Any]) -> None:
        """A line of the ledger that is no group's end: what the buffer needs to come back after a death."""
        self._append("ledger.jsonl", line)

    def ledger_lines(self) -> list[dict[str, Any]]:
        """All lines of the ledger."""
        return self._lines("ledger.jsonl", Entry)

    def learned(self) -> dict[str, Any] | None:
        """What the curriculum had learned when the newest checkpoint was made, if there is one."""
        state = Path("learner", "state.json")
        for checkpoint in reversed(self.checkpoints()):
            if not fault_of(checkpoint, only=str(state)):  # all of it may be a hundred gigabytes
                books = read_json(checkpoint / state)["extra"]["buffer"]
                learned: dict[str, Any] | None = books.get("curriculum")
                return learned
        return None

    def keep_group(self, group: Group) -> None:
        """Stores a group's turns among the trajectories."""
        self.keep_rows(packed_rows(group))

    def keep_rows(self, rows: bytes) -> None:
        """The same with its rows as they are made elsewhere (`packed_rows`)."""
        self._trajectories.add(rows)

    @functools.cached_property
    def _trajectories(self) -> TrajectoryWriter:
        return TrajectoryWriter(self.path / "trajectories")

    def mark(self, step: int, num_issued: int) -> None:
        """Says in the ledger that a checkpoint of this step follows, for which `num_issued` groups had been issued.

        To be called together with the buffer's `state_dict`, so that both speak of the same moment.
        """
        self._trajectories.flush()
        files = len(files_in(self.path / "trajectories"))
        self._append("ledger.jsonl", {"checkpoint": step, "issued": num_issued, "files": files})

    def saved(self, step: int) -> None:
        """Says in the ledger that the checkpoint of this step is there: a run that lacks it has lost it."""
        self._append("ledger.jsonl", {"saved": step})

    def ledger(self) -> list[Fate]:
        """The fates of all groups that came to an end."""
        return [Fate(**line) for line in self._lines("ledger.jsonl", Entry) if "fate" in line]

    # Checkpoints

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step goes. The learner writes it beside and renames it, so it is whole if there."""
        return self._checkpoints / f"step-{step}"

    def checkpoints(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return checkpoints.checkpoints(self._checkpoints)

    def prune_checkpoints(self, keep: int) -> None:
        """Removes all but the newest `keep`."""
        checkpoints.prune(self._checkpoints, keep)

    # What else there is to say

    def trace(self, kind: str, lane: int, start: float, end: float, **about: Any) -> None:
        """When a tick ran, Unix time in s."""
        self._append("trace.jsonl", {"kind": kind, "lane": lane, "start": start, "end": end, **about})

    def note(self, text: str, trace: str = "") -> None:
        """Something out of the ordinary, with the traceback of an error."""
        self._append("notes.jsonl", {"time": time.time(), "note": text} | ({"traceback": trace} if trace else {}))

    def write_status(self, status: Mapping[str, Any]) -> None:
        """status.json: how the parts are just now (`shapes.Status`)."""
        write_json(self.path / "status.json", status)

    def write_report(self, books: Mapping[str, int], seconds: float, **more: Any) -> dict[str, Any]:
        """report.json: what the run came to. `seconds` is how long it took since it was started or went on.

        `books` are the buffer's, which have to add up and to agree with the ledger: whether they do is in the report.
        """
        ended = Counter(fate.fate for fate in self.ledger())
        latest, lines = self.checkpoints()[-1:], self._lines("metrics.jsonl", Step)
        report = {
            "name": self.config.name,
            "steps": self.num_steps,
            "seconds": round(seconds, 1),
            "groups": dict(books),
            "groups_add_up": books["issued"] == sum(books[fate] for fate in FATES) + books["in_flight"],
            "ledger_agrees": all(ended[fate] == books[fate] for fate in FATES),
            "checkpoint": str(latest[0].relative_to(self.path)) if latest else None,
            "last_metrics": lines[-1] if lines else {},
            **more,
        }
        write_json(self.path / "report.json", report)
        return report

    def save_curves(self) -> Path:
        """curves.png and curves.csv: reward, P_acc and R_acc of every game."""
        from g1_ray.runs.curves import save_curves

        return save_curves(self.path)

    def close(self) -> None:
        """Writes out what is kept in memory, and closes all files."""
        if "_trajectories" in self.__dict__:
            self._trajectories.flush()
        for journal in self._journals.values():
            journal.close()
        if self._trackers:
            self._trackers.close()
        if self._lock:
            self._lock.release()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        if name not in self._journals:
            self._journals[name] = Journal(self.path / name)
        self._journals[name].append(line)

    # Going on

    def rewind(self) -> tuple[Path | None, list[str]]:
        """Takes back what came after the newest intact checkpoint, or everything where there never was one.

        Gives that checkpoint, and what there is to tell. Nobody else may have the ledger or the trajectories open.
        Raises `ValueError`, and touches nothing, where steps would be lost.
        """
        for journal in self._journals.values():
            journal.close()
        metrics, ledger = self._lines("metrics.jsonl", Step), self._lines("ledger.jsonl", Entry)
        latest, broken = checkpoints.newest(self._checkpoints)
        step = int(latest.name.partition("-")[2]) if latest else 0
        marks = [i for i, line in enumerate(ledger) if line.get("checkpoint") == step]
        if not latest and (metrics or ledger) and (broken or any("saved" in line for line in ledger)):
            raise ValueError(self._nothing_intact(broken, metrics))
        if step and not marks:
            raise ValueError(
                f"{self.path / 'ledger.jsonl'} says nothing of the checkpoint of step {step}.\n"
                f"Restore that file, or start anew under another name: name={self.path.name}-2"
            )
        kept = ledger[: marks[-1] + 1] if marks else []
        mark = kept[-1] if kept else {"issued": 0, "files": 0}
        ended = {line["group"] for line in kept if "fate" in line}
        lost = [Fate(group, "", "dropped", "lost", step, 0) for group in range(mark["issued"]) if group not in ended]
        files = files_in(self.path / "trajectories")
        known = [line for line in metrics if line["step"] <= step]
        aside = self.path / TAKEN_BACK
        saved = {"saved": step}
        gone = [line for line in ledger[len(kept) :] if line != saved]
        take_back(self.path / "ledger.jsonl", [*kept, *map(asdict, lost), *([saved] if step else [])], gone, aside)
        take_back(self.path / "metrics.jsonl", known, metrics[len(known) :], aside)
        for path in files[mark["files"] :]:
            aside.mkdir(exist_ok=True)
            path.rename(aside / f"{len(files_in(aside)):06d}-{path.name}")
        told = [f"{fault}; it is kept as {set_aside(path).name}" for path, fault in broken.items()]
        if step and (not known or known[-1]["step"] != step):
            told.append(f"{self.path / 'metrics.jsonl'} has not all of the {step} steps; the curves have a gap")
        if len(files) < mark["files"]:
            told.append(f"{self.path / 'trajectories'}: {len(files)} of {mark['files']} files are there")
        told.append(f"goes on from {latest.name}" if latest else "starts")
        if back := len(metrics) - len(known):
            told[-1] += f": {back} steps are taken back, and kept in {self.path / TAKEN_BACK}"
        for line in told if broken or back else ():
            log.warning("%s", line)
        return latest, told

    def _nothing_intact(self, broken: Mapping[Path, str], metrics: Sequence[Mapping[str, Any]]) -> str:
        fault = next(iter(broken.values()), f"{self._checkpoints}: there is none")
        more = f" (and {len(broken) - 1} more that are broken)" if len(broken) > 1 else ""
        trained = metrics[-1]["step"] if metrics else "some"
        return (
            f"{self.path}: {trained} steps were trained, and no checkpoint is intact to go on from.\n{fault}{more}\n"
            f"Restore that file, or start anew under another name: name={self.path.name}-2"
        )
