"""Models behind endpoints that speak OpenAI's chat completions: asked about boards."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    HttpUrl,
    JsonValue,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from envs import State
from g1_ray.config_file import Section
from g1_ray.evaluation.bounded import ENCODINGS, bound, within
from g1_ray.evaluation.faults import NO_CONNECTION, refuses_streams, trouble_of
from g1_ray.evaluation.play import Reply
from g1_ray.evaluation.replies import BROKEN_STREAM, FEW, Trouble, read_reply
from g1_ray.evaluation.streams import Stream, StreamError, is_stream
from g1_ray.grammar import is_secret, shown
from g1_ray.runs.parquet import data_uri, png_of

LONGEST_WAIT_S = 60.0
"""Between two tries; a server that names a wait is left alone as long as it says."""
CONNECT_S = 8.0
"""Longest wait for a connection."""
KEYS = "keys are kept out of files; key_env=VARIABLE names the environment variable that holds it"
log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
Show = Callable[[Reply], None]
"""Is shown a reply as it grows."""
_STREAMS: tuple[dict[str, Any], ...] = (
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True},
    {},
)
"""How a reply that is to be shown as it grows is asked for; the next where a server refuses."""
_OWN = ("model", "messages", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens")
"""Of a request, given by options of their own, and so not as `extra`."""
_Sent = Annotated[float | None, BeforeValidator(lambda value: None if value == "none" else value)]
"""A number that is sent, or none."""


class EndpointError(ValueError):
    """An endpoint that gave no reply, however often it was asked; what helps in a second line."""

    def __init__(self, message: str, cause: str, game_only: bool = False) -> None:
        super().__init__(message)
        self.cause, self.game_only = cause, game_only
        """In few words; whether other games may fare better."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.cause, self.game_only)


class EndpointConfig(Section):
    """A model behind an endpoint. Its key is read when this is made, travels with it, and is in nothing it writes."""

    url: str = Field("", description="of the endpoint, such as http://localhost:8000/v1")
    model: str = Field("", description="its name at the endpoint")
    key_env: str = Field("", description="environment variable that holds the key, if one is needed")
    key_header: str = Field("", description="header that takes the key as it is, such as api-key; default: a bearer's")
    temperature: _Sent = Field(1.0, ge=0, description="none: not sent")
    top_p: _Sent = Field(None, gt=0, le=1, description="none: not sent")
    seed: Literal["sent", "none"] = Field("sent", description="each question's own; none: not sent")
    max_tokens: int = Field(4096, ge=1, description="longest answer of the endpoint")
    limit: Literal["max_tokens", "max_completion_tokens", "none"] = Field(
        "max_tokens", description="what the endpoint calls that; OpenAI's newest models want the second; none: not sent"
    )
    image_detail: Literal["none", "auto", "low", "high"] = Field("none", description="of pictures; none: not sent")
    extra: dict[str, JsonValue] = Field({}, description="more of a request, such as reasoning_effort")
    query: dict[str, str] = Field({}, description="more of its address, such as api-version")
    concurrency: int = Field(16, ge=1, description="requests to the endpoint at a time")
    timeout_s: float = Field(300.0, gt=0, description="longest wait for one reply")
    tries: int = Field(8, ge=1, description="times that a question is put, where the endpoint is busy or fails")
    _key: SecretStr = PrivateAttr(SecretStr(""))

    @model_validator(mode="after")
    def _check_endpoint(self) -> "EndpointConfig":
        for part, values in (("extra", self.extra), ("query", self.query)):
            if secrets := list(filter(is_secret, _names(values))):
                raise ValueError(f"{part}.{secrets[0]}: {KEYS}")
        if own := [name for name in self.extra if name in _OWN]:
            raise ValueError(f"extra.{own[0]}: what is sent as {own[0]} has an option of its own")
        if self.limit == "none" and self.max_tokens != type(self).model_fields["max_tokens"].default:
            raise ValueError(f"max_tokens = {self.max_tokens}: with limit = none it is not sent; leave out one of them")
        if self.url:
            check_url(self.url)
        self._key = SecretStr(os.environ.get(self.key_env, ""))
        return self

    @property
    def key(self) -> str:
        """Its key; '' where none is needed. Raises `ValueError` where the variable that should hold it is not set."""
        if self.key_env and not self._key.get_secret_value():
            raise ValueError(
                f"key_env = {self.key_env!r}: that environment variable is not set; it has to hold the key"
            )
        return self._key.get_secret_value()


def _names(values: Mapping[str, Any]) -> list[str]:
    """All names in a table and in those within."""
    return [
        name for key, value in values.items() for name in (key, *(_names(value) if isinstance(value, dict) else ()))
    ]


def check_url(url: str) -> None:
    """Raises `ValueError` where nobody can be asked at an address, or it holds a key; the key is not quoted."""
    try:
        TypeAdapter(HttpUrl).validate_python(url)
        parts = urllib.parse.urlsplit(url)
    except ValidationError as error:
        raise ValueError(f"{shown(url)!r} is no address: {error.errors()[0]['msg']}") from None
    if not parts.hostname:
        raise ValueError(f"{shown(url)!r} is no address: it has no host")
    if parts.username is not None or any(is_secret(name) for name, _ in urllib.parse.parse_qsl(parts.query)):
        raise ValueError(f"{shown(url)!r}: {KEYS}")
    if parts.query or parts.fragment:
        raise ValueError(f"{shown(url)!r}: what is behind the ? of an address is given as query.NAME=VALUE")


async def growing(asked: Callable[[Show], asyncio.Future[Reply]]) -> AsyncGenerator[Reply, None]:
    """The reply to what is `asked` by a thread, as it grows; the last one is whole. Raises what asking raises."""
    loop, grown = asyncio.get_running_loop(), asyncio.Queue[Reply | None]()

    def show(reply: Reply) -> None:
        loop.call_soon_threadsafe(grown.put_nowait, reply)

    asking = asked(show)
    asking.add_done_callback(lambda _: grown.put_nowait(None))
    try:
        while reply := await grown.get():
            yield reply
        yield asking.result()
    finally:
        asking.cancel()  # where nobody looks any more


class Endpoint:
    """Asks a model about boards, and goes on asking where the endpoint is busy, fails, is silent or gives no answer.

    `troubles` counts what went wrong on the way: '429', 'timed out', 'no connection', 'content_filter'.
    Raises `ValueError` where the variable that should hold the key is not set. The key is written nowhere.
    """

    def __init__(self, config: EndpointConfig) -> None:
        import openai

        self._key, self.config = config.key, config
        self.troubles: Counter[str] = Counter()
        self._met = False
        self._streams = list(_STREAMS)
        self._end: EndpointError | None = None
        self._ended = threading.Event()
        timeout = openai.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s))
        # Given with each request, as the client wants a bearer's otherwise.
        keys = {"Authorization": openai.Omit(), config.key_header: self._key}
        self._headers: dict[str, Any] = keys if config.key_header else {}
        self._client = openai.OpenAI(
            base_url=config.url,
            api_key=self._key or "none",  # an endpoint that needs no key does not look at the one the client wants
            default_query=config.query,
            timeout=timeout,
            max_retries=0,
            # What a redirect makes of a question is a page; where it points to is told.
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,
                timeout=timeout,
                headers={"Accept-Encoding": ENCODINGS},
                event_hooks={"response": [bound]},
            ),
        )

    def meet(self) -> None:
        """Raises `EndpointError` where no connection can be had, within seconds; whatever is answered, one can."""
        import openai

        brief = self._client.with_options(timeout=openai.Timeout(CONNECT_S))

        def look() -> None:
            try:
                within(CONNECT_S + 1, lambda: brief.models.with_raw_response.list(extra_headers=self._headers))
            except Exception as error:
                trouble = trouble_of(error, met=False)
                if trouble is None or trouble.name == NO_CONNECTION:
                    raise

        self._asking(look)

    def ask(self, state: State, prompt: str, seed: int, show: Show | None = None) -> Reply:
        """The reply to a picture and its rules, which is streamed where there is someone to `show` it to as it grows.

        Raises `EndpointError` when all tries are used up.
        """
        longest = self.config.timeout_s + min(CONNECT_S, self.config.timeout_s)
        answered = 0  # without an answer; what is sampled alike would be none again

        def once() -> Reply:
            nonlocal answered
            try:
                return within(longest, lambda: self._ask_streamed(state, prompt, (seed + answered) % (1 << 31), show))
            except Trouble as trouble:
                answered += trouble.game_only
                raise

        return self._asking(once)

    def _ask_streamed(self, state: State, prompt: str, seed: int, show: Show | None) -> Reply:
        """Asks once, but where that is streamed and the server refuses: then as it does not.

        Nor is a server asked for streams that has broken off a few.
        """
        while show and (stream := self._streams[0]) and self.troubles[BROKEN_STREAM] < FEW:
            try:
                return self._ask_once(state, prompt, seed, stream, show)
            except Exception as error:
                trouble = trouble_of(error, self._met)
                if trouble is None or not refuses_streams(trouble):
                    raise
                log.info("%s, asked for a stream: %s", self.config.url, self._redacted(trouble.words))
                if self._streams[0] is stream:
                    self._streams.pop(0)
        return self._ask_once(state, prompt, seed)

    def close(self) -> None:
        """Ends the connections."""
        self._client.close()

    def _asking(self, once: Callable[[], Answer]) -> Answer:
        """Asks until there is an answer, or it is no use any more. Raises `EndpointError`."""
        seen: Counter[str] = Counter()
        while True:
            if self._end is not None:
                raise self._end
            try:
                answer = once()
                self._met = True
                return answer
            except Exception as error:
                trouble = trouble_of(error, self._met)
                if trouble is None:
                    raise
            seen[trouble.name] += 1
            self.troubles[trouble.name] += 1
            self._met |= trouble.name != NO_CONNECTION
            log.info("%s: %s", self.config.url, self._redacted(trouble.words))
            if seen.total() >= self.config.tries or seen[trouble.name] >= trouble.most:
                raise self._ending(trouble, seen.total())
            longer = random.uniform(0, min(LONGEST_WAIT_S, 0.25 * 2.0 ** seen.total()))
            self._ended.wait(longer if trouble.wait_s is None else trouble.wait_s)

    def _ending(self, trouble: Trouble, tries: int) -> EndpointError:
        """What an endpoint is given up with; who waits for it otherwise is told the same."""
        after = f"no reply in {tries} tries; " if tries > 1 else ""
        words = f"{self.config.url}: {after}{trouble.words}" + (f"\n{trouble.hint}" if trouble.hint else "")
        error = EndpointError(self._redacted(words), self._redacted(trouble.name), trouble.game_only)
        if not trouble.game_only:
            self._end = error
            self._ended.set()
        return error

    def _ask_once(
        self, state: State, prompt: str, seed: int, stream: Mapping[str, Any] | None = None, show: Show | None = None
    ) -> Reply:
        begun = time.monotonic()
        body, growing = bytearray(), Stream()
        with self._request(state, prompt, seed, stream or {}) as response:
            for part in response.iter_bytes():
                body += part
                if time.monotonic() - begun > self.config.timeout_s:  # a server may keep the line alive for ever
                    raise Trouble("timed out", "no whole reply in the time that timeout_s gives")
                if is_stream(bytes(body[:64])):
                    with contextlib.suppress(StreamError):  # is told when all is there
                        growing.feed(part)
                    if show and growing.text:
                        seconds = time.monotonic() - begun
                        show(Reply(self._redacted(growing.text, whole=True), "", None, None, seconds))
                    if growing.done:
                        break
        reply = read_reply(bytes(body), time.monotonic() - begun)
        return dataclasses.replace(reply, text=self._redacted(reply.text, whole=True))

    def _request(self, state: State, prompt: str, seed: int, stream: Mapping[str, Any]) -> Any:
        """The question, which is put when this is entered."""
        config = self.config
        picture = {"url": data_uri(png_of(state))}
        if config.image_detail != "none":
            picture["detail"] = config.image_detail
        content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": prompt}]
        sent = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": seed if config.seed == "sent" else None,
            config.limit: config.max_tokens,
        }
        return self._client.chat.completions.with_streaming_response.create(
            model=config.model,
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            extra_headers=self._headers,
            extra_body={key: value for key, value in sent.items() if key != "none" and value is not None}
            | dict(stream)
            | config.extra,
        )

    def _redacted(self, words: str, whole: bool = False) -> str:
        """Words of a server without the key, `whole` or as some of its signs and dots."""
        if not self._key:
            return words
        for key in (self._key, urllib.parse.quote(self._key, safe="")):
            words = words.replace(key, "(the key)")
        if not whole and len(self._key) >= 12:
            words = re.sub(rf"{re.escape(self._key[:6])}[^\s\"']*", "(the key)", words)
        return words
