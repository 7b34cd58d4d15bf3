"""Bounds on what a server can do to who asks it: so many bytes, as they come and unpacked, and so much time.

The client of OpenAI has a limit for each read of a socket, and none for all of them: a server that sends a byte now and
then, in the head of its reply or in the page of an error, is never done.
"""

import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from g1_ray.evaluation.replies import FEW, MOST_BYTES, Trouble

Value = TypeVar("Value")
ENCODINGS = "gzip, deflate"
"""That are asked for: those that are unpacked piece by piece."""
_PIECE = 1 << 20


def bound(response: Any) -> None:
    """Of a response whose body has yet to be read: its body raises `Trouble` where it is too long, however packed."""
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "x-gzip", *ENCODINGS.split(", ")):
        raise Trouble("encoding", f"a reply in the encoding {encoding[:20]!r}; {ENCODINGS} were asked for", 1)
    # It has to be a stream of the HTTP library that the client has chosen.
    stream = response.stream
    base = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")
    response.stream = type("Bounded", (_Bounded, base), {})(stream, encoding in ("identity", ""))


class _Bounded:
    def __init__(self, stream: Any, plain: bool) -> None:
        self._stream, self._plain = stream, plain

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream if self._plain else self._unpacked():
            size += len(part)
            if size > MOST_BYTES:
                raise Trouble("too long", f"a reply of more than {MOST_BYTES >> 20} MB", FEW)
            yield part

    def _unpacked(self) -> Iterator[bytes]:
        unpack = zlib.decompressobj(47)  # gzip, or zlib's own
        try:
            for part in self._stream:
                while part:
                    yield unpack.decompress(part, _PIECE)
                    part = unpack.unconsumed_tail
            yield unpack.flush()
        except zlib.error:
            raise Trouble("encoding", "a reply that is packed and can't be unpacked", FEW) from None

    def close(self) -> None:
        self._stream.close()


def within(seconds: float, call: Callable[[], Value]) -> Value:
    """What a call gives, or raises. Raises `Trouble` where it takes longer: it is left alone, in a thread of its own,
    as nothing ends a read from outside."""
    future: Future[Value] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # of the call itself
            raise
        raise Trouble("timed out", "no whole reply in the time that timeout_s gives") from None
