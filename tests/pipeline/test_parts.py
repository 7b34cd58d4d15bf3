"""What is found out about the processes of a run, and what is left of them when they are buried."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

ray = pytest.importorskip("ray")

from g1_ray.pipeline import parts  # noqa: E402
from g1_ray.pipeline.parts import Part, Where, bury  # noqa: E402
from g1_ray.processes import shared_memory  # noqa: E402

ORPHAN = """
import mmap, multiprocessing, sys, time
from g1_ray.processes import end_with_parent
def mapped(name):  # Python's own SharedMemory has somebody who cleans up after it
    with open(f"/dev/shm/{name}", "r+b") as file:
        return mmap.mmap(file.fileno(), 0)
def child(name):
    memory = mapped(name)
    end_with_parent()
    print("up", flush=True)
    time.sleep(600)
if __name__ == "__main__":
    with open(f"/dev/shm/{sys.argv[1]}", "wb") as file:
        file.truncate(1 << 20)
    memory = mapped(sys.argv[1])
    process = multiprocessing.get_context("spawn").Process(target=child, args=sys.argv[1:])
    process.start()
    print(process.pid, flush=True)
    time.sleep(600)
"""
"""A process with a child and memory that both have mapped, as a vLLM engine has."""


def until(ready, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(ready())


@pytest.fixture
def family(tmp_path):
    """A parent, its child's number, and the name of their memory."""
    script, name = tmp_path / "orphan.py", f"g1-ray-test-{os.getpid()}"
    script.write_text(ORPHAN)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(script), name], stdout=subprocess.PIPE, text=True, env=env)
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "up\n"
    yield parent, child, name
    parent.kill()
    if psutil.pid_exists(child):
        os.kill(child, signal.SIGKILL)
    Path(f"/dev/shm/{name}").unlink(missing_ok=True)


def place_of(parent, child, name) -> Where:
    its = [(pid, psutil.Process(pid).create_time()) for pid in (parent.pid, child)]
    assert name in set(shared_memory(parent.pid)) & set(shared_memory(child))
    return Where("here", *its[0], children=(its[1],), memory=(name,))


def test_nothing_is_left_of_a_part_that_is_buried(family):
    parent, child, name = family
    os.kill(parent.pid, signal.SIGSTOP)  # it hangs: it can't even be asked to end
    bury(place_of(*family))
    assert until(lambda: not psutil.pid_exists(parent.pid) and not psutil.pid_exists(child))
    assert not Path(f"/dev/shm/{name}").exists()


def test_memory_that_somebody_else_has_mapped_stays_and_so_do_processes_that_only_have_the_number(family):
    parent, child, name = family
    place = place_of(*family)
    holds = f"import mmap, time; f = open('/dev/shm/{name}', 'r+b'); m = mmap.mmap(f.fileno(), 0); print(flush=True)"
    other = subprocess.Popen([sys.executable, "-c", f"{holds}; time.sleep(60)"], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"\n"
    bury(Where("here", place.pid, place.created, ((child, place.children[0][1]), (other.pid, 1.0)), (name,)))
    assert until(lambda: not psutil.pid_exists(child)) and Path(f"/dev/shm/{name}").exists() and other.poll() is None
    other.kill()


def test_an_engine_s_process_ends_with_its_parent_and_leaves_no_memory(family):
    parent, child, name = family
    parent.kill()
    assert until(lambda: not psutil.pid_exists(child)) and until(lambda: not Path(f"/dev/shm/{name}").exists())


class Asked:
    """An actor that answers `alive` with a reference of our own."""

    def __init__(self) -> None:
        self.asked = 0
        self.alive = SimpleNamespace(remote=self._alive)

    def _alive(self) -> str:
        self.asked += 1
        return f"ref {self.asked}"


def test_a_part_that_does_not_answer_hangs_and_one_that_was_not_asked_for_long_does_not(monkeypatch):
    now, ready = [100.0], set()
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(parts.ray, "wait", lambda refs, timeout: (refs if refs[0] in ready else [], []))
    monkeypatch.setattr(parts.ray, "get", lambda ref: Where("node", 7, 1.0))
    part = Part("engine", 1, Asked())
    assert part.look(20) == "" and part.look(20) == "" and part.actor.asked == 1
    now[0] += 500  # the driver was at something else, and the answer has come
    ready.add("ref 1")
    assert part.look(20) == "" and part.place == Where("node", 7, 1.0)
    assert part.look(20) == "" and part.actor.asked == 2
    now[0] += 19
    assert part.look(20) == ""
    now[0] += 2
    assert part.look(20) == "hangs: no sign of life for 21 s" and part.name == "engine 1"


def test_a_part_that_is_another_process_has_died(monkeypatch):
    """Ray starts an actor anew in less time than there is between two looks."""
    now, pid = [100.0], [7]
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(parts.ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(parts.ray, "get", lambda ref: Where("node", pid[0], 1.0))
    part = Part("buffer", 0, Asked())
    said = []
    for _ in range(3):
        said += [part.look(20), part.look(20)]
        now[0], pid[0] = now[0] + 5, 7 + len(said) // 4
    assert said == ["", "", "", "", "", "died, and was started anew between two looks"]
    assert part.place == Where("node", 7, 1.0)  # what is left of that one is buried


def test_coroutines_tell_what_they_wait_for():
    async def inner():
        await asyncio.Event().wait()

    async def outer():
        await inner()

    async def asked():
        hung = asyncio.ensure_future(outer())
        await asyncio.sleep(0)
        said = parts.waits()
        hung.cancel()
        return said

    said = asyncio.run(asked())
    assert re.search(
        r'Coroutine:\n.* in outer\n.*test_parts.py", line \d+ in inner\n.*locks.py", line \d+ in wait', said
    )
