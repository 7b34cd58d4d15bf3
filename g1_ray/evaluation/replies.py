"""What endpoints send, read with care: a reply of the model, or the trouble there was instead of one.

    answer of the model          text, or cut off at its longest length: a `Reply`, and so the model's move
    no answer of the model       an error, a filter, a refusal, tool calls, thinking alone, nothing at all: a `Trouble`
    no reply of an endpoint      a web page, broken JSON, a stream that breaks off, values of other types: a `Trouble`

Nothing is trusted to be of the type that OpenAI's own replies have.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from g1_ray.evaluation.play import CUT, Reply
from g1_ray.evaluation.streams import Stream, StreamError, is_stream
from g1_ray.files import part_of

log = logging.getLogger(__name__)
Line = TypeVar("Line", bound=tuple[Any, ...])
FEW = 3
"""Times that a question is put whose answer was none: a filter or a parser will say the same again."""
ALL = 1 << 30
"""As often as the config says."""
BROKEN_STREAM = "broken stream"
"""Name of that trouble."""
MOST_BYTES = 1 << 24
"""Of a reply; a longer one is none."""
LONGEST_WORDS = 300
"""Characters of what a server says."""
_ENDS = {"max_tokens": CUT, "max_output_tokens": CUT, "model_length": CUT, "max_length": CUT}
"""What others call it -> what OpenAI calls it."""
_FAILED = ("error", "abort", "aborted", "cancelled")
NO_ANSWER = (*_FAILED, "content_filter", "tool_calls", "function_call", "refusal", "safety", "recitation", "blocklist",
             "prohibited_content", "spii", "malformed_function_call")  # fmt: skip
"""Reasons to finish that are not the model's, those of a server that failed first: what came so far is no answer."""
_PASSING = (408, 409, 425, 429)


class Trouble(Exception):
    """What came instead of a reply.

    `name` is how it is counted: '429', 'timed out', 'content_filter'; `words` are a line that tells it; `most` is how
    often at most it is worth asking, 1: it will not pass; `hint` is a line of what helps; `wait_s` how long the server
    wants to be left alone; `game_only`: whether another game may fare better.
    """

    def __init__(
        self,
        name: str,
        words: str = "",
        most: int = ALL,
        hint: str = "",
        wait_s: float | None = None,
        game_only: bool = False,
    ) -> None:
        super().__init__(name, words)
        self.name, self.words, self.most, self.hint = name, words or name, most, hint
        self.wait_s, self.game_only = wait_s, game_only


def passes(status: int) -> bool:
    """Whether what an HTTP status tells may be over the next time."""
    return status in _PASSING or (status >= 500 and status not in (501, 505))


def read_reply(body: bytes, seconds: float) -> Reply:
    """The reply in the body of a chat completion, whole or in events. Raises `Trouble` where there is none."""
    sent = _stream_of(body) if is_stream(body) else _json_of(body)
    if sent.get("error"):
        raise _error(sent)
    choices = sent.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise Trouble("no choices", f"a reply without choices: {one_line(words_of(sent))}")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Trouble("no message", "a choice without a message")
    finish = str(choice.get("finish_reason") or "").lower()
    finish = _ENDS.get(finish, finish)
    usage = sent["usage"] if isinstance(sent.get("usage"), dict) else {}
    tokens = _count(usage.get("completion_tokens"))
    text = _text_of(message.get("content"))
    if cause := _no_answer(choice, message, finish, text, tokens):
        words = one_line(words_of(choice.get("error")) or words_of(message.get("refusal")))
        failed = cause in _FAILED
        told = f"{cause}: {words}" if words else cause
        raise Trouble(cause, told, ALL if failed else FEW, _HINTS.get(cause, ""), game_only=not failed)
    return Reply(text or "", finish or "stop", _count(usage.get("prompt_tokens")), tokens, seconds)


_HINTS = {
    "only thinking": "the server took the whole answer for thinking; switch that off there, or by extra.NAME=VALUE",
    "tool_calls": "no tools were offered; the server reads the answer as a call: switch its tool parser off",
}


def kept_replies(path: Path, line: TypeAdapter[Line]) -> Iterator[Line]:
    """The lines of a file of replies, each of which ends in one. What can't be read is told and left out, as is what
    was no answer of a model: both are asked again."""
    unread = []
    for number, text in enumerate(_lines_of(path), 1):
        try:
            values = line.validate_json(text)
        except ValidationError:
            unread.append(number)
            continue
        if values[-1].finish_reason not in NO_ANSWER:
            yield values
    if unread:
        told = f"{len(unread)} of its lines can't be read, the first is line {unread[0]}"
        log.warning("%s: %s; what they answered is asked again", path, told)


def _lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, none where it is not there; a last one that a crash has cut off is left out."""
    if not os.path.lexists(part_of(path.parent, path.name)):
        return
    with path.open("rb") as file:
        while line := file.readline(2 * MOST_BYTES):
            if line.endswith(b"\n"):
                yield line
            elif len(line) == 2 * MOST_BYTES:
                raise ValueError(f"{path}: has a line of more than {2 * MOST_BYTES >> 20} MB; it is no file of replies")


def _json_of(body: bytes) -> dict[str, Any]:
    """The table that a body holds. Raises `Trouble`."""
    text = body.decode("utf-8-sig", "replace").strip()
    if not text:
        raise Trouble("empty body", "a reply with nothing in it")
    try:
        sent = json.loads(text)
    except (ValueError, RecursionError):
        if text.startswith("<"):
            hint = "the URL of an endpoint mostly ends in /v1"
            raise Trouble("web page", f"a web page: {one_line(words_of(text))}", FEW, hint) from None
        raise Trouble("broken JSON", f"no JSON: {one_line(text)}", FEW) from None
    if not isinstance(sent, dict):
        raise Trouble("broken JSON", f"JSON that is no table: {one_line(text)}", FEW)
    return sent


def _stream_of(body: bytes) -> dict[str, Any]:
    """The table that the events of a body make up. Raises `Trouble`."""
    stream = Stream()
    try:
        stream.feed(body)
        return stream.completion()
    except StreamError as error:
        raise Trouble(BROKEN_STREAM, f"a broken stream of events: {one_line(str(error))}") from None


def _error(sent: Mapping[str, Any]) -> Trouble:
    """The error that some gateways send as a reply, with status 200."""
    error = sent["error"]
    code = _count(error.get("code", error.get("status"))) if isinstance(error, dict) else None
    most = 1 if code and 400 <= code < 600 and not passes(code) else ALL
    name = f"error {code}" if code else "error"
    return Trouble(name, f"{name}: {one_line(words_of(sent))}", most)


def _no_answer(
    choice: Mapping[str, Any], message: Mapping[str, Any], finish: str, text: str | None, tokens: int | None
) -> str:
    """Why a choice is no answer of the model, '' where it is one."""
    if finish in NO_ANSWER:
        return finish
    if choice.get("error"):
        return "error"
    if message.get("refusal"):
        return "refusal"
    if text or finish == CUT:  # cut off in the middle of its thinking, too: it had its tokens
        return ""
    if message.get("tool_calls") or message.get("function_call"):
        return "tool_calls"
    if message.get("reasoning_content") or message.get("reasoning") or (message.get("content") and not text):
        return "only thinking"
    return "no content" if text is None or tokens == 0 else ""


def _text_of(content: object) -> str | None:
    """The text of a message: as it is, or in parts; None where there is none. Thinking is not part of it."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else _text_in(part) for part in parts]
    return "".join(texts) or None


def _text_in(part: object) -> str:
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "output_text"):
        return ""
    return part["text"] if isinstance(part.get("text"), str) else ""


def _count(value: object) -> int | None:
    """A number of tokens; None where it is not told."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1 << 31:
        return None
    return int(value)


def words_of(sent: object, depth: int = 0) -> str:
    """What a server says of an error, wherever it has put its words: as OpenAI, FastAPI and gateways do, in a page."""
    if isinstance(sent, str):
        title = re.search(r"<title[^>]*>(.*?)</title>", sent[:100_000], re.DOTALL | re.IGNORECASE)
        return re.sub(r"<[^>]*>", " ", title[1] if title else sent[:100_000])
    if depth > 5:
        return ""
    if isinstance(sent, Sequence):
        return "; ".join(filter(None, (words_of(part, depth + 1) for part in sent[:5])))
    if not isinstance(sent, Mapping):
        return ""
    found = (words_of(sent.get(key), depth + 1) for key in ("error", "message", "detail", "msg", "title", "code"))
    words = next(filter(None, found), "")
    if isinstance(sent.get("loc"), list):
        words = f"{'.'.join(map(str, sent['loc']))}: {words}"
    if isinstance(sent.get("metadata"), Mapping) and (raw := words_of(sent["metadata"].get("raw"), depth + 1)):
        words = f"{words}: {raw}"  # of the model's own server, which a gateway quotes
    return words or (json.dumps(sent) if not depth else "")


def one_line(words: str) -> str:
    """Words of others in a line that a terminal can show."""
    words = "".join(sign if sign.isprintable() else " " for sign in words[: 20 * LONGEST_WORDS])
    words = " ".join(words.split())
    return words if len(words) <= LONGEST_WORDS else words[: LONGEST_WORDS - 3] + "..."
