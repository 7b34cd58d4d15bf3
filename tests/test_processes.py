import os
import signal
import subprocess
import sys

from g1_ray import processes

HOLDS = """
import time
from g1_ray.processes import scratch
with scratch(8) as folder:
    (folder / "weights").write_bytes(b"12345678")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_swept_and_what_others_hold_is_not():
    """As an engine leaves the weights that it was loading."""
    with processes.scratch(8) as mine:
        other = subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True)
        theirs = mine.with_name(os.path.basename(other.stdout.readline().strip()))
        processes.sweep()
        assert mine.is_dir() and (theirs / "weights").read_bytes() == b"12345678"
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert theirs.is_dir()
        processes.sweep()
        assert mine.is_dir() and not theirs.exists()
    assert not mine.exists()


def test_a_scratch_folder_is_on_disk_where_memory_has_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.tempfile, "tempdir", str(tmp_path))
    with processes.scratch(1 << 60) as folder:
        assert folder.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_folder_that_somebody_else_made_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{processes.SCRATCH}file").write_text("no folder")
    (tmp_path / "g1-ray-mine").mkdir()
    processes.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g1-ray-mine", f"{processes.SCRATCH}file"]
