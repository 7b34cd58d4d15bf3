"""What is said while the parts of a run come up, and what becomes of one that does not."""

import time

import pytest

ray = pytest.importorskip("ray")

from g1_ray.pipeline.checkup import await_parts  # noqa: E402

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(120)]


def part(path, error=None):
    """A part that is up, or fails, once there is a file."""

    @ray.remote(num_cpus=0.1)
    def come():
        while not path.exists():
            time.sleep(0.05)
        if error:
            raise error

    return come.remote()


def test_parts_are_told_as_they_come(ray_cluster, tmp_path):
    files = [tmp_path / name for name in ("learner", "first", "second")]
    parts = {"learner": [part(files[0])], "engines": [part(files[1]), part(files[2])]}
    told = []

    def tell(text):
        told.append(text)
        files[len(told) - 1].touch()

    await_parts(parts, tell)
    assert told == [
        "starting: learner 0/1, engines 0/2",
        "starting: learner 1/1, engines 0/2",
        "starting: learner 1/1, engines 1/2",
    ]


def test_a_part_that_fails_is_not_waited_for_with_the_others(ray_cluster, tmp_path):
    (tmp_path / "bad").touch()
    never = part(tmp_path / "never")
    with pytest.raises(ValueError, match="no such model"):
        await_parts({"engines": [never], "learner": [part(tmp_path / "bad", ValueError("no such model"))]}, print)
    with pytest.raises(RuntimeError, match="not everything is up after 1 s: engines 0/1"):
        await_parts({"engines": [never]}, print, timeout_s=1.0)
    ray.cancel(never, force=True)
