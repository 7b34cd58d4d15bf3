"""Slow proofs on the real application: `make soak`. Many games for minutes, parts killed, numbers beside a bare Serve.

G1_RAY_SOAK_MINUTES says how long the games are played (default 10).
"""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import psutil
import pytest

pytest.importorskip("ray.serve")

from arena_client import GIVES_UP_S, Client, Server, free_port, serving, together  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(3600)]
MINUTES = float(os.environ.get("G1_RAY_SOAK_MINUTES", "10"))
GAMES = 24
HANDS = 16
PARTS = ("ingress", "model-tiny", "games")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = ["--rate", "100000", "--min-replicas", "2"]
    with serving(tmp_path_factory.mktemp("soak"), "tiny=tiny-coldstart?temperature=0", *options) as server:
        yield server


def p95(seconds: list[float]) -> float:
    return 1000 * float(np.percentile(seconds, 95))


def hello(number: int) -> list[float]:
    """How long a bare Serve deployment takes to say hello, in a cluster of its own: what is measured beside."""
    code = (
        "import ray, time, httpx\nfrom ray import serve\n"
        "ray.init(address='local', include_dashboard=False, log_to_driver=False)\n"
        "serve.start(http_options={'port': %d})\n"
        "@serve.deployment(num_replicas=2, ray_actor_options={'num_cpus': 0})\nclass Hello:\n"
        "    async def __call__(self, request): return 'hello'\n"
        "serve.run(Hello.bind())\nhttp = httpx.Client()\n"
        "for _ in range(20): http.get('http://127.0.0.1:%d/')\n"
        "for _ in range(%d):\n    t = time.perf_counter(); http.get('http://127.0.0.1:%d/')\n"
        "    print('took', time.perf_counter() - t)\n    time.sleep(0.02)\n"
    )
    port = free_port()
    out = subprocess.run(
        [sys.executable, "-c", code % (port, port, number, port)], capture_output=True, text=True, timeout=300
    ).stdout
    return [float(line.split()[1]) for line in out.splitlines() if line.startswith("took")]


def test_a_key_press_and_a_first_word_are_answered_in_time(server):
    """One person on two cores: 100 ms to a new board, 400 ms to a model's first word, at the 95th percentile."""
    client = Client(server.url)
    (lane,) = client.begin("person", reasoning={"size": 4})["lanes"]
    rng = random.Random(0)
    while len(client.seconds) < 200:
        lane = client.move(lane, rng.choice(lane["legal"])["action"])
        if lane["over"]:
            (lane,) = client.begin("person", reasoning={"size": 4})["lanes"]
        time.sleep(0.02)
    (lane,) = client.begin("greedy", reasoning={"size": 4})["lanes"]
    classic = Client(server.url)
    classic.session = client.session
    while len(classic.seconds) < 100 and not lane["over"]:
        lane = classic.move(lane)
    watcher = Client(server.url)
    (lane,) = watcher.begin("tiny")["lanes"]
    while len(watcher.first_words) < 60:
        lane = watcher.watch(lane)
        if lane["over"]:
            (lane,) = watcher.begin("tiny")["lanes"]
    bare = hello(200)
    told = {"a person's move": client.seconds, "a classic player's move": classic.seconds,
            "a model's first word": watcher.first_words, "a bare Serve's hello": bare}  # fmt: skip
    for name, seconds in told.items():
        print(f"\n{name}: median {1000 * float(np.median(seconds)):.1f} ms, p95 {p95(seconds):.1f} ms", end="")
    assert p95(client.seconds) <= 100 and p95(classic.seconds) <= 100 and p95(watcher.first_words) <= 400


def played(server: Server, minutes: float = 0.0, kills: int = 0) -> tuple[list[Client], list[float]]:
    """`GAMES` at once, two of them watching the model, the others by themselves or against classic players: for so many
    minutes, or until each part was killed so often. The clients, and how long after each death all games had gone on.
    """
    clients, gaps, over = [Client(server.url) for _ in range(GAMES)], list[float](), threading.Event()

    def play(number: int) -> None:
        client, rng = clients[number], random.Random(number)
        seat = "tiny" if number < 2 else "greedy" if number < 8 else "person"
        while not over.is_set():
            (lane,) = client.begin(seat, seed=number)["lanes"]
            while not lane["over"] and not over.is_set():
                if seat == "tiny":
                    lane = client.watch(lane)
                else:
                    lane = client.move(lane, rng.choice(lane["legal"])["action"] if seat == "person" else None)
                time.sleep(rng.random())
            client.check()

    def end() -> None:
        try:
            over.wait(60 * minutes or 10)
            for part in PARTS * kills:  # in turn: each is back to full number before it loses one again
                victim, at = random.Random(part).choice(server.replicas(part)), time.monotonic()
                victim.kill()
                while min(client.moved_at for client in clients) < at:
                    assert time.monotonic() < at + GIVES_UP_S, f"{part}: a game stands still"
                    time.sleep(0.1)
                gaps.append(time.monotonic() - at)
                print(f"\n{time.strftime('%H:%M:%S')} {part} {victim.pid} killed, {gaps[-1]:.1f} s", end="", flush=True)
                time.sleep(20)
        finally:
            over.set()

    together([*(lambda number=number: play(number) for number in range(GAMES)), end])
    return clients, gaps


def test_many_games_at_once_lose_no_move(server):
    memory = rss(server)
    clients, _ = played(server, MINUTES)
    seconds = [each for client in clients for each in client.seconds]
    statuses = {status for client in clients for status in client.statuses}
    print(
        f"\n{len(seconds)} moves, p95 {p95(seconds):.0f} ms, statuses {statuses}, memory {memory} -> {rss(server)} MB"
    )
    assert statuses == {200}


def test_parts_die_and_every_game_goes_on(server):
    """Nine deaths: each time every game goes on within 30 s, and no move is lost or doubled."""
    before = scores(server)
    clients, gaps = played(server, kills=3)
    again = sum(status != 200 for client in clients for status in client.statuses)
    print(f"\nall games go on after {max(gaps):.1f} s at most, asked again {again} times")
    assert len(gaps) == 9 and max(gaps) < 30
    assert scores(server) >= before


def scores(server: Server) -> int:
    """Games on the scoreboard."""
    return sum(row["games"] for board in Client(server.url).ask("GET", "/api/scoreboard") for row in board["rows"])


def rss(server: Server) -> int:
    """Memory of all its processes, MB."""
    root = psutil.Process(server.process.pid)
    return sum(each.memory_info().rss for each in (root, *root.children(recursive=True))) // 10**6


# Requests that nobody should send

PATHS = ("/", "/api/catalog", "/api/sessions", "/api/sessions/{id}", "/api/sessions/{id}/lanes/0/moves",
         "/api/sessions/{id}/lanes/0/undo", "/api/sessions/{id}/lanes/0/seat", "/api/sessions/{id}/lanes/0/hint",
         "/api/sessions/{id}/lanes/0/moves/0", "/api/sessions/{id}/link", "/api/replay", "/api/scoreboard",
         "/api/recordings?game=2048&name=Ann", "/page/arena.css", "/v1/models", "/v1/models/tiny",
         "/v1/chat/completions", "/login", "/-/routes")  # fmt: skip
BODIES = (
    '{"game": "2048", "seats": ["person"], "name": "Ann"}', '{"revision": 0, "action": 1}', '{"revision": 0}',
    '{"revision": 0, "text": "up"}', '{"revision": 0, "seat": "greedy"}', '{"link": "AAAA", "lane": 0}',
    '{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}',
    '{"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": [{"type": "image_url", '
    '"image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]}]}', "", "[]", "null", "{" * 3000, "token=x",
)  # fmt: skip
PIECES = (
    "\0", "\xff", "%00", "%2e%2e/", "../", "A" * 300, "9" * 400, "-1", "1e999", "NaN", "true", '"', "{", "[]",
    "null", "\ud7ff", "é", "🎲", "\r\n", "&", "?", "#", " ", "<script>", "__proto__", "0x10", "18446744073709551616",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "get", "G\xc9T")
HEADERS = (
    "Content-Type: text/xml", "Content-Length: 5", "Content-Length: -5", "Content-Length: 99999999999",
    "Transfer-Encoding: chunked", "Origin: https://evil.example", "Host: evil.example", "Accept: text/html",
    "Accept: text/event-stream", "Authorization: Bearer x", "Cookie: g1_ray=x", "Expect: 100-continue",
    "Upgrade: websocket", "Range: bytes=0-1", "Content-Encoding: gzip", "X: " + "y" * 9000,
)  # fmt: skip


def mutated(rng: random.Random, id: str) -> bytes:
    """A request that is wrong somewhere, or nowhere."""
    method = "POST" if rng.random() < 0.6 else rng.choice(METHODS)
    path, body = rng.choice(PATHS).replace("{id}", id), rng.choice(BODIES)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        piece = rng.choice(PIECES)
        if rng.random() < 0.4:
            at = rng.randrange(len(path) + 1)
            path = path[:at] + piece.replace("\r\n", "") + path[at + rng.randrange(3) :]
        else:
            at = rng.randrange(len(body) + 1)
            body = body[:at] + piece + body[at + rng.randrange(4) :]
    data = body.encode("utf-8", "surrogatepass")
    headers = ["Host: 127.0.0.1", "Content-Type: application/json"]
    if rng.random() < 0.85:
        headers.append(f"Content-Length: {len(data)}")
    headers += [rng.choice(HEADERS) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    head = f"{method} {path} HTTP/1.1\r\n" + "\r\n".join(headers) + "\r\n\r\n"
    request = head.encode("utf-8", "surrogatepass") + data
    return request[: rng.randrange(len(request))] if rng.random() < 0.03 else request


FRAMING = (b"\r\nContent-Length: ", b"\r\nTransfer-Encoding:", b"\r\nUpgrade:")


def is_whole(request: bytes) -> bool:
    """Whether a server can tell where the request ends, so that it owes an answer at once."""
    head, end, body = request.partition(b"\r\n\r\n")
    framed = (
        f"\r\nContent-Length: {len(body)}\r\n".encode() in head + b"\r\n"
        and sum(head.count(name) for name in FRAMING) == 1
    )
    return bool(end) and (framed or not body and not any(name in head for name in FRAMING))


SILENT = -1
"""In place of a status: a whole request that was waited for in vain."""


def sent(port: int, request: bytes, rng: random.Random) -> int:
    """The status of an answer; 0: none, as the connection was cut, or the server waits for more."""
    whole = is_whole(request)
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(request)
            if rng.random() < 0.02:
                return 0  # gone before the answer
            connection.settimeout(20 if whole else 0.2)
            answer = connection.recv(200 if rng.random() < 0.1 else 4096)
            while answer.startswith(b"HTTP/1.1 100"):  # the answer proper comes after it
                answer = answer.partition(b"\r\n\r\n")[2] or connection.recv(4096)
            parts = answer.split(b" ", 2)
            return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
    except TimeoutError:
        return SILENT if whole else 0
    except OSError:
        return 0


@pytest.mark.fuzz
def test_no_request_breaks_it(server):
    """100,000 by sixteen hands: no 5xx but 503, memory bounded, and games go on afterwards."""
    port, client = int(server.url.rpartition(":")[2]), Client(server.url)
    id = client.begin("person")["id"]
    total, memory, broken = int(os.environ.get("G1_RAY_REQUESTS", "100000")), [], []
    told = [Counter() for _ in range(HANDS)]

    def hand(number: int) -> None:
        rng = random.Random(number)
        for count in range(total // HANDS):
            request = mutated(rng, id)
            status = sent(port, request, rng)
            told[number][status] += 1
            if (status >= 500 and status != 503) or status == SILENT:
                broken.append((status, request[:600]))
            if not number and count % (total // HANDS // 20) == 0:
                memory.append(rss(server))

    together([lambda number=number: hand(number) for number in range(HANDS)])
    statuses = sum(told, Counter())
    print(f"\n{dict(statuses)}, memory {memory} MB")
    assert statuses.total() == total // HANDS * HANDS
    assert not broken, broken[:3]
    assert memory[-1] < memory[len(memory) // 4] + 300
    (lane,) = client.begin("tiny")["lanes"]
    client.watch(lane)
    client.check()
