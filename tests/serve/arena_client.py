"""A server as its users start it, and clients that play on it: they ask again where it fails, as the page does."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
GIVES_UP_S = 60.0
"""How long a client asks again."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """`g1-ray serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    up_after_s: float

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f"ServeReplica:g1_ray:{deployment}" in " ".join(child.cmdline()):
                    found.append(child)
        return found


@contextlib.contextmanager
def serving(folder: Path, *args: str, timeout_s: float = 240, **environment: str) -> Iterator[Server]:
    """A server on a free port; at the end it is asked to end, and has to, leaving no process."""
    port, log, begun = free_port(), folder / "serve.log", time.monotonic()
    command = [sys.executable, "-m", "jobs", "serve", *args, "--port", str(port), "--folder", str(folder / "arena")]
    env = {**os.environ, "RAY_ADDRESS": "local", **environment}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=out, stderr=out, text=True, start_new_session=True
        )
    try:
        while "up after" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < begun + timeout_s, log.read_text()
            time.sleep(0.2)
        yield Server(process, f"http://127.0.0.1:{port}", log, time.monotonic() - begun)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
        _, alive = psutil.wait_procs(children, 10)
        assert not alive, alive
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@dataclass
class Client:
    """Somebody who plays. `acknowledged`: every move that was answered, in order."""

    url: str
    session: dict[str, Any] = field(default_factory=dict)
    acknowledged: list[int | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long each move took."""
    moved_at: float = 0.0
    """When its last move was answered."""
    first_words: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """Of every answer, 0 where there was none."""

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer; asked again where a part of the server is gone or full."""
        until = time.monotonic() + GIVES_UP_S
        while True:
            status = 0
            with contextlib.suppress(httpx.TransportError):
                answer = self.http.request(method, path, json=body)
                status = answer.status_code
                if status == 200:
                    self.statuses.append(status)
                    return answer.json()
            self.statuses.append(status)
            assert status in (0, 429, 503), (status, answer.text)
            assert time.monotonic() < until, (path, status)
            time.sleep(0.2)

    def begin(self, *seats: str, **options: Any) -> dict[str, Any]:
        """A session on a small board."""
        usual = {"game": "2048", "reasoning": {"size": 3}, "perception": {"tile_px": 28}, "name": "Ann"}
        self.session = self.ask("POST", "/api/sessions", {**usual, "seats": list(seats), **options})
        self.acknowledged = []
        return self.session

    def move(self, lane: dict[str, Any], action: int | None = None) -> dict[str, Any]:
        """A move of a person, or with no action of whoever sits there."""
        path = f"/api/sessions/{self.session['id']}/lanes/{lane['lane']}/moves"
        body = {"revision": lane["revision"]} | ({} if action is None else {"action": action})
        begun = time.perf_counter()
        after: dict[str, Any] = self.ask("POST", path, body)
        self.seconds.append(time.perf_counter() - begun)
        assert after["revision"] == lane["revision"] + 1
        self._acknowledge(after)
        return after

    def _acknowledge(self, lane: dict[str, Any]) -> None:
        self.acknowledged.append(lane["last"]["action"])
        self.moved_at = time.monotonic()

    def watch(self, lane: dict[str, Any]) -> dict[str, Any]:
        """A model's move, its words as they come; asked again where the stream breaks off."""
        path = f"/api/sessions/{self.session['id']}/lanes/{lane['lane']}/moves"
        until = time.monotonic() + GIVES_UP_S
        while time.monotonic() < until:
            begun, first = time.perf_counter(), True
            with contextlib.suppress(httpx.TransportError):
                headers = {"accept": "text/event-stream"}
                body = {"revision": lane["revision"]}
                with self.http.stream("POST", path, json=body, headers=headers) as answer:
                    self.statuses.append(answer.status_code)
                    lines = (line for line in answer.iter_lines() if answer.status_code == 200)
                    for line in lines:
                        event = json.loads(line.removeprefix("data: ")) if line.startswith("{") or line else {}
                        if event and first:
                            self.first_words.append(time.perf_counter() - begun)
                            first = False
                        if event.get("type") == "lane" or "revision" in event:
                            self._acknowledge(event)
                            return dict(event)
            time.sleep(0.2)
        raise AssertionError(f"{path}: no answer in {GIVES_UP_S} s")

    def check(self) -> None:
        """What the server has is what was answered: no move lost, none doubled."""
        (lane,) = self.ask("GET", f"/api/sessions/{self.session['id']}")["lanes"]
        assert lane["revision"] == lane["moves"] == len(self.acknowledged), (lane["revision"], len(self.acknowledged))
        link = self.ask("GET", f"/api/sessions/{self.session['id']}/link")["link"]
        played: list[int | None] = []
        while len(played) < lane["moves"]:
            shown = self.ask("POST", "/api/replay", {"link": link, "start": len(played), "count": 200})
            played += [frame["move"]["action"] for frame in shown["frames"] if frame["move"]]
        assert played == self.acknowledged
        assert not lane["over"] or shown["frames"][-1]["score"] == lane["score"]


def together(hands: list[Any]) -> None:
    """Runs functions at the same time; raises what one of them raised."""
    faults: list[BaseException] = []

    def guarded(hand: Any) -> None:
        try:
            hand()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(hand,)) for hand in hands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
