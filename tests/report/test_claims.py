import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.players import PLAYERS
from g1_ray.config import load_config
from g1_ray.evaluation.play import play
from g1_ray.evaluation.results import result_of, results_table, write_results
from g1_ray.files import write_json
from g1_ray.report.claims import Claims, Trial, found, load_claims, write_page
from g1_ray.runs.run_folder import RunFolder
from jobs.paper import CONFIGS, main
from tests.folders import small_config

CLAIMS = CONFIGS.parent / "claims.toml"


def claims_of(**more) -> Claims:
    its = {"name": "try", "claim": "It learns", "configs": ["2048"], "before": "base", "seeds": 2, **more}
    return Claims.model_validate({"experiments": [its]})


def finish(trial: Trial, runs: Path, players: dict[str, str], rise: float) -> None:
    """A finished run as the writers leave it, whose models play as the classic players do."""
    folder = RunFolder.open(small_config(runs, name=trial.name, trackers=[], eval={"label": "G0"}))
    for step in range(40):
        its = {"reward": rise * step, "reward_game": rise * step, "p_acc": 0.5 + step / 80, "r_acc": 0.5, "groups": 5.0}
        its["flat_groups"] = 2.0
        its |= {"pattern_check": step / 40, "pattern_none": 0.5}
        folder.log(step + 1, {f"2048/{name}": value for name, value in its.items()})
    task = folder.config.games[0].task()
    results = [result_of("2048", f"{name}, T=1", [play(task, name, PLAYERS[how], seed, 20) for seed in range(10)])
               for name, how in players.items()]  # fmt: skip
    write_results(folder.path / "eval", results, results_table(results))
    folder.save_curves()
    write_json(folder.path / "report.json", {})


def test_every_run_of_the_claims_is_a_config_that_loads_under_a_name_of_its_own() -> None:
    trials = [trial for experiment in load_claims(CLAIMS).experiments for trial in experiment.trials()]
    names = []
    for trial in trials:
        config = load_config(CONFIGS / f"{trial.config}.toml", trial.options)
        assert config.name == trial.name and config.seed == trial.seed
        assert trial.experiment.before in config.eval.baselines
        names.append(config.name)
    assert len(set(names)) == len(names) > 10


def test_what_a_run_came_to(tmp_path: Path) -> None:
    (trial, other) = claims_of().experiments[0].trials()
    assert found(trial, tmp_path / trial.name) == []  # not run
    finish(trial, tmp_path, {"base": "uniform", "G0": "greedy"}, 0.1)
    (one,) = found(trial, tmp_path / trial.name)
    assert one.gain.low > 0 and one.after.mean - one.before.mean == pytest.approx(one.gain.mean)
    assert one.ends("p_acc") == (pytest.approx(0.5 + 1.5 / 80), pytest.approx(0.5 + 37.5 / 80))
    assert one.risen() == "check" and one.along("pattern_check") == pytest.approx(1)
    assert np.isnan(one.along("pattern_none"))  # it never changes
    assert one.answers_to(0.5) == 5 * one.group_size and one.answers_to(0.6) is None
    screened = replace(one, flat_size=3)
    assert screened.answers_to(0.5) == 3 * one.group_size + 2 * 3
    assert found(other, tmp_path / other.name) == []


@pytest.mark.parametrize(
    "players, verdict",
    [
        (("greedy", "greedy"), "holds: above the model before it in 2 of 2 seeds, below it in 0"),
        (("greedy", "uniform"), "holds in part: above the model before it in 1 of 2 seeds, below it in 0"),
        (("uniform", "uniform"), "does not hold: above the model before it in 0 of 2 seeds, below it in 0"),
    ],
)
def test_the_page_says_which_claims_hold(tmp_path: Path, players: tuple[str, str], verdict: str) -> None:
    claims = claims_of()
    for trial, player in zip(claims.experiments[0].trials(), players, strict=True):
        finish(trial, tmp_path / "runs", {"base": "uniform", "G0": player}, 0.1)
    write_page(tmp_path / "paper.md", claims, tmp_path / "runs")
    text = (tmp_path / "paper.md").read_text()
    assert f"- 2048: {verdict}; P_acc from 0.52 to 0.97." in text and "## It learns" in text
    assert re.search(r"\| try-2048-seed1 \| 2048 \| [\d.]+ \[", text)
    write_page(tmp_path / "more.md", claims_of(seeds=3), tmp_path / "runs")
    assert f"- 2048: {verdict.replace(':', ' so far:', 1)}; P_acc" in (tmp_path / "more.md").read_text()
    steps = (tmp_path / "paper" / "try-2048-seed0.csv").read_text().splitlines()
    assert (
        len(steps) == 41
        and steps[0].startswith("step,2048/reward,2048/p_acc")
        and steps[2].startswith("2,0.1,0.5125,0.5,")
    )
    assert steps[0].endswith("2048/pattern_check")
    assert "| base, T=1 |" in (tmp_path / "paper" / "try-2048-seed0.md").read_text()
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", text)
    assert (tmp_path / picture).stat().st_size > 10_000


def test_variants_are_told_beside_the_first_one(tmp_path: Path) -> None:
    claims = claims_of(variants={"plain": [], "other": ["rollout.group_size=4"]}, reach=0.5)
    for trial in claims.experiments[0].trials():
        player = "greedy" if trial.variant == "other" and trial.seed else "uniform"
        finish(trial, tmp_path / "runs", {"base": "uniform", "G0": player}, 0.1)
    write_page(tmp_path / "paper.md", claims, tmp_path / "runs")
    (line,) = re.findall("- other beside plain: .*", (tmp_path / "paper.md").read_text())
    assert "1.00 of the answers to an R_acc of 0.5" in line
    assert re.search(r"after training \+[\d.]+ points, higher in 1 of 2 seeds", line)


def test_what_another_experiment_came_to_stands_beside(tmp_path: Path) -> None:
    its = {"claim": "It learns", "configs": ["2048"], "before": "base", "seeds": 2}
    claims = Claims.model_validate({"experiments": [{"name": "g0", **its}, {"name": "g1", "beside": "g0", **its}]})
    for experiment, players in zip(claims.experiments, (("uniform", "greedy"), ("greedy", "greedy")), strict=True):
        for trial, player in zip(experiment.trials(), players, strict=True):
            finish(trial, tmp_path / "runs", {"base": "uniform", "G0": player}, 0.1)
    write_page(tmp_path / "paper.md", claims, tmp_path / "runs")
    (line,) = re.findall("- 2048 beside g0: .*", (tmp_path / "paper.md").read_text())
    assert "above it in 2 of 4 pairs of seeds, below it in 0" in line  # greedy above uniform, level with greedy
    assert re.search(r"\(0 and 0: [\d.]+ \[.*; 0 and 1: 0", line)
    with pytest.raises(ValueError, match="g1: beside = 'gO'; there are g1"):
        Claims.model_validate({"experiments": [{"name": "g1", "beside": "gO", **its}]})


def test_what_is_not_run_is_said_and_names_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "paper.md"
    assert main(["--page-only", "--out", str(page), "--runs", str(tmp_path)]) == 0
    claims = load_claims(CLAIMS)
    assert page.read_text().count("Not run yet.") == len(claims.experiments)
    tried = [line for experiment in claims.experiments for line in experiment.tried]
    assert tried and all(f"\n- {line}\n" in page.read_text() for line in tried)
    with pytest.raises(ValueError, match="no experiment 'g00'; there are g0"):
        main(["g00"])


@pytest.mark.parametrize(
    "text, words",
    [
        ('configs = ["2049"]', "2049.toml"),
        ('configs = ["2048"]\nset = ["minuts=3"]', "did you mean 'minutes'"),
        ('configs = ["2048"]\nset = ["eval.runs=0"]', "eval.runs = 0"),
        ('configs = ["2048"]\nset = ["eval.baselines={}"]', "eval.baselines: none"),
        ('configs = ["2048"]\nvariants = { "a/b" = [] }', "name = 'try-2048-a/b-seed0'"),
        ('configs = ["2048"]\nseed = 3', "did you mean 'seeds'"),
    ],
)
def test_what_could_not_end_well_is_not_begun(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "claims.toml").write_text(
        f"[[experiments]]\nname = 'try'\nclaim = 'It learns'\nbefore = 'base'\n{text}\n"
    )
    with pytest.raises(ValueError) as raised:
        main(["--claims", str(tmp_path / "claims.toml"), "--runs", str(tmp_path / "runs")])
    assert words in str(raised.value) and len(str(raised.value).splitlines()) <= 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_version_of_every_experiment_runs(tmp_path: Path) -> None:
    page = tmp_path / "paper.md"
    small = "steps=2 minutes=1 rollout.groups_per_step=4 asynchrony.groups_per_tick=4 eval.runs=2 eval.moves=3".split()
    args = ["--out", str(page), "--runs", str(tmp_path / "runs"), "--seeds", "1", "--set", *small]
    args += ["--coldstart", "sft.steps=2", "games.0.examples=64"]
    assert main(args) == 0
    assert "Not run yet." not in page.read_text() and page.read_text().count("-seed0 |") >= 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/report.json")}
    assert main(args) == 0  # nothing is run again
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/report.json")}


def test_two_runs_never_have_one_folder() -> None:
    with pytest.raises(ValueError, match="two runs are called 'try-2048-a-b-seed0'"):
        claims_of(variants={"a b": [], "a-b": []})
