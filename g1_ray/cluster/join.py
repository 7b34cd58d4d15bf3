"""The Ray cluster of a run: found or started, and checked for room before any actor is."""

import logging
import os
import signal
import sys
from pathlib import Path

from g1_ray import logs
from g1_ray.cluster.placement import check_run, nodes_of_ray, nodes_of_yaml, this_machine
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
LOCAL = "local"
"""What Ray calls a cluster of one's own."""


def join(address: str = "", outlive_signals: bool = False) -> None:
    """Joins the cluster at `address`, else that of RAY_ADDRESS, else one that runs on this machine, else starts one.

    `outlive_signals`: a SIGTERM to all processes of a job leaves a cluster started here to whoever ends it in order.
    Raises `ValueError` that says where the address comes from, where no cluster answers or it lets nobody in.
    """
    if _joined():
        return
    address, source = find_cluster(address)
    if Path("~/.ray/auth_token").expanduser().exists():  # Ray writes it, and looks at it only where it is told to
        os.environ.setdefault("RAY_AUTH_MODE", "token")

    # What fails is found where it is waited for; what nobody waits for is ticks in flight when their actors are ended.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")

    import ray

    if address == LOCAL:
        _start(outlive_signals)
    else:
        try:
            ray.init(address=address, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"the Ray cluster at {address} ({source}) lets nobody in: {why}\n"
                "Give its token (RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...), or RAY_ADDRESS=local for one of your own."
            ) from None
    log.info("joined %s", ray.get_runtime_context().gcs_address)


def _joined() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def find_cluster(address: str = "") -> tuple[str, str]:
    """The address of a cluster that answers, and what names it; `LOCAL` where one is to be started.

    Raises `ValueError` where what a person has set names none.
    """
    source = f"--address {address}" if address else f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}"
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address == LOCAL:
        return address, source
    if address and address != "auto":
        place = address.removeprefix("ray://")
        if "://" in place:
            raise ValueError(f"{source}: that is for `ray job submit`; to join a cluster from here, HOST:6379")
        _, colon, port = place.rpartition(":")
        if not (colon and port.isdecimal() and int(port) < 65536):
            raise ValueError(
                f"{source}: no address of a Ray cluster, which is HOST:PORT, ray://HOST:PORT, auto or local"
            )
        if why := _silence(place):
            raise ValueError(
                f"{source}: no Ray cluster answers there ({why}).\n"
                "Start one, mend the address, or leave it out (unset RAY_ADDRESS) to have one of your own."
            )
        return address, source
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    file = Path(folder) / "ray" / "ray_current_cluster"  # written by `ray start`, and left there by a crash
    running = file.read_text().strip() if file.is_file() else ""
    if running and not (why := _silence(running)):
        return running, str(file)
    if address:
        raise ValueError(
            f"{source}: no Ray cluster runs on this machine; unset it, or start one with `ray start --head`"
        )
    if running:
        log.warning("%s names a Ray cluster at %s that does not answer (%s): one is started", file, running, why)
    return LOCAL, ""


def _silence(place: str) -> str:
    """Why nothing that is a Ray cluster answers at HOST:PORT; '' where something does."""
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=PROBE_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED):
                return ""  # somebody is there
            words = (error.details() or str(error.code())).splitlines()[0].rpartition("last error: ")[2]
            return f"no word in {PROBE_S:g} s" if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED else words
    return ""


def _start(outlive_signals: bool) -> None:
    """Starts a cluster on this machine; once more where the first try takes too long."""
    import ray

    for last in (False, True):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if outlive_signals else ())
        try:
            # What the libraries of a local run chatter about stays in Ray's log files; errors come as exceptions.
            ray.init(address=LOCAL, logging_level=logging.WARNING, include_dashboard=False, log_to_driver=False)
            return
        except Exception as error:  # Ray raises a bare one where a process of it is not there in time
            ray.shutdown()
            if last:
                raise ValueError(
                    f"Ray does not start on this machine: {(str(error).strip() or repr(error)).splitlines()[0]}\n"
                    "If it is busy, try again later; what Ray says is in /tmp/ray/session_latest/logs (or RAY_TMPDIR)."
                ) from error
            log.warning("Ray did not start (%s); once more", error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def connect(config: RunConfig, address: str = "", cluster_file: str = "") -> None:
    """As `join`, for a run.

    Raises `ValueError` where the run does not fit, before anything of it is started. A cluster that grows is taken at
    the size that its file `cluster_file` lets it grow to.
    """
    if not _joined() and find_cluster(address)[0] == LOCAL:
        check_run(config, this_machine())
    join(address, outlive_signals=True)

    import ray

    check_run(config, nodes_of_yaml(cluster_file) if cluster_file else nodes_of_ray(ray.nodes()))
