"""The Ray cluster of a run: found or started, and checked for room before any actor is."""

import atexit
import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from g1_ray import logs
from g1_ray.cluster.placement import Node, check_run, nodes_of_ray, nodes_of_yaml, this_machine
from g1_ray.config import RunConfig

PROCESS_ENV = {
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait take the cores that they wait for
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    logs.VARIABLE: os.environ.get(logs.VARIABLE, ""),
}
"""Environment of every process that works for us on a cluster, there before torch is imported."""
log = logging.getLogger(__name__)


PROBE_S = 5.0
"""Longest wait for a word of a cluster."""
JOIN_S = 25.0
"""Longest wait to be let in by one that has answered; at 30 s Ray ends the process itself, without an exception."""
LOCAL = "local"
"""What Ray calls a cluster of one's own."""
CLIENT = "ray://"
"""What the address of a cluster's Ray Client server begins with."""
ALIVE = {
    False: ("/ray.rpc.NodeInfoGcsService/CheckAlive", b""),
    True: ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06"),
}
"""What a head, or (True) its Ray Client server, answers whoever has its token: the call, and its message (a ping)."""


class Cluster(NamedTuple):
    """A Ray cluster that takes us in, or one that is to be started."""

    address: str = LOCAL
    """HOST:PORT, ray://HOST:PORT or `LOCAL`"""
    source: str = ""
    """What names it, e.g. "RAY_ADDRESS=127.0.0.1:6379"."""


def join(cluster: Cluster | None = None, outlive_signals: bool = False) -> None:
    """Joins or starts `cluster`, by default what `find_cluster` finds.

    `outlive_signals`: a SIGTERM to all processes of a job leaves a cluster started here to whoever ends it in order.
    Raises `ValueError` where it lets nobody in, or does not start.
    """
    if _joined():
        return
    cluster = cluster or find_cluster()
    if _token()[0]:  # Ray has one, and looks at it only where it is told to
        os.environ.setdefault("RAY_AUTH_MODE", "token")

    if folder := os.environ.get("RAY_TMPDIR"):  # Ray's processes have folders of their own that they start in
        os.environ["RAY_TMPDIR"] = os.path.abspath(folder)

    # What fails is found where it is waited for; what nobody waits for is ticks in flight when their actors are ended.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")

    import ray

    if cluster.address == LOCAL:
        _start(outlive_signals)
    else:
        _enter(cluster)
    log.info("joined %s", ray.get_runtime_context().gcs_address)


def _joined() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def find_cluster(address: str = "") -> Cluster:
    """The cluster at `address`, else that of RAY_ADDRESS, else one that runs on this machine, else one to be started.

    Raises `ValueError` where what a person has set names none, or one that does not take us in. One that only happens
    to run here is left alone where it does not.
    """
    source = f"--address {address}" if address else f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}"
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address == LOCAL:
        return Cluster(address, source)
    if address and address != "auto":
        place = address.removeprefix(CLIENT)
        if "://" in place:
            raise ValueError(f"{source}: that is for `ray job submit`; to join a cluster from here, HOST:6379")
        _, colon, port = place.rpartition(":")
        if not (colon and port.isdecimal() and int(port) < 65536):
            raise ValueError(
                f"{source}: no address of a Ray cluster, which is HOST:PORT, ray://HOST:PORT, auto or local"
            )
        if why := _refusal(address):
            raise ValueError(f"{source}: {why}")
        return Cluster(address, source)
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    file = Path(folder) / "ray" / "ray_current_cluster"  # written by `ray start`, and left there by a crash
    running = file.read_text().strip() if file.is_file() else ""
    why = _refusal(running) if running else ""
    if running and not why:
        return Cluster(running, str(file))
    if address and why:
        raise ValueError(f"{source}, which is {running} ({file}): {why}")
    if address:
        raise ValueError(
            f"{source}: no Ray cluster runs on this machine; unset it, or start one with `ray start --head`"
        )
    if running:
        first = why.splitlines()[0].removesuffix(".")
        log.warning("%s names a Ray cluster at %s: %s; one of our own is started", file, running, first)
    return Cluster()


def _refusal(address: str) -> str:
    """Why no Ray cluster takes us in at an address, and what helps, in two lines; '' where one does."""
    import grpc

    (call, message), (token, whose) = ALIVE[address.startswith(CLIENT)], _token()
    metadata = [("authorization", f"Bearer {token}")] if token else []
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address.removeprefix(CLIENT), options=options) as channel:
        try:
            channel.unary_unary(call)(message, timeout=PROBE_S, metadata=metadata)
            return ""
        except grpc.RpcError as error:
            code, words = error.code(), error.details() or str(error.code())
    match code:
        case grpc.StatusCode.UNAUTHENTICATED:
            return (
                f"the Ray cluster there is for those who have its token, and {whose or 'there is none here'}.\n"
                "Give its token (RAY_AUTH_TOKEN=... or RAY_AUTH_TOKEN_PATH=FILE), or RAY_ADDRESS=local for a cluster "
                "of your own."
            )
        case grpc.StatusCode.NOT_FOUND:  # a Ray Client server has heard us, and knows no session of ours yet
            return ""
        case grpc.StatusCode.UNIMPLEMENTED:
            why = "what answers is another server; a head has HOST:6379, its Ray Client server ray://HOST:10001"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            why = f"no word in {PROBE_S:g} s"
        case _:
            why = words.splitlines()[0].rpartition("last error: ")[2]
    return (
        f"no Ray cluster answers there ({why}).\n"
        "Start one, mend the address, or leave it out (unset RAY_ADDRESS) to have one of your own."
    )


def _token() -> tuple[str, str]:
    """Our token for Ray clusters, found as Ray finds it, and words for where it is from; '' twice where there is none.

    Raises `ValueError` where a file is named that can't be read.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return "", f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} says to send none"
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "that of RAY_AUTH_TOKEN is another"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    file = Path(named or "~/.ray/auth_token").expanduser()
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise ValueError(f"RAY_AUTH_TOKEN_PATH={named}: no token can be read there ({error})") from None
        token = ""
    return (token, f"that of {file} is another") if token else ("", "")


def _enter(cluster: Cluster) -> None:
    """Joins a cluster that is there.

    In a thread that is given up where it takes too long: Ray waits minutes for a head that has died or stands still.
    """
    import ray

    failed: list[Exception] = []

    def enter() -> None:
        try:
            ray.init(address=cluster.address, logging_level=logging.WARNING)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=enter, daemon=True)
    with _stderr_kept() as said:
        thread.start()
        thread.join(JOIN_S)
    if not thread.is_alive() and not failed:
        if threading.current_thread() is threading.main_thread():  # as `ray.init` does it there
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        return
    log.info("what Ray said: %s", said())
    if failed and not isinstance(failed[0], (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError)):
        raise failed[0]
    if thread.is_alive():
        atexit.unregister(ray.shutdown)  # would wait for that thread
    why = " ".join(str(failed[0]).split()) or repr(failed[0]) if failed else f"no word in {JOIN_S:g} s"
    raise ValueError(
        f"{cluster.source}: the Ray cluster at {cluster.address} answers, and lets nobody in: {why}\n"
        "See whether its head and its node here are well (`ray status`), or give RAY_ADDRESS=local for one of your own."
    ) from None


@contextlib.contextmanager
def _stderr_kept() -> Iterator[Callable[[], str]]:
    """Keeps what is written to stderr, by C++ too, away from the screen; gives what reads it."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        text = ""

        def read() -> str:
            return text

        try:
            yield read
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)
            kept.seek(0)
            text = kept.read().decode(errors="replace").strip()


_SHORT = "RAY_TMPDIR has to be short and a place that can be written to, such as RAY_TMPDIR=/tmp/ray-me."
_BUSY = "If it is busy, try again later; Ray's own words are in /tmp/ray/session_latest/logs (or RAY_TMPDIR)."


def _start(outlive_signals: bool) -> None:
    """Starts a cluster on this machine; again where a try takes too long."""
    import ray

    for last in (False, False, True):  # Ray gives a start 30 s, which a machine that is very busy exceeds
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if outlive_signals else ())
        try:
            # What the libraries of a local run chatter about stays in Ray's log files; errors come as exceptions.
            ray.init(address=LOCAL, logging_level=logging.WARNING, include_dashboard=False, log_to_driver=False)
            return
        except Exception as error:  # Ray raises a bare one where a process of it is not there in time
            ray.shutdown()
            is_about_place = isinstance(error, OSError)
            if last or is_about_place:
                helps = _SHORT if is_about_place else _BUSY
                why = (str(error).strip() or repr(error)).splitlines()[0]
                raise ValueError(f"Ray does not start on this machine: {why}\n{helps}") from error
            log.warning("Ray did not start (%s); again", error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def connect(config: RunConfig, cluster: Cluster | None = None, cluster_file: str = "") -> None:
    """As `join`, for a run.

    Raises `ValueError` where the run does not fit, before anything of it is started. A cluster that grows is taken at
    the size that it may grow to (`nodes_to_come`).
    """
    if not _joined():
        cluster = cluster or find_cluster()
        if cluster.address == LOCAL:
            check_run(config, this_machine())
    join(cluster, outlive_signals=True)

    if nodes := nodes_to_come(cluster_file):
        check_run(config, nodes)
    else:
        log.warning("the cluster has no node for work yet: it is waited for, whatever it may grow to")


def nodes_to_come(cluster_file: str = "") -> list[Node]:
    """The nodes that the cluster of this process has, or, where it grows, that it may come to have.

    These are what its file says, `cluster_file` or the one that `ray up` leaves on its head. None where it has no node
    for work, and nobody says how far it grows: an autoscaler's first node comes when somebody asks for it.
    """
    import ray

    nodes, here = ray.nodes(), ray.get_runtime_context().get_node_id()
    left = Path("~/ray_bootstrap_config.yaml").expanduser()
    on_head = any(node["NodeID"] == here and "node:__internal_head__" in node["Resources"] for node in nodes)
    if not cluster_file and on_head and left.is_file():
        cluster_file = str(left)
    if cluster_file:
        return nodes_of_yaml(cluster_file)
    there = nodes_of_ray(nodes)
    return there if any(node.get("CPU") or node.get("GPU") for node in there) else []
