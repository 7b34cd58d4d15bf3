"""Processes that end: what they leave on a machine, and those that are not to outlive their parent."""

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

SHM = Path("/dev/shm")
SCRATCH = "g1-ray-scratch-"
"""What the names of scratch folders begin with."""


def shared_memory(pid: int) -> Iterator[str]:
    """The files in /dev/shm that a process has mapped, by name, Ray's own object store aside."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            name = line.partition("/dev/shm/")[2]
            if name and not name.startswith("plasma") and not name.endswith(" (deleted)"):
                yield name


def forget_memory(names: Iterable[str]) -> None:
    """Removes files from /dev/shm that no process but this one has mapped."""
    others = [int(path.name) for path in Path("/proc").glob("[0-9]*") if path.name != str(os.getpid())]
    for name in set(names) - {name for pid in others for name in shared_memory(pid)}:
        with contextlib.suppress(OSError):
            os.unlink(f"/dev/shm/{name}")


@contextlib.contextmanager
def scratch(num_bytes: int) -> Iterator[Path]:
    """A folder of one's own while the context lasts: in memory (/dev/shm) where so many bytes fit in twice.

    It is locked, so that `sweep` knows it from one whose process is gone.
    """
    in_memory = SHM.is_dir() and os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > 2 * num_bytes
    made = Path(tempfile.mkdtemp(prefix=f".{SCRATCH}", dir=SHM if in_memory else None))
    folder, lock = made.with_name(made.name[1:]), os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made.rename(folder)  # from here on it may be swept
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep() -> None:
    """Removes the scratch folders on this machine that nobody holds any more: their processes were killed."""
    for home in (SHM, Path(tempfile.gettempdir())):
        for folder in home.glob(f"{SCRATCH}*"):
            with contextlib.suppress(OSError):  # it is somebody else's, or at work
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                finally:
                    os.close(lock)


def end_with_parent() -> None:
    """Has this process, if it was started by `multiprocessing`, end when its parent does, however that ends.

    A vLLM engine would live on by itself, with all its memory. Nothing is left in /dev/shm.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent
        parent.join()
        forget_memory(shared_memory(os.getpid()))
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, name="end_with_parent", daemon=True).start()
