import logging
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of this process. Tests that use it belong together: mark them xdist_group("ray")."""
    import ray

    tests = Path(__file__).parent  # for the actors that are defined in them
    folders = [tests, *(path.parent for path in tests.glob("*/test_*.py"))]
    env = {"env_vars": {"PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys(folders))), "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=8, include_dashboard=False, logging_level="WARNING", runtime_env=env)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def logs_are_heard():
    """A command that ran in this process has taken its loggers for itself: pytest's `caplog` hears them again."""
    for name in ("g1_ray", "jobs"):
        logging.getLogger(name).propagate = True
