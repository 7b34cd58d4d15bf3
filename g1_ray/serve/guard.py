"""Who may speak to the server, and how much: an ASGI layer before everything else.

    bodies     larger than a route may have: refused before they are read (Serve itself takes any)
    callers    without a token: from this machine alone; with one: whoever has it, on every route
    pages      of other sites can't have a browser speak for its user: Host and Origin are checked
    clients    that ask too often wait

What goes out carries a strict Content-Security-Policy. Tokens are compared in constant time, and are in no log.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "G1_RAY_SERVE_TOKEN"
"""The environment variable that has the token."""
COOKIE = "g1_ray"
MIN_TOKEN = 16
"""Characters of a token, at least."""
CLIENTS = 10_000
"""Clients whose rate is remembered."""
BODY_S = 30.0
"""Longest wait for a body."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Rules:
    """What is allowed."""

    token: str = field(default="", repr=False)
    """'': callers from this machine alone."""
    hosts: tuple[str, ...] = ()
    """Names that the server is called by, beside those of this machine; with a token and none given, any."""
    max_body: int = 64 * 1024
    """Bytes."""
    large: Mapping[str, int] = field(default_factory=lambda: {"/v1/chat/completions": 12 * 2**20})
    """Bytes by path, where they are more."""
    rate: float = 100.0
    """Requests a second of a client, at a replica."""
    burst: float = 300.0
    """How many at once."""

    @classmethod
    def from_environment(cls, **rules: Any) -> "Rules":
        """With the token of the environment. Raises `ValueError` for one that could be guessed."""
        token = os.environ.get(TOKEN, "")
        if token and len(token) < MIN_TOKEN:
            raise ValueError(
                f"{TOKEN}: {len(token)} characters can be guessed; give {MIN_TOKEN} or more: openssl rand -hex 16"
            )
        return cls(token=token, **rules)


class Guard:
    """The layer."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> requests left, when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self.rules.large.get(scope["path"], self.rules.max_body)
        if refusal := self._refusal(scope, headers, limit):
            await self._login_or(refusal, scope, headers, receive, send)
            return
        body = await _read(receive, limit)
        if isinstance(body, tuple):
            await _refuse(send, *body)
            return
        await self.app(scope, _again(body, receive), _dressed(send))

    def _refusal(self, scope: Scope, headers: Mapping[str, str], limit: int) -> tuple[int, str, str] | None:
        """Status, code and message for a request that is not let in."""
        host = _host_of(headers.get("host", ""))
        if not self._known(host):
            return 403, "host", "this server is not known by that name; give it with --hosts"
        origin = headers.get("origin")
        if origin is not None and _host_of(origin.partition("://")[2]) != host:
            return 403, "origin", "pages of other sites can't ask here"
        if not self._spends(scope, headers):
            return 429, "rate", "too many requests; wait a second"
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "length", "Content-Length is no number"
        if int(length[:20]) > limit:
            return 413, "too_large", f"a body of {length[:20]} bytes: up to {limit}"
        if self.rules.token:
            return None if self._has_token(headers) else (401, "token", "give the token: Authorization: Bearer TOKEN")
        if not _is_here(scope):
            return 403, "loopback", f"without a token ({TOKEN}) this server answers its own machine alone"
        return None

    def _known(self, host: str) -> bool:
        if host in ("localhost", "127.0.0.1", "::1") or host in self.rules.hosts:
            return True
        return bool(self.rules.token) and not self.rules.hosts

    def _has_token(self, headers: Mapping[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _equal(given.strip(), self.rules.token):
            return True
        cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
        return _equal(cookies.get(COOKIE, ""), cookie_of(self.rules.token))

    def _spends(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        """Takes one request off what the client has left; False where nothing is."""
        client, now = (scope.get("client") or ("", 0))[0], time.monotonic()
        left, at = self._buckets.pop(client, (self.rules.burst, now))
        left = min(self.rules.burst, left + (now - at) * self.rules.rate)
        self._buckets[client] = max(left - 1, 0.0), now
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return left >= 1

    async def _login_or(
        self, refusal: tuple[int, str, str], scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send
    ) -> None:
        """The form to log in with, where a person lacks the token; else the refusal."""
        status, code, message = refusal
        if code != "token" or "text/html" not in headers.get("accept", ""):
            await _refuse(send, status, code, message)
        elif scope["method"] == "POST" and scope["path"] == "/login":
            body = await _read(receive, 4096)
            given = parse_qs(body.decode("latin-1")).get("token", [""])[0] if isinstance(body, bytes) else ""
            if _equal(given, self.rules.token):
                secure = "; Secure" if scope.get("scheme") == "https" else ""
                cookie = f"{COOKIE}={cookie_of(self.rules.token)}; Path=/; HttpOnly; SameSite=Strict{secure}"
                await _respond(send, 303, b"", "text/plain", {"set-cookie": cookie, "location": "/"})
            else:
                await _respond(send, 401, _form("That is not the token."), "text/html; charset=utf-8", {})
        else:
            await _respond(send, 401, _form(""), "text/html; charset=utf-8", {})


class ProxyGuard:
    """The part of it that stands in Serve's own proxy: bodies, which it would hold, its routes, its word for deaths."""

    def __init__(self, app: App) -> None:
        self.app, self.rules = app, Rules()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            limit = self.rules.large.get(scope["path"], self.rules.max_body)
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if length.isdigit() and int(length[:20]) > limit:
                await _refuse(send, 413, "too_large", f"up to {limit} bytes")
                return
            if scope["path"].startswith("/-/") and not _is_here(scope):
                await _refuse(send, 404, "http", "Not Found")
                return
            body = await _read(receive, limit)
            if isinstance(body, tuple):
                await _refuse(send, *body)
                return
            await _outlived(self.app, scope, _again(body, receive), send)
            return
        await self.app(scope, receive, send)


def proxy_layers() -> list[Any]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, where Ray is started."""
    from starlette.middleware import Middleware

    return [Middleware(ProxyGuard)]


def cookie_of(token: str) -> str:
    """What a browser keeps in place of the token."""
    return hmac.new(token.encode(), b"g1_ray cookie", hashlib.sha256).hexdigest()


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _host_of(netloc: str) -> str:
    """A host without its port, in lower case."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_here(scope: Scope) -> bool:
    """Whether the other end of the connection is on this machine."""
    try:
        return ipaddress.ip_address((scope.get("client") or ("",))[0]).is_loopback
    except ValueError:
        return False


def _form(fault: str) -> bytes:
    note = f"<p role=alert>{fault}</p>" if fault else ""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>g1_ray</title><main><h1>g1_ray</h1><form method=post action=/login><label>Token "
        f"<input type=password name=token autocomplete=current-password autofocus required></label> "
        f"<button>Enter</button></form>{note}</main></html>"
    ).encode()


async def _read(receive: Receive, limit: int) -> bytes | tuple[int, str, str]:
    """The whole body; or status, code and message where it is too large, too slow, or was given up."""
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return 400, "gone", "the connection was closed before the body was whole"
                data += message.get("body", b"")
                if len(data) > limit:
                    return 413, "too_large", f"a body of more than {limit} bytes"
                if not message.get("more_body"):
                    return bytes(data)
    except TimeoutError:
        return 408, "slow", f"the body took more than {BODY_S:g} s"


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, and then whatever comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


def _dressed(send: Send) -> Send:
    """The answer with the headers of all answers."""

    async def dressed(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message.get("headers", ())}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
            if b"cache-control" not in own:
                message["headers"].append((b"cache-control", b"no-store"))
        await send(message)

    return dressed


async def _outlived(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Has the proxy answer. It gives no answer at all where the replica that had the request died: a 503 then."""
    begun = False

    async def begins(message: MutableMapping[str, Any]) -> None:
        nonlocal begun
        begun = True
        await send(message)

    await app(scope, receive, begins)
    if not begun:
        await _refuse(send, 503, "died", "a part of the server died; ask again")


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    """A refusal, in the form of OpenAI's errors."""
    extra = {"retry-after": "1"} if status in (429, 503) else {"www-authenticate": "Bearer"} if status == 401 else {}
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    await _respond(send, status, json.dumps(body).encode(), "application/json", extra)


async def _respond(send: Send, status: int, body: bytes, kind: str, headers: Mapping[str, str]) -> None:
    given = {"content-type": kind, "content-length": str(len(body)), "connection": "close", **headers}
    await _dressed(send)(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
