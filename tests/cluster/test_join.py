"""Where a cluster's address comes from, and what is said where nothing answers there. Starts no Ray."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from g1_ray.cluster import join as module
from g1_ray.cluster.join import ALIVE, LOCAL, Cluster, find_cluster, nodes_to_come


@pytest.fixture(autouse=True)
def nobody_runs_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    "address, message",
    [
        ("127.0.0.1:{port}", "no Ray cluster answers there .*[Rr]efused.*\n.*unset RAY_ADDRESS"),
        ("ray://127.0.0.1:{port}", "no Ray cluster answers there"),
        ("http://127.0.0.1:{port}", "ray job submit"),
        ("auto", "no Ray cluster runs on this machine"),
        ("my-cluster", "HOST:PORT"),
        ("localhost:99999", "HOST:PORT"),
        (":", "HOST:PORT"),
    ],
)
@pytest.mark.parametrize("source", ["RAY_ADDRESS=", "--address "])
def test_an_address_where_nothing_is_is_told_with_its_source(address, message, source, closed_port, monkeypatch):
    address = address.format(port=closed_port)
    if source == "RAY_ADDRESS=":
        monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        find_cluster("" if source == "RAY_ADDRESS=" else address)
    assert str(error.value).startswith(source + address) and len(str(error.value).splitlines()) <= 3
    assert time.monotonic() - begun < 8


def test_what_answers_but_is_no_cluster_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhello")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ValueError, match="no Ray cluster answers there"):
            find_cluster(f"127.0.0.1:{port}")


@pytest.mark.parametrize("left", [None, "", "127.0.0.1:{port}"])
def test_where_none_runs_one_is_started_also_beside_a_stale_address(left, closed_port, tmp_path, caplog):
    if left is not None:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(left.format(port=closed_port))
    assert find_cluster() == Cluster(LOCAL, "")
    assert ("no Ray cluster answers there" in caplog.text) is bool(left)


def test_one_of_my_own(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_cluster().address == LOCAL


def test_a_folder_of_ray_may_be_given_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "here")
    monkeypatch.setattr(module, "_joined", lambda: False)
    given = []

    def start(outlive_signals):
        given.append(os.environ["RAY_TMPDIR"])
        raise ValueError("enough")

    monkeypatch.setattr(module, "_start", start)
    with pytest.raises(ValueError, match="enough"):
        module.join()
    assert given == [str(tmp_path / "here")]


@pytest.mark.parametrize("place", ["/proc/nowhere", "/tmp/" + 90 * "x"])
def test_a_folder_that_ray_cannot_use_is_told_at_once(place, monkeypatch, caplog):
    import ray

    def start(**options):
        raise OSError(f"no room for a socket: {place}")

    monkeypatch.setattr(module, "_joined", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", place)
    with pytest.raises(ValueError, match=f"{place}\nRAY_TMPDIR has to be short"):
        module.join()
    assert "again" not in caplog.text


class Head(grpc.GenericRpcHandler):
    """Stands in for the head of a cluster, or its Ray Client server: says a word to whoever has its token."""

    def __init__(self, token: str, client: bool) -> None:
        self.token, self.call = token, ALIVE[client][0]

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.answer) if details.method == self.call else None

    def answer(self, message, context):
        if self.token and ("authorization", f"Bearer {self.token}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""


@pytest.fixture
def head():
    """Starts one; gives its address."""
    servers = []

    def start(token="", client=False):
        servers.append(grpc.server(futures.ThreadPoolExecutor(2), [Head(token, client)]))
        port = servers[-1].add_insecure_port("127.0.0.1:0")
        servers[-1].start()
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


OURS, THEIRS = "ours" * 8, "theirs" * 8


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("ours", ["", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HOME"])
def test_a_token_opens_the_cluster_that_it_is_of_and_no_other(ours, client, head, tmp_path, monkeypatch):
    file = tmp_path / ("token" if ours == "RAY_AUTH_TOKEN_PATH" else ".ray/auth_token")
    if ours == "RAY_AUTH_TOKEN":
        monkeypatch.setenv(ours, OURS)
    elif ours:
        file.parent.mkdir(exist_ok=True)
        file.write_text(OURS + "\n")
        monkeypatch.setenv(ours, str(file if ours == "RAY_AUTH_TOKEN_PATH" else tmp_path))
    mine, foreign, unlocked = (("ray://" if client else "") + head(token, client) for token in (OURS, THEIRS, ""))
    assert find_cluster(unlocked).address == unlocked
    if ours:
        assert find_cluster(mine).address == mine
    monkeypatch.setenv("RAY_ADDRESS", foreign)
    with pytest.raises(ValueError) as error:
        find_cluster()
    told = str(error.value)
    whose = {"": "there is none here", "RAY_AUTH_TOKEN": "that of RAY_AUTH_TOKEN"}.get(ours, f"that of {file}")
    assert told.startswith(f"RAY_ADDRESS={foreign}: ") and whose in told and "RAY_ADDRESS=local" in told
    assert len(told.splitlines()) <= 3 and OURS not in told and "RAY_AUTH_TOKEN_PATH=" in told


def test_no_token_is_sent_where_the_mode_says_so(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", OURS)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE=disabled"):
        find_cluster(head(OURS))


def test_a_token_that_cannot_be_read_is_told(head, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nope"))
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN_PATH=.*nope"):
        find_cluster(head())


@pytest.mark.parametrize("client", [False, True])
def test_a_head_is_no_client_server_and_the_other_way_round(client, head):
    with pytest.raises(ValueError, match="another server"):
        find_cluster(("" if client else "ray://") + head("", client))


def test_a_cluster_of_others_that_happens_to_run_here_is_left_alone(head, tmp_path, monkeypatch, caplog):
    (tmp_path / "ray").mkdir()
    foreign = head(THEIRS)
    (tmp_path / "ray" / "ray_current_cluster").write_text(foreign)
    assert find_cluster() == Cluster(LOCAL, "")
    assert foreign in caplog.text and "one of our own is started" in caplog.text
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # that is to ask for it
    with pytest.raises(ValueError, match=f"RAY_ADDRESS=auto, which is {foreign} .*its token"):
        find_cluster()


def test_a_cluster_that_stands_still_once_it_has_answered_is_not_waited_for():
    """Ray waits for five minutes, and talks meanwhile: in a process of its own, which has to end in order as well."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code = (
            "import sys; from g1_ray.cluster import join as j; j.JOIN_S = 8.0\n"
            f"try: j.join(j.Cluster({address!r}, 'RAY_ADDRESS=x'))\n"
            "except ValueError as error: sys.exit(str(error))"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and len(ended.stderr.strip().splitlines()) <= 3, ended.stderr
    for part in ("RAY_ADDRESS=x", address, "no word in 8 s", "RAY_ADDRESS=local"):
        assert part in ended.stderr


@pytest.mark.parametrize("work, left, is_head, given, number", [
    (8, False, True, "", 2),  # a cluster that stays as it is
    (0, False, True, "", 0),  # it grows, and nobody says how far
    (0, True, True, "", 10),  # `ray up` has left its file on the head, where this runs
    (8, True, False, "", 2),  # this is no head: that file is another cluster's
    (8, False, False, "cluster.yaml", 10),
])  # fmt: skip
def test_a_cluster_that_grows_is_taken_at_the_size_that_it_may_have(
    tmp_path, monkeypatch, work, left, is_head, given, number
):
    ray = pytest.importorskip("ray")
    file = Path(__file__).parents[2] / "cluster.yaml"
    head = {"node:__internal_head__": 1.0} if is_head else {}
    nodes = [{"NodeID": "a", "Alive": True, "Resources": {"memory": 1e9, **head}, "Labels": {}},
             {"NodeID": "b", "Alive": True, "Resources": {"CPU": work}, "Labels": {}}]  # fmt: skip
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    monkeypatch.setenv("HOME", str(tmp_path))
    if left:
        shutil.copy(file, tmp_path / "ray_bootstrap_config.yaml")
    assert len(nodes_to_come(str(file) if given else "")) == number
