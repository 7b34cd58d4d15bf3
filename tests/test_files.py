"""Files and folders are whole or not there, and lines outlive a crash."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from g1_ray.files import Journal, Lock, read_lines, write_json, write_lines, write_text, written


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("there", [True, False])
def test_an_error_leaves_everything_as_it_was(tmp_path, kind, there):
    path = tmp_path / "made"
    if there:
        write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), written(path) as beside:
        if kind == "file":
            beside.write_text("half")
        else:
            beside.mkdir()
            (beside / "part").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == (["made"] if there else []) and (not there or path.read_text() == "old")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_takes_the_place_of_another_kind_of_thing(tmp_path, kind):
    """A folder of somebody's work that has the name which a file is to get is not thrown away for it."""
    path = tmp_path / "made"
    if kind == "file":
        write_text(path / "thesis.txt", "years of work")
    else:
        write_text(path, "years of work")
    with pytest.raises(ValueError, match=f"made: there is a .*; give the name of a {kind}"), written(path) as beside:
        if kind == "file":
            beside.write_text("new")
        else:
            beside.mkdir()
    assert names(tmp_path) == ["made"]
    assert (path / "thesis.txt" if kind == "file" else path).read_text() == "years of work"


def test_a_file_is_replaced_at_the_end_and_not_before(tmp_path):
    path = tmp_path / "in" / "a.txt"
    write_text(path, "old")
    with written(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path / "in") == ["a.txt"]


def test_a_folder_that_holds_something_is_replaced_whole(tmp_path):
    path = tmp_path / "step-1"
    for name in ("old", "new"):
        with written(path) as beside:
            beside.mkdir()
            (beside / name).write_text(name)
    assert names(path) == ["new"] and names(tmp_path) == ["step-1"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_crash_left_is_not_mixed_in(tmp_path, kind):
    path, left = tmp_path / "step-1", tmp_path / ".step-1.part"
    if kind == "folder":
        left.mkdir()
        (left / "torn").write_text("half")
    else:
        left.write_text("half")
    with written(path) as beside:
        beside.mkdir()
        (beside / "whole").write_text("all")
    assert names(path) == ["whole"] and names(tmp_path) == ["step-1"]


def test_a_torn_last_line_is_left_out_when_read_and_mended_when_written(tmp_path):
    path = tmp_path / "ledger.jsonl"
    assert read_lines(path) == []
    write_lines(path, [{"group": 1}, ["é", None]])
    with path.open("a") as file:
        file.write('{"group": 2, "fa')
    assert read_lines(path) == [{"group": 1}, ["é", None]]
    journal = Journal(path)
    journal.append({"group": 3})
    assert read_lines(path) == [{"group": 1}, ["é", None], {"group": 3}]  # on disk at once
    journal.close()
    journal.append({"group": 4})
    journal.close()
    assert path.read_text().count("\n") == 4 == len(read_lines(path))


def test_a_journal_that_begins_with_a_torn_line_begins_anew(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"no')
    journal = Journal(path)
    with pytest.raises(ValueError):
        journal.append(float("nan"))
    journal.append(1)
    journal.close()
    assert path.read_text() == "1\n"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n' and names(tmp_path) == ["report.json"]


OWNER = """
import pathlib, subprocess, sys
from g1_ray.files import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "60"])  # a child that outlives its parent does not keep the lock
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_folder_has_one_owner_however_that_ends(tmp_path, ending):
    folder = tmp_path / "deep" / "run"
    command = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        child = int(owner.stdout.readline())
        with pytest.raises(ValueError, match=rf"run is in use by process {owner.pid} on .*, since 20.*\n.*end it"):
            Lock(folder)
        owner.send_signal(ending) if ending else owner.stdin.close()
        owner.wait(10)
    Lock(folder).release()
    os.kill(child, signal.SIGKILL)


def test_an_owner_in_this_process_counts_too_until_it_lets_go(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(ValueError, match=f"by process {os.getpid()} "):
        Lock(tmp_path)
    lock.release()
    again = Lock(tmp_path)
    assert (tmp_path / ".lock").read_text().count("process") == 1
    del again
    Lock(tmp_path).release()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/run"])
def test_a_folder_that_can_not_be_written_is_told(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=f"{place} can't be written: .*; give another"):
        Lock(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    Lock(tmp_path)
    assert "no lock can be had (No locks available)" in caplog.text


@pytest.mark.parametrize("cut", range(1, 22))
def test_wherever_a_file_of_lines_is_cut_off_whole_lines_are_kept(tmp_path, cut):
    whole = b'{"a": 1}\n{"b": {}}\n{}\n'
    file = tmp_path / "lines.jsonl"
    file.write_bytes(whole[:cut])
    ends = {8: [{"a": 1}], 18: [{"a": 1}, {"b": {}}], 21: [{"a": 1}, {"b": {}}, {}]}
    there = next((ends[end] for end in sorted(ends, reverse=True) if cut >= end), [])
    assert read_lines(file) == there
    with contextlib.closing(Journal(file)) as journal:
        journal.append({"c": 2})
    assert read_lines(file) == [*there, {"c": 2}]
