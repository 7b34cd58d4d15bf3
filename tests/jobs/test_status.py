"""`g1-ray status`: a run as somebody at another terminal sees it; and `--resume`."""

import json

import pytest
from folders import small_config

from g1_ray.runs.run_folder import RunFolder
from jobs.status import main
from jobs.train import _with_values


@pytest.fixture
def run(tmp_path):
    folder = RunFolder.open(small_config(tmp_path, steps=10))
    its = {"groups": 8.0, "flat_groups": 6.0, "staleness_mean": 0.5, "tokens_per_s": 1234.0, "groups/in_flight": 3.0}
    folder.log(1, its | {"groups/quarantined": 2.0, "recovered/engine": 1.0})
    parts = [
        {"name": "buffer", "up": True, "node": "b05855e0ba05", "process": 17, "busy": 0},
        {"name": "engine 0", "up": False, "node": "", "process": 0, "busy": 4},
    ]
    folder.write_status({"time": 1.0, "step": 1, "parts": parts, "ticks": 5})
    folder.note("engine 0 on node b05855e0, process 18 \x1b[31mdied")
    yield folder
    folder.close()


def test_a_run_that_is_alive(run, capsys):
    assert main([str(run.path)]) == 0
    said = capsys.readouterr().out
    assert f"{run.path}: running, step 1 of 10, the last one 0 s ago" in said
    assert "25% of the groups differed in reward, staleness 0.5, 1,234 tokens/s" in said
    assert "3 groups in flight, 2 groups quarantined; brought back: 1 x engine" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["buffer", "up", "b05855e0", "17", "0"] in rows and "down, being brought back" in said
    assert "5 ticks under way" in said and "engine 0 on node b05855e0" in said and "\x1b" not in said


def test_a_run_that_is_over(run, capsys):
    run.close()
    assert main([str(run.path)]) == 0
    said = capsys.readouterr().out
    assert f"{run.path}: stopped, step 1 of 10" in said and "ticks under way" not in said


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match="no run there; g1-ray runs lists"):
        main([str(tmp_path)])
    (tmp_path / "config.json").write_text(json.dumps({"players": [], "games": [], "protocol": {}}))
    with pytest.raises(ValueError, match="no run there"):
        main([str(tmp_path)])


@pytest.mark.parametrize(
    "given, read",
    [
        (["a.toml", "--resume"], ["a.toml", "--resume=yes"]),
        (["--resume", "a.toml"], ["--resume=yes", "a.toml"]),  # not a value of it
        (["a.toml", "--resume", "auto", "seed=1"], ["a.toml", "--resume", "auto", "seed=1"]),
        (["a.toml", "--resume=auto"], ["a.toml", "--resume=auto"]),
        ([], []),
    ],
)
def test_resume_takes_no_value_but_auto(given, read):
    assert _with_values(given) == read
