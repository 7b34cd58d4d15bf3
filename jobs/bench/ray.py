"""Ray for as long as something is measured with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from g1_ray.cluster.join import Cluster, join


@contextmanager
def cluster() -> Iterator[Any]:
    """A cluster of its own, on this machine; gives the module."""
    join(Cluster())
    import ray

    try:
        yield ray
    finally:
        ray.shutdown()


def cpu_s(pid: int) -> float:
    """CPU seconds that a process of this machine has taken so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
