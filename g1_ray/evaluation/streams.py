"""Chat completions that come in events (SSE), put together as they come.

    data: {"choices": [{"delta": {"content": "<think>"}}]}      -> text grows
    data: [DONE]                                                -> a table as that of a reply that comes whole

Nothing is trusted to be of the type that OpenAI's own events have. The table is judged as all replies are (`replies`).
"""

import json
import re
from typing import Any

_BEGIN = re.compile(rb"(\xef\xbb\xbf)?\s*(data|event|id|retry)?:")
_ENDS = re.compile(rb"\r\n|\n|\r")
_BESIDE = ("reasoning_content", "reasoning", "tool_calls", "function_call")
"""What may come beside the text of an answer; of these it matters only that they came."""


class StreamError(ValueError):
    """A stream that is none, or has no end; the message says how."""


def is_stream(body: bytes) -> bool:
    """Whether what has come so far begins as a stream of events does."""
    return bool(_BEGIN.match(body))


class Stream:
    """What has come so far: `feed` it. Raises `StreamError` for an event that nobody can read."""

    def __init__(self) -> None:
        self.done = False
        """Whether the server has said that this was all."""
        self._rest, self._data = b"", list[str]()
        self._texts: list[Any] = []
        self._message: dict[str, Any] = {}
        self._choice: dict[str, Any] = {"message": self._message}
        self._sent: dict[str, Any] = {}

    def feed(self, part: bytes) -> None:
        """Takes in the next bytes, wherever they were cut."""
        *lines, self._rest = _ENDS.split(self._rest + part)
        for line in lines:
            self._read(line.decode("utf-8", "replace"))

    @property
    def text(self) -> str:
        """The answer, as far as it has come."""
        return "".join(part for part in self._texts if isinstance(part, str))

    def completion(self) -> dict[str, Any]:
        """All of it, as the table of a reply that comes whole. Raises `StreamError` where the end is missing."""
        for line in (self._rest.decode("utf-8", "replace"), ""):
            self._read(line)
        self._rest = b""
        if "error" in self._sent:
            return self._sent
        if not self.done and "finish_reason" not in self._choice:
            raise StreamError("it breaks off")
        if self._texts:
            whole = all(isinstance(part, str) for part in self._texts)
            self._message["content"] = self.text if whole else self._texts
        return {"choices": [self._choice], **self._sent} if len(self._choice) > 1 or self._message else self._sent

    def _read(self, line: str) -> None:
        """A line: of data, which is an event once it is whole; or one that ends an event, or tells something else."""
        name, _, value = line.removeprefix("\ufeff").partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        elif line:
            return
        data = "\n".join(self._data).strip()
        if data in ("", "[DONE]"):
            self.done |= bool(data)
            self._data.clear()
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            if line:  # its next line may have the rest
                return
            raise StreamError(f"an event that is no JSON: {data}") from None
        self._data.clear()
        if not isinstance(event, dict):
            raise StreamError(f"an event that is no table: {data}")
        self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        """An event: of the first choice, of the tokens, or an error."""
        if isinstance(event.get("usage"), dict):
            self._sent["usage"] = event["usage"]
        choices = event.get("choices")
        if event.get("error") or not isinstance(choices, list):
            self._sent |= event
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("index") in (0, None):
                self._grow(choice)

    def _grow(self, choice: dict[str, Any]) -> None:
        self._choice |= {name: choice[name] for name in ("finish_reason", "error") if choice.get(name)}
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            if not isinstance(choice.get("message"), dict):
                return
            delta, self._texts = choice["message"], []  # the whole of it
        content = delta.get("content")
        self._texts += content if isinstance(content, list) else [] if content is None else [content]
        for name in _BESIDE:
            if delta.get(name):
                self._message[name] = delta[name]
        if isinstance(delta.get("refusal"), str):
            self._message["refusal"] = self._message.get("refusal", "") + delta["refusal"]
