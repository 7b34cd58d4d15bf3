"""The Ray cluster of a run: found or started, and checked for room before any actor is."""

import logging
import os
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


def join(address: str = "") -> None:
    """Joins the cluster at `address`, else that of RAY_ADDRESS, else one that runs on this machine, else starts one."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    if Path("~/.ray/auth_token").expanduser().exists():  # Ray writes it, and looks at it only where it is told to
        os.environ.setdefault("RAY_AUTH_MODE", "token")

    # What fails is found where it is waited for; what nobody waits for is ticks in flight when their actors are ended.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")

    import ray

    if not ray.is_initialized():
        try:
            # What the libraries of a local run chatter about stays in Ray's log files; errors come as exceptions.
            local = {} if address else {"include_dashboard": False, "log_to_driver": False}
            ray.init(address=address or None, logging_level=logging.WARNING, **local)
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from None
        log.info("joined %s", ray.get_runtime_context().gcs_address)


def connect(config: RunConfig, address: str = "", cluster_file: str = "") -> None:
    """As `join`, for a run.

    Raises `ValueError` where the run does not fit, before anything of it is started. A cluster that grows is taken at
    the size that its file `cluster_file` lets it grow to.
    """
    if not (address or os.environ.get("RAY_ADDRESS", "")):
        check_run(config, this_machine())
    join(address)

    import ray

    check_run(config, nodes_of_yaml(cluster_file) if cluster_file else nodes_of_ray(ray.nodes()))
