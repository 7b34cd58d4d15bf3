"""Processes that end: what of the machine's shared memory is theirs, and those that are not to outlive their parent."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path


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
