"""Who is let in: with and without a token, by which name, with how much, how often. No Ray."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from g1_ray.serve.guard import COOKIE, TOKEN, Guard, ProxyGuard, Rules, cookie_of  # noqa: E402

SECRET = "0123456789abcdef0123"
HERE, ELSEWHERE = ("127.0.0.1", 4000), ("203.0.113.9", 4000)


async def echo(scope, receive, send):
    """Reads a body and says how long it was."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(
    app: Any, path: str = "/", method: str = "GET", client: Any = HERE, body: list[bytes] | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what an ASGI app answers; status 0: it hung up."""
    given = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    chunks, sent = list(body or [b""]), []
    scope = {"type": "http", "method": method, "path": path, "client": client, "scheme": "http", "query_string": b"",
             "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()]}  # fmt: skip

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    if not sent:
        return 0, {}, b""
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, b"".join(message.get("body", b"") for message in sent[1:])


def code(answer: tuple[int, dict[str, str], bytes]) -> str:
    return str(json.loads(answer[2])["error"]["code"])


def test_without_a_token_this_machine_alone_is_answered():
    app = Guard(echo, Rules())
    assert ask(app)[0] == ask(app, client=("::1", 1))[0] == ask(app, host="localhost")[0] == 200
    assert code(ask(app, client=ELSEWHERE)) == "loopback"
    assert code(ask(app, client=None)) == "loopback"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example"])
def test_a_name_that_is_not_the_servers_is_refused(host):
    """A page of another site whose name was made to point here (DNS rebinding)."""
    assert code(ask(Guard(echo, Rules()), host=host)) == "host"
    assert code(ask(Guard(echo, Rules(token=SECRET, hosts=("play.example",))), host=host)) == "host"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[::1"])
def test_pages_of_other_sites_can_not_ask(origin):
    assert code(ask(Guard(echo, Rules()), origin=origin, method="POST")) == "origin"
    assert ask(Guard(echo, Rules()), origin="http://127.0.0.1:8000", method="POST")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/api/catalog", "/v1/models", "/page/arena.js", "/-/routes", "/docs", "/nothing"]
)
@pytest.mark.parametrize("given", ["", "Bearer", "Bearer x", "Basic " + SECRET, "Bearer " + SECRET[:-1], "Bearer \xff"])
def test_with_a_token_every_route_wants_it(path, given):
    app = Guard(echo, Rules(token=SECRET))
    for client in (HERE, ELSEWHERE):
        headers = {"authorization": given} if given else {}
        assert ask(app, path, client=client, host="play.example", **headers)[0] == 401
        assert ask(app, path, client=client, host="play.example", authorization=f"Bearer {SECRET}")[0] == 200


def test_a_person_logs_in_with_a_form_and_a_cookie_that_is_not_the_token():
    app = Guard(echo, Rules(token=SECRET))
    status, headers, body = ask(app, accept="text/html")
    assert status == 401 and b"<form" in body and "script-src 'self'" in headers["content-security-policy"]
    wrong = ask(app, "/login", "POST", body=[b"token=nonsense"], accept="text/html")
    assert wrong[0] == 401 and "set-cookie" not in wrong[1]
    status, headers, _ = ask(app, "/login", "POST", body=[f"token={SECRET}".encode()], accept="text/html")
    cookie = headers["set-cookie"]
    assert status == 303 and "HttpOnly" in cookie and "SameSite=Strict" in cookie and SECRET not in cookie
    assert ask(app, cookie=cookie.partition(";")[0])[0] == 200
    assert ask(app, cookie=f"a=b; {COOKIE}={cookie_of(SECRET)}; c")[0] == 200
    assert ask(app, cookie=f"{COOKIE}={cookie_of(SECRET[::-1])}")[0] == 401


def test_bodies_are_limited_by_what_is_told_and_by_what_comes():
    app = Guard(echo, Rules(max_body=10, large={"/large": 20}))
    assert ask(app, method="POST", content_length="11")[0] == 413
    assert ask(app, method="POST", content_length="9" * 5000)[0] == 413
    assert ask(app, "/large", method="POST", content_length="11", body=[b"x" * 11])[2] == b"11"
    assert ask(app, method="POST", content_length="-1")[0] == 400
    assert ask(app, method="POST", body=[b"x" * 6, b"x" * 4])[2] == b"10"
    assert ask(app, method="POST", body=[b"x" * 6, b"x" * 5])[0] == 413  # no length told, and too much came


def test_a_client_that_asks_too_often_waits_and_others_do_not():
    app = Guard(echo, Rules(token=SECRET, rate=0.001, burst=3))
    bearer = {"authorization": f"Bearer {SECRET}"}
    assert [ask(app, **bearer)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert ask(app, **bearer)[1]["retry-after"] == "1"
    assert ask(app, client=ELSEWHERE, **bearer)[0] == 200


def test_every_answer_has_the_headers_of_a_page_that_asks_nobody_else():
    for answer in (ask(Guard(echo, Rules())), ask(Guard(echo, Rules()), client=ELSEWHERE)):
        assert "default-src 'none'" in answer[1]["content-security-policy"]
        assert answer[1]["x-content-type-options"] == "nosniff"


def test_a_token_that_could_be_guessed_is_refused_and_none_is_shown(monkeypatch):
    monkeypatch.setenv(TOKEN, "hunter2")
    with pytest.raises(ValueError, match="7 characters can be guessed"):
        Rules.from_environment()
    monkeypatch.setenv(TOKEN, SECRET)
    assert SECRET not in repr(Rules.from_environment())


def test_serves_own_proxy_answers_its_routes_to_this_machine_alone_and_holds_no_large_body():
    app = ProxyGuard(echo)
    assert ask(app, "/-/routes")[0] == 200
    assert ask(app, "/-/routes", client=ELSEWHERE)[0] == ask(app, "/-/healthz", client=ELSEWHERE)[0] == 404
    assert ask(app, "/api/sessions", "POST", content_length=str(200 << 20))[0] == 413
    assert ask(app, "/api/sessions", "POST", body=[bytes(1 << 20)])[0] == 413


def test_a_death_behind_the_proxy_of_which_it_says_nothing_is_a_503():
    async def dies(scope, receive, send):
        """As Serve's proxy does where a replica dies in the middle."""

    answer = ask(ProxyGuard(dies))
    assert answer[0] == 503 and code(answer) == "died" and answer[1]["retry-after"] == "1"


def test_pictures_that_unpack_to_more_than_they_weigh():
    command = [sys.executable, str(Path(__file__).with_name("bombs.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(costs) == 15 and sum(bool(cost["said"]) for cost in costs) == 11
    for cost in costs:
        assert cost["seconds"] < (0.1 if cost["said"] else 0.5) and cost["bytes"] < 50 << 20, cost


@pytest.mark.parametrize("name", ["A" * 4000, "..%2froutes.py", "%2e%2e", "index.html", "arena.css/", "arena.css%00"])
def test_files_that_the_page_does_not_have(name):
    from starlette.testclient import TestClient

    from g1_ray.serve.routes import build

    client = TestClient(build(None, Rules()), base_url="http://127.0.0.1", client=HERE)
    assert client.get("/page/arena.css").status_code == client.get("/page/base.css").status_code == 200
    assert client.get(f"/page/{name}", follow_redirects=False).status_code in (307, 400, 404)
