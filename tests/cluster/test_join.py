"""Where a cluster's address comes from, and what is said where nothing answers there. Starts no Ray."""

import socket
import threading
import time

import pytest

from g1_ray.cluster.join import LOCAL, find_cluster


@pytest.fixture(autouse=True)
def nobody_runs_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


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
    assert find_cluster() == (LOCAL, "")
    assert ("does not answer" in caplog.text) is bool(left)


def test_one_of_my_own(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_cluster()[0] == LOCAL
