"""Chat templates, rendered where they can do no harm: a template is a program, and comes with a model from anywhere.

    Templates.render -> a line of JSON -> this file, run by a Python of its own -> a line of JSON

That process knows Jinja's sandbox and nothing of ours, has so much memory, and is ended where it takes too long.
What it makes of a template is what transformers makes of it.
"""

import contextlib
import functools
import json
import os
import resource
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

SECONDS = 5.0
"""Longest that a template may take."""
STARTING_S = 60.0
"""Longest wait for the process."""
MOST_BYTES = 1 << 22
"""Of what a template writes."""
_MEMORY = 1 << 30
_READY = b"ready\n"


class Templates:
    """The process that renders, started at the first template, and anew after one that had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        """What a template makes of values. Raises `ValueError` where it makes nothing of them, or takes too long."""
        asked = json.dumps({"template": template, "values": values}).encode() + b"\n"
        with self._lock:
            process = self._started()
            try:
                assert process.stdin
                process.stdin.write(asked)
                process.stdin.flush()
                made = json.loads(_line(process, SECONDS))
            except (OSError, ValueError, TimeoutError) as error:
                self.close()
                told = f"takes more than {SECONDS:g} s" if isinstance(error, TimeoutError) else "takes too much memory"
                raise ValueError(f"it {told}, and was ended") from None
        if "text" not in made:
            raise ValueError(made["error"])
        text: str = made["text"]
        return text

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-P", __file__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            _line(self._process, STARTING_S)
        return self._process

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@functools.cache
def templates() -> Templates:
    """Of this process."""
    return Templates()


def _line(process: "subprocess.Popen[bytes]", seconds: float) -> bytes:
    """The next line that a process writes. Raises `TimeoutError`, or `BrokenPipeError` where it has ended."""
    assert process.stdout
    deadline, line = time.monotonic() + seconds, bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                raise BrokenPipeError
            line += part
    return bytes(line)


# In the process


def _environment() -> Any:
    """Jinja as transformers sets it up (`transformers.utils.chat_template_utils`)."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """Blocks that mark what a model says: they are shown as they are."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            number = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=number)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    environment, out = _environment(), sys.stdout.buffer
    compiled = functools.lru_cache(8)(environment.from_string)
    out.write(_READY)
    out.flush()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            text = compiled(asked["template"]).render(**asked["values"])
            made = {"text": text} if len(text) <= MOST_BYTES else {"error": f"it writes more than {MOST_BYTES:,} signs"}
        except MemoryError:
            made = {"error": "it takes too much memory"}
        except Exception as error:  # whatever a template does
            made = {"error": f"{error or type(error).__name__}"[:300]}
        out.write(json.dumps(made).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve()
