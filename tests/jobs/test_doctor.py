"""What a command says of the machine, of itself, and of what a run came to."""

import pytest
from folders import small_config

from jobs.__main__ import COMMANDS, main
from jobs.train import say_verdict


@pytest.fixture(autouse=True)
def nobody_runs_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    "variable, value, says, mend",
    [
        ("RAY_ADDRESS", "127.0.0.1:9", "no Ray cluster answers there", "Start one"),
        ("RAY_ADDRESS", "http://127.0.0.1:9", "`ray job submit`", "unset RAY_ADDRESS"),
        ("G1_RAY_LOG", "lots", "'lots' is no level", "one of "),
        ("RAY_AUTH_TOKEN_PATH", "{tmp}/token", "others can read it", "chmod 600 {tmp}/token"),
        ("HF_HOME", "/proc/cache", "can't be written", "export HF_HOME"),
    ],
)
def test_what_is_wrong_is_told_with_its_mend(variable, value, says, mend, tmp_path, capsys, monkeypatch):
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o644)
    monkeypatch.setenv(variable, value.replace("{tmp}", str(tmp_path)))
    assert main(["doctor"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert says in out and f"-> {mend.replace('{tmp}', str(tmp_path))}" in out[out.index(says) :]
    assert "secret" not in out


def test_a_shell_completes_every_command(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS) and "--player" in script and "--resume" in script


@pytest.mark.parametrize("model, label", [("tiny-base", "G0"), ("tiny-coldstart", "G1")])
def test_a_run_is_called_by_its_model(model, label, tmp_path):
    assert small_config(tmp_path, model={"path": model}).eval.label == label
    assert small_config(tmp_path, model={"path": model}, eval={"label": "mine"}).eval.label == "mine"


@pytest.mark.parametrize(
    "score, word", [([50.0, 48.0, 52.0], "better"), ([10.0, 8.0, 12.0], "worse"), ([20.0, 9.0, 31.0], "level")]
)
def test_a_run_ends_with_what_the_intervals_carry(score, word, tmp_path, capsys):
    config = small_config(tmp_path, model={"path": "tiny-base"}, eval={"baselines": {"base": "tiny-base"}})
    lines = [
        {"game": "2048", "player": f"{name}, T=1", "score": mean, "runs": 30}
        for name, mean in (("G0", score), ("base", [20.0, 18.0, 22.0]))
    ]
    say_verdict(config, config.folder, lines)
    out = capsys.readouterr().out
    assert 'play 2048 --reasoning "size=3" --perception' in out and "?size=3&" in out  # what it was trained on
    assert word in out.split("first picture")[0] and out.count("  g1-ray ") == 3 and str(config.folder) in out
