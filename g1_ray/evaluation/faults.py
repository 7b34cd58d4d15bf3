"""What goes wrong between here and an endpoint, as a `Trouble`: its cause in words, and whether it can pass.

Classes of the HTTP library are known by their names: the client of OpenAI has changed it.
"""

import email.utils
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

from g1_ray.evaluation.replies import ALL, FEW, Trouble, one_line, passes, words_of

NO_CONNECTION = "no connection"
LONGEST_WAIT_S = 300.0
"""That a server may ask for; one that asks for more is given up, and the same command goes on another day."""
_OFF = ("temperature", "top_p", "seed", "image_detail")
"""Options that can be left out."""

_REFUSED = ("400", "404", "405", "406", "415", "422", "501")
"""Statuses that may be about how a question was put."""


def trouble_of(error: Exception, met: bool) -> Trouble | None:
    """What an error of the client tells; None: it is none of the endpoint. `met`: the endpoint has answered before."""
    import openai

    if trouble := next((cause for cause in _chain(error) if isinstance(cause, Trouble)), None):
        return trouble
    if isinstance(error, openai.APIStatusError):
        return _status(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, openai.APITimeoutError) or "TimeoutException" in names:
        connecting = any(type(cause).__name__ == "ConnectTimeout" for cause in _chain(error))
        if not connecting:
            return Trouble("timed out", "no reply in the time that timeout_s gives")
        return Trouble(NO_CONNECTION, "no answer from that address", ALL if met else 1)
    if isinstance(error, openai.APIConnectionError) or "RequestError" in names:
        return _connection(_chain(error), met)
    return None


def refuses_streams(trouble: Trouble) -> bool:
    """Whether a question that was to be streamed may do better without: its server can't, or does not know the word."""
    name = trouble.name.removeprefix("error").strip()
    return name in _REFUSED or (name.isdecimal() or not name) and "stream" in trouble.words.lower()


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it came from, the first cause last."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    return chain


def _connection(chain: list[BaseException], met: bool) -> Trouble:
    """Nothing was heard: what will be the same next time is not tried again, nor for long what never was reached."""
    most, wait = (ALL, None) if met else (FEW, 0.3)
    for cause in reversed(chain):
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = "SSL_CERT_FILE=FILE trusts a certificate of your own"
            words = f"certificate verify failed: {cause.verify_message or cause.reason}"
            return Trouble(NO_CONNECTION, one_line(words), 1, hint)
        if isinstance(cause, ssl.SSLError):
            hint = (
                "does it speak http:// instead?"
                if cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
                else ""
            )
            return Trouble(NO_CONNECTION, f"no TLS: {one_line(str(cause))}", ALL if met else 1, hint)
        if isinstance(cause, ConnectionRefusedError):
            return Trouble(
                NO_CONNECTION, "connection refused", most, "" if met else "is the server up, on that port?", wait
            )
        if isinstance(cause, socket.gaierror):
            words = f"the name of the host is not known ({one_line(str(cause.strerror))})"
            return Trouble(NO_CONNECTION, words, most, wait_s=wait)
        if type(cause).__name__ in ("UnsupportedProtocol", "InvalidURL", "LocalProtocolError"):
            return Trouble(NO_CONNECTION, one_line(str(cause)), 1)
    told = next((str(cause) for cause in reversed(chain) if str(cause)), "")
    return Trouble(NO_CONNECTION, f"{one_line(told)} ({type(chain[-1]).__name__})", most, wait_s=wait)


def _status(error: Any) -> Trouble:
    """A status that is no success, with the server's own words."""
    status, sent = int(error.status_code), error.body if error.body is not None else error.response.text
    words = one_line(words_of(sent)) or str(error.response.reason_phrase)
    told = f"HTTP status {status}: {words}"
    if 300 <= status < 400:
        hint = f"it points to {one_line(error.response.headers.get('location', 'nowhere'))}; give that URL"
        return Trouble(str(status), told, 1, hint)
    code = (sent.get("code"), sent.get("type")) if isinstance(sent, Mapping) else ()
    if not passes(status) or "insufficient_quota" in code:
        return Trouble(str(status), told, 1, _hint(status, words))
    wait = _retry_after(error.response.headers.get("retry-after", ""))
    if wait is not None and wait > LONGEST_WAIT_S:
        hint = f"it asks to be left alone for {_time(wait)}; give the same command again then"
        return Trouble(str(status), told, 1, hint)
    return Trouble(str(status), told, wait_s=wait)


def _hint(status: int, words: str) -> str:
    """What helps, where a request is refused."""
    if status in (401, 403):
        return "key_env=VARIABLE names the environment variable that holds the key"
    if status in (404, 405):
        return "the endpoint's URL is what comes before /chat/completions, and its URL/models lists its models"
    if status not in (400, 422):
        return ""
    if "max_completion_tokens" in words:
        return "limit=max_completion_tokens"
    option = next((name for name in _OFF if name in words or name.removeprefix("image_") in words.split("'")), "")
    if option:
        return f"{option}=none leaves it out"
    if "context" in words:
        return "max_tokens=NUMBER, a smaller one, leaves more room for the picture and the rules"
    return "limit=none leaves it out" if "max_tokens" in words else ""


def _retry_after(told: str) -> float | None:
    """Seconds that a `Retry-After` names, as a number or a date; None where it names none."""
    try:
        return max(0.0, float(told)) if float(told) < float("inf") else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"
