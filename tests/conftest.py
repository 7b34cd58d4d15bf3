import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Ray's files of one process of the tests: what was left in /tmp/ray by a crash says nothing of what is tested.
RAY_FOLDER = tempfile.mkdtemp(prefix="g1-", dir="/tmp")  # short, for the sockets in it
os.environ["RAY_TMPDIR"] = RAY_FOLDER
for name in ("RAY_ADDRESS", "G1_RAY_LOG"):  # nor does what a shell has set for its own work
    os.environ.pop(name, None)

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]  # fmt: skip


def pytest_unconfigure():
    shutil.rmtree(RAY_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of this process. Tests that use it belong together: mark them xdist_group("ray")."""
    import ray

    tests = Path(__file__).parent  # for the actors that are defined in them
    folders = [tests, *(path.parent for path in tests.glob("*/test_*.py"))]
    env = {"env_vars": {"PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys(folders))), "OMP_NUM_THREADS": "1"}}
    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="WARNING", runtime_env=env)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def logs_are_heard():
    """A command that ran in this process has taken its loggers for itself: pytest's `caplog` hears them again."""
    for name in ("g1_ray", "jobs"):
        logging.getLogger(name).propagate = True


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("no chromium: install it, or name one in CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()
