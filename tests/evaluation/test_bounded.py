"""A server that sends too much, packed or not, or never ends, is no more than a trouble."""

import gzip
import json
import resource
import socket
import threading
import time
import zlib

import pytest
from endpoints import Parts, reply, serving

from envs import State, Task
from g1_ray.evaluation import endpoint as module
from g1_ray.evaluation.endpoint import Endpoint, EndpointConfig, EndpointError

STATE = State.start(Task.make("2048"), 0)
BODY = json.dumps(reply("up")[2]).encode()
BOMB = gzip.compress(b"0" * (1 << 28))
DRIP = Parts(*([b" ", 0.1] * 100))


def ask(url):
    made = Endpoint(EndpointConfig(url=url, model="m", tries=1, timeout_s=1.0))
    return made.ask(STATE, "play", 0).text


@pytest.mark.parametrize("encoding, pack", [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_packed_reply_is_unpacked(encoding, pack):
    with serving(lambda asked, headers: (200, {"Content-Encoding": encoding}, pack(BODY))) as url:
        assert ask(url) == "up"


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "headers, body, words",
    [
        ({"Content-Encoding": "gzip"}, BOMB, "more than 16 MB"),
        ({}, b"x" * (1 << 25), "more than 16 MB"),
        ({"Content-Encoding": "br"}, b"x", "encoding 'br'"),
        ({"Content-Encoding": "gzip"}, b"no gzip", "can't be unpacked"),
        ({}, DRIP, "no whole reply in the time"),
    ],
    ids=["bomb", "long", "unknown", "broken", "drip"],
)
def test_too_much_is_a_trouble(status, headers, body, words):
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with serving(lambda asked, _: (status, headers, body)) as url:
        with pytest.raises(EndpointError, match=words):
            ask(url)
        assert time.monotonic() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.fixture
def dripping():
    """The address of a server whose head never ends."""
    server, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def answer(connection):
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not over.wait(0.1):
                    connection.sendall(b"X: y\r\n")
            except OSError:  # whoever asked has not waited
                pass

    def serve():
        while not over.is_set():
            try:
                threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    over.set()
    server.close()


def test_a_head_without_end_is_left_alone(dripping, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 1.0)
    begun = time.monotonic()
    with pytest.raises(EndpointError, match="no whole reply in the time"):
        ask(dripping)
    Endpoint(EndpointConfig(url=dripping, model="m")).meet()  # somebody is there
    assert time.monotonic() - begun < 10
