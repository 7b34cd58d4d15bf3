"""The parts of a run as its driver sees them: who is well, who has died or hangs, and what is left of the dead.

Every part answers `alive` within moments, an engine only if what is behind it does too. Who does not for `hang_s` is
taken for hung: its stack is noted, its processes are killed, and Ray starts its actor anew where it was.
"""

import contextlib
import faulthandler
import gc
import inspect
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from g1_ray.processes import forget_memory, shared_memory, sweep

PING_EVERY_S = 2.0
STACK_SIGNAL = signal.SIGUSR2
"""Makes a process write the stacks of its threads to where `watched` said."""


@dataclass(frozen=True)
class Where:
    """The process of a part."""

    node: str
    """Ray's id of its node."""
    pid: int
    created: float
    """When it was started, Unix time, s: numbers of processes are used again."""
    children: tuple[tuple[int, float], ...] = ()
    """Processes that it has started, each with when, Unix time, s."""
    memory: tuple[str, ...] = ()
    """Files in /dev/shm that these have mapped."""
    stacks: str = ""
    """File that its stacks are written to."""


def watched(folder: Path, name: str) -> str:
    """Makes this process write its stacks to a file when it is asked to; the file."""
    path = folder / "logs" / f"{name}.stacks"
    try:
        path.parent.mkdir(exist_ok=True)
        faulthandler.register(STACK_SIGNAL, path.open("w"), all_threads=True)
    except OSError:  # a run's folder that is not on this machine
        return ""
    return str(path)


def where(stacks: str = "") -> Where:
    """Of this process."""
    me = psutil.Process()
    children, memory = [], set(shared_memory(me.pid))
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            children.append((child.pid, child.create_time()))
            memory.update(shared_memory(child.pid))
    node = ray.get_runtime_context().get_node_id()
    return Where(node, me.pid, me.create_time(), tuple(children), tuple(sorted(memory)), stacks)


def bury(place: Where) -> str:
    """Kills what is left of a part's processes on this machine, and removes what they leave in memory.

    Returns the stacks of the process, if it was there to write them.
    """
    stacks = stacks_of(place)
    for pid, created in ((place.pid, place.created), *place.children):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == created:
                process.kill()
                process.wait(5)
    if place.memory:
        forget_memory(place.memory)
    sweep()
    return stacks


def stacks_of(place: Where) -> str:
    """What the threads of a process on this machine are at, the innermost call first; '' where it can't tell."""
    path = Path(place.stacks)
    with contextlib.suppress(OSError, psutil.Error):
        before = path.stat().st_size
        if psutil.Process(place.pid).status() != psutil.STATUS_STOPPED:
            os.kill(place.pid, STACK_SIGNAL)
        for _ in range(20):
            time.sleep(0.05)
            if path.stat().st_size > before:
                time.sleep(0.05)
                return path.read_bytes()[before:].decode(errors="replace")
    return ""


def there(act: Callable[[Where], str], place: Where) -> Callable[[], str | None]:
    """Has something done about a part on its own machine; what it returned, None as long as that is not over.

    Raises what that raised, e.g. that the machine is gone.
    """
    if place.node == ray.get_runtime_context().get_node_id():
        pool = ThreadPoolExecutor(1)
        future = pool.submit(act, place)
        pool.shutdown(wait=False)
        return lambda: future.result() if future.done() else None
    its = NodeAffinitySchedulingStrategy(place.node, soft=False)
    task = ray.remote(act).options(num_cpus=0, max_retries=0, scheduling_strategy=its).remote(place)
    return lambda: ray.get(task) if ray.wait([task], timeout=0)[0] else None


def waits() -> str:
    """What the coroutines of this process wait for, the innermost call last."""
    begun = [thing for thing in gc.get_objects() if inspect.iscoroutine(thing) and thing.cr_frame is not None]
    inner = {id(coroutine.cr_await) for coroutine in begun}
    told = []
    for coroutine in begun:  # not those of asyncio's tasks: Ray's own wrapping hides what is in it
        if id(coroutine) in inner:
            continue
        told.append("Coroutine:")
        link: Any = coroutine
        while inspect.iscoroutine(link) and (frame := link.cr_frame):
            told.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
            link = link.cr_await
    return "\n".join(told)


@dataclass
class Part:
    """An actor of a run."""

    role: str
    """'buffer', 'env worker', 'engine' or 'learner'."""
    index: int
    actor: Any
    up: bool = True
    place: Where | None = None
    asked: float = 0.0
    """When it was asked last whether it is alive; not when it answered last, as nobody may have asked for a while."""
    ping: ray.ObjectRef | None = None
    deaths: int = 0
    """Since the last step."""
    busy: int = 0
    """Ticks that it has to do with."""
    answered: float = 0.0
    """When one of them came to a good end last, Unix time, s."""
    version: int = 0
    """Of an engine: the policy that it holds."""
    down_at: float = 0.0
    back_at: float = 0.0
    """When it came back last, Unix time, s; 0 for one that never had to."""
    burial: Callable[[], str | None] | None = None
    """Of one that has died, where that is under way already."""

    @property
    def name(self) -> str:
        """E.g. "engine 1"."""
        return self.role if self.role == "buffer" else f"{self.role} {self.index}"

    @property
    def whereabouts(self) -> str:
        """E.g. " on node 615a8795, process 29166"; '' where that is not known."""
        return f" on node {self.place.node[:8]}, process {self.place.pid}" if self.place else ""

    def look(self, hang_s: float) -> str:
        """What is wrong with it: '' for nothing. Asks, now and then, whether it is alive; never waits."""
        now = time.monotonic()
        if self.ping is None:
            if now - self.asked >= PING_EVERY_S:
                self.asked, self.ping = now, self.actor.alive.remote()
            return ""
        if not ray.wait([self.ping], timeout=0)[0]:
            return f"hangs: no sign of life for {now - self.asked:.0f} s" if now - self.asked > hang_s else ""
        ping, self.ping = self.ping, None
        try:
            place = ray.get(ping)
            if self.place and (self.place.pid, self.place.created) != (place.pid, place.created):
                return "died, and was started anew between two looks"
            self.place = place
        except ray.exceptions.RayActorError as error:
            return f"died: {type(error).__name__}"
        except Exception as error:  # noqa: BLE001 - an engine that says what ended it
            return f"failed: {type(getattr(error, 'cause', None) or error).__name__}: {error!s:.200}".splitlines()[0]
        return ""

    def is_back(self) -> bool:
        """Whether an actor that was started anew answers; never waits."""
        if self.ping is None:
            self.ping = self.actor.alive.remote()
        if not ray.wait([self.ping], timeout=0)[0]:
            return False
        ping, self.ping = self.ping, None
        try:
            self.place = ray.get(ping)
        except Exception:  # noqa: BLE001 - not yet
            return False
        return True

    def back(self) -> None:
        """Books that it is up again."""
        self.up, self.ping, self.back_at = True, None, time.time()

    def lost(self) -> None:
        """Books its death."""
        self.up, self.ping, self.down_at = False, None, time.monotonic()
        self.deaths += 1
