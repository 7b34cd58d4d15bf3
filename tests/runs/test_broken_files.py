"""Every file of a run, an evaluation and a model, broken in every way: refused by name, or told and done without.

Nothing ends in a fault of another kind, takes long or takes much memory, and no line and no checkpoint is lost.
"""

import contextlib
import json
import os
import resource
import shutil
import time
from pathlib import Path

import pytest
from folders import config_in, groups_of, write_evaluation
from test_run_folder import lines

from g1_ray.evaluation.folder import EvaluationFolder, Protocol
from g1_ray.evaluation.job import Answered, Entry
from g1_ray.evaluation.named import parse_game, parse_player
from g1_ray.evaluation.play import Reply
from g1_ray.models.chat import Chat
from g1_ray.models.find import check_model, model_path
from g1_ray.runs.checkpoints import published
from g1_ray.runs.run_folder import RunFolder
from g1_ray.types import Fate
from jobs.__main__ import main
from jobs.errors import told

SECRET = "correct horse battery staple"
SECONDS, BYTES = 10, 1 << 30


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a run, an evaluation and a model that nothing is wrong with."""
    root = tmp_path_factory.mktemp("sound")
    config = config_in(root, name="run")
    folder = RunFolder.open(config)
    for group in groups_of(config, 2):
        folder.keep_group(group)
    for step in (1, 2):
        folder.log(step, {"2048/reward": 0.5, "loss": 0.1})
        folder.log_fate(Fate(9 + step, "2048", "trained", "", step, 0))
        folder.mark(step, 12)
        folder.saved(step)
        with published(folder.checkpoint(step)) as beside:
            shutil.copytree(model_path("tiny-base"), beside, dirs_exist_ok=True)
            (beside / "learner").mkdir()
            (beside / "learner" / "state.json").write_text('{"version": 1, "skipped": 0, "extra": {}}')
    folder.write_report({"issued": 2, "trained": 2, "dropped": 0, "quarantined": 0, "in_flight": 0}, 60.0)
    folder.close()
    write_evaluation(folder.path / "eval", config)
    kept = EvaluationFolder(root / "evaluation", entries(), Protocol(1, 1))
    kept.keep(Answered(("2048", "far", 0, 0), Reply("up")))
    kept.close()
    shutil.copytree(model_path("tiny-base"), root / "model")
    return root


def entries():
    return [Entry(parse_game("2048"), parse_player("far=http://127.0.0.1:1/v1?model=m"))]


# What may be wrong with a file


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    path.unlink()
    data[len(data) // 3 if path.suffix == ".parquet" else 20] ^= 0xFF
    path.write_bytes(data)


def other(data: bytes):
    return lambda path: path.write_bytes(data)


def folder(path: Path) -> None:
    path.mkdir()


def linked(path: Path) -> None:
    path.symlink_to(os.environ["SECRET_FILE"])


DAMAGES = {
    "missing": lambda path: None,
    "empty": emptied,
    "junk": other(bytes(range(256)) * 40),
    "table": other(b"{}\n"),
    "list": other(b"[]\n"),
    "nothing": other(b"null\n"),
    "text": other(b'"\\u001b]0;owned\\u0007"\n'),
    "digits": other(b'{"step": ' + b"9" * 5000 + b', "games": 1e999}\n'),
    "not a number": other(b'{"step": NaN, "games": NaN, "fate": NaN}\n'),
    "deep": other(b"[" * 100_000 + b"]" * 100_000 + b"\n"),
    "latin-1": other('{"name": "é"}\n'.encode("latin-1")),
    "folder": folder,
    "nowhere": lambda path: path.symlink_to(path.with_name("not-there")),
    "elsewhere": linked,
    "pipe": lambda path: os.mkfifo(path),
    "huge": lambda path: (path.touch(), os.truncate(path, 1 << 34)),
}
IN_PLACE = {"cut": cut, "flipped": flipped}


# Who reads them: each raises, or gives what it said


def command(*words: str):
    def call(root: Path, capsys) -> str:
        status = main([word.replace("ROOT", str(root)) for word in words])
        said = capsys.readouterr()
        if status:
            raise Refused(said.err)
        return said.out + said.err

    return call


class Refused(Exception):
    """What a command said that refused."""


def resume(root: Path, capsys) -> str:
    before = kept_lines(root)
    steps = sum(1 for _ in (root / "run" / "checkpoints").glob("*step-*"))
    try:
        made = RunFolder.open(config_in(root, name="run"), resume=True)
        made.close()
    finally:
        assert before <= kept_lines(root) and steps == sum(1 for _ in (root / "run" / "checkpoints").glob("*step-*"))
    return "\n".join(line["note"] for line in lines(made.path / "notes.jsonl")[-4:])


def kept_lines(root: Path) -> set[str]:
    """The lines of metrics and ledger, wherever they are."""
    files = [file for file in (root / "run").rglob("*.jsonl") if file.is_file() and file.stat().st_size < 1e6]
    return {line for file in files for line in file.read_text(errors="replace").splitlines() if '"step"' in line}


def go_on(root: Path, capsys) -> str:
    kept = EvaluationFolder(root / "evaluation", entries(), Protocol(1, 1))
    with contextlib.closing(kept):
        return str(kept.replies())


def load(root: Path, capsys) -> str:
    check_model(str(root / "model"))
    return Chat(root / "model").opened


REPORT = command("report", "ROOT/run", "--rollouts", "1", "--workers", "1", "--out", "ROOT/page.html")
RUNS = command("runs", "ROOT/run")
GROUP = command("explain", "ROOT/run:10")
MOVE = command("explain", "ROOT/run:2048/oracle/5/0")
EXPORT = command("export", "ROOT/run", "--to", "datasets", "--limit", "1", "--out", "ROOT/export")
STEP = "run/checkpoints/step-2/"
FILES = {
    "run/config.json": (REPORT, GROUP, RUNS),
    "run/metrics.jsonl": (REPORT, RUNS, resume),
    "run/ledger.jsonl": (GROUP, resume),
    "run/notes.jsonl": (RUNS,),
    "run/report.json": (REPORT, RUNS),
    "run/trajectories/000000.parquet": (REPORT, GROUP, EXPORT),
    "run/eval/results.json": (REPORT,),
    "run/eval/lab.json": (REPORT,),
    "run/eval/moves/2048--oracle.parquet": (REPORT, MOVE, EXPORT),
    **{f"{STEP}{name}": (resume,) for name in ("manifest.json", "model.safetensors", "config.json", "tokenizer.json")},
    f"{STEP}learner/state.json": (resume,),
    "evaluation/config.json": (go_on,),
    "evaluation/replies.jsonl": (go_on,),
    "model/config.json": (load,),
    "model/model.safetensors": (load,),
    "model/tokenizer.json": (load,),
    "model/processor_config.json": (load,),
}
DONE_WITHOUT = {
    "run/config.json": ("missing", "nowhere", "table"),
    "run/metrics.jsonl": ("missing", "empty", "cut", "nowhere"),
    "run/ledger.jsonl": ("missing", "empty", "cut", "table", "nowhere"),
    "run/notes.jsonl": ("missing", "empty", "cut", "nowhere"),
    "run/report.json": ("missing", "table", "nowhere", "not a number"),
    "run/trajectories/000000.parquet": ("missing",),
    "run/eval/results.json": ("missing", "list", "nowhere"),
    "run/eval/lab.json": ("missing", "table", "nowhere"),
    "run/eval/moves/2048--oracle.parquet": ("missing",),
    "evaluation/config.json": (),
    "evaluation/replies.jsonl": ("missing", "empty", "cut", "nowhere"),
    "model/processor_config.json": ("missing", "table"),
}
"""File -> how it may be, and is gone on without a word: what is not there is left out, as is a line that is cut off."""
WHOLE_ONLY = ("cut", "flipped")
CASES = [
    (file, damage)
    for file in FILES
    for damage in (*DAMAGES, *(WHOLE_ONLY if Path(file).suffix in (".parquet", ".safetensors") else ("cut",)))
]


@pytest.fixture
def broken(sound, tmp_path, monkeypatch):
    """Makes a copy of all with one file broken."""

    def make(file: str, damage: str) -> Path:
        root = tmp_path / "copy"
        shutil.copytree(sound, root, copy_function=os.link)  # a file that is written to is another one first
        for name in ("metrics.jsonl", "ledger.jsonl", "notes.jsonl", ".lock", "config.json"):
            (root / "run" / name).unlink()
            shutil.copy(sound / "run" / name, root / "run" / name)
        for path in (root / "evaluation").iterdir():
            if path.is_file():
                path.unlink()
                shutil.copy(sound / "evaluation" / path.name, path)
        (tmp_path / "secret").write_text(SECRET)
        monkeypatch.setenv("SECRET_FILE", str(tmp_path / "secret"))
        if damage in IN_PLACE:
            IN_PLACE[damage](root / file)
        else:
            (root / file).unlink()
            DAMAGES[damage](root / file)
        return root

    return make


def test_there_are_many_kinds():
    assert len(CASES) >= 60


@pytest.mark.parametrize("file, damage", CASES)
def test_a_broken_file_is_refused_by_name_or_told(broken, capsys, caplog, file, damage):
    root, before = broken(file, damage), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in FILES[file]:
        begun = time.process_time()
        caplog.clear()
        try:
            said = read(root, capsys) + caplog.text
            refused = False
        except Refused as error:
            said, refused = str(error), True
        except Exception as error:
            said, refused = told(error), True
            assert said, repr(error)
        assert time.process_time() - begun < SECONDS
        assert not refused or len(said.splitlines()) <= 3, said
        named = Path(file).name in said or Path(file).parent.name in said
        assert (named and (refused or "broken" in said or "can't be read" in said or "damaged" in said)) or (
            not refused and damage in DONE_WITHOUT.get(file, ())
        ), said
        assert SECRET not in said and "\x1b" not in said
    page = root / "page.html"
    assert SECRET not in (page.read_text() if page.exists() else "")
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < BYTES


def test_all_is_well_where_nothing_is_broken(broken, capsys):
    root = broken("run/eval/lab.json", "missing")
    for read in dict.fromkeys(read for readers in FILES.values() for read in readers):
        read(root, capsys)
    assert json.loads((root / "run" / "config.json").read_text())["name"] == "run"
