"""The whole pipeline with real engines and a real learner, in tiny numbers, through the entry point that users call."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from folders import METRICS

from g1_ray.config import EvalConfig, RewardConfig, RunConfig
from g1_ray.evaluation.evaluation import entries_of
from g1_ray.evaluation.job import Job, RunOver, work
from g1_ray.evaluation.moves import file_name, read_runs
from jobs.train import train

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]


def config(
    out: Path, name: str, steps: int, kind: str, staleness: int, lora: int, temperature: float = 1.0, **more
) -> RunConfig:
    return RunConfig(
        name=name,
        out=str(out),
        steps=steps,
        checkpoint_every=2,
        canary_every=1,
        model={"path": "tiny-coldstart", "dtype": "float32", "gradient_checkpointing": False, "lora": {"rank": lora}},
        games=[
            {
                "game": "2048",
                "reasoning": {"size": 3},
                "perception": {"tiles": "numbers", "tile_px": 28},
                "states": {"random_walk": 0.7, "policy": 0.3, "open_only": True},
            },
            {"game": "shisen", "reasoning": {"rows": 4, "cols": 4}, "perception": {"tile_px": 28}, "ratio": 0.5},
        ],
        rollout={"group_size": 4, "groups_per_step": 6, "max_tokens": 96, "temperature": temperature},
        reward={"perception": 1.0},
        algorithm={"kl_coef": 0.02},
        optimizer={"lr": 1e-4},
        learner={"gpus": 0, "cpus": 0.5, "tokens_per_pack": 2048},
        engine={"kind": kind, "gpus": 0, "cpus": 0.5, "kv_cache_gb": 0.2, "max_model_len": 512},
        asynchrony={"max_staleness": staleness, "lanes": 4, "groups_per_tick": 2, "env_cpus": 0.5},
        eval={"runs": 2, "moves": 3, "engine": "transformers", "every": 2, "lab_every": 2, "lab_states": 4},
        **more,
    )


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def check_books(folder: Path) -> dict:
    report = json.loads((folder / "report.json").read_text())
    groups = report["groups"]
    assert groups["issued"] == sum(groups[k] for k in ("trained", "dropped", "quarantined", "in_flight"))
    assert report["groups_add_up"] and report["ledger_agrees"]
    return report


def test_an_asynchronous_run_with_vllm_adds_up_overlaps_and_resumes(ray_cluster, tmp_path):
    pytest.importorskip("vllm")
    first = config(tmp_path, "run", 4, "vllm", staleness=1, lora=4, temperature=0.9)
    assert train(first) == 0
    folder = first.folder
    report = check_books(folder)
    assert report["groups"]["trained"] == 4 * 6 and report["groups"]["quarantined"] == 0
    metrics = lines(folder, "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert all(line["canary_nats"] <= 1e-5 for line in metrics)
    its = {metric for metric in METRICS if not metric.startswith("recovered/")}
    assert its <= {name.removeprefix("shisen/") for name in metrics[-1]}
    for line in metrics[1::2]:  # every second step: what the policy is worth, and where it fails
        assert {"2048/eval_score", "shisen/lab_p_acc", "shisen/lab_reward_rate_true_perception"} <= line.keys()
    trained = [fate for fate in lines(folder, "ledger.jsonl") if fate.get("fate") == "trained"]
    assert max(fate["staleness"] for fate in trained) == 1  # rollouts ran ahead, and no further than allowed
    check_overlap(lines(folder, "trace.jsonl"))
    check_results(folder, report)
    check_checkpoint(folder / "checkpoints" / "step-4")

    again = config(tmp_path, "run", 6, "transformers", staleness=1, lora=4, temperature=0.9)
    assert train(again, resume=True) == 0  # with the other engine: all but the model and the seed may change
    report = check_books(folder)
    assert report["groups"]["trained"] == 6 * 6 and report["steps"] == 6
    assert [line["step"] for line in lines(folder, "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    groups = [fate["group"] for fate in lines(folder, "ledger.jsonl") if "fate" in fate]
    assert len(groups) == len(set(groups))  # no group has two fates


def check_overlap(trace: list[dict]) -> None:
    """Rollouts of version v came in while step v + 1 was being made."""
    steps = {tick["step"]: (tick["start"], tick["end"]) for tick in trace if tick["kind"] == "train"}
    overlapping = [
        version
        for tick in trace
        if tick["kind"] == "rollout" and not tick["error"]
        for _, version in tick["groups"]
        if version + 1 in steps and steps[version + 1][0] < tick["end"] < steps[version + 1][1]
    ]
    assert overlapping


def check_results(folder: Path, report: dict) -> None:
    rows = {(row["game"], row["player"]): row for row in report["results"]}
    classic = {"uniform", "random-legal", "greedy", "teacher", "oracle"}
    assert {player for _, player in rows} == {*classic, "G1, T=1", "G1, greedy"}
    assert all(row["score"][1] <= row["score"][0] <= row["score"][2] for row in rows.values())
    assert (folder / "eval" / "table.md").read_text().count("\n") == 2 + len(rows)
    assert len(list((folder / "eval").glob("*.webp"))) == 4
    assert (folder / "curves.png").stat().st_size > 1000


def check_checkpoint(path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from g1_ray.models.find import MODELS

    trained, start = (AutoModelForImageTextToText.from_pretrained(p) for p in (path, MODELS / "tiny-coldstart"))
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(trained.parameters(), start.float().parameters(), strict=True)
    ]
    assert max(moved) > 1e-5  # four steps of 1e-4, the adapter merged
    assert (path / "adapter" / "adapter_model.safetensors").exists()


def test_a_run_of_flat_groups_ends_in_time_and_by_a_signal_and_goes_on(ray_cluster, tmp_path, capsys):
    """Where no answer earns anything no step is ever made."""
    flat = {"reward": RewardConfig(game=0.0)}
    base = config(tmp_path, "flat", 1, "transformers", staleness=0, lora=0)
    base = base.model_copy(update={"eval": EvalConfig(runs=2, moves=3, label="G1")})
    assert train(base.model_copy(update=flat | {"minutes": 0.05, "eval": EvalConfig(runs=0)})) == 0
    report = check_books(base.folder)
    assert report["steps"] == report["groups"]["trained"] == 0 and report["groups"]["dropped: flat"] > 0
    assert report["checkpoint"] == "checkpoints/step-0"
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(25.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert train(base.model_copy(update=flat), resume=True) == 0
    assert check_books(base.folder)["steps"] == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert "starting: env workers 0/1, learner 0/1, engines 0/1, checkpoint 0/1" in capsys.readouterr().out.splitlines()

    assert train(base, resume=True) == 0
    report = check_books(base.folder)
    assert report["groups"]["trained"] == 6 and report["steps"] == 1
    groups = [fate["group"] for fate in lines(base.folder, "ledger.jsonl") if "fate" in fate]
    assert len(groups) == len(set(groups))
    check_the_run_s_own_engines_answered(base)


def check_the_run_s_own_engines_answered(run: RunConfig) -> None:
    """No other was started, and the moves are those of an engine that is started for it."""
    folder = run.folder / "eval"
    assert not (folder / "logs" / "model.log").exists() and (folder / "logs" / "classic.log").exists()
    trained = str(run.folder / "checkpoints" / "step-1")
    entries = [entry for entry in entries_of(run, {run.eval.label: trained}) if entry.player.what == trained]
    news = [item for some in work(Job(tuple(entries), (1_000_000, 1_000_001), 3)) for item in some]
    for entry in entries:
        ours = {r.seed: r for r in read_runs(folder / "moves" / file_name(*entry.key))}
        theirs = [item.run for item in news if isinstance(item, RunOver) and item.key == entry.key]
        assert len(ours) == len(theirs) == 2
        for each in theirs:
            assert [m.text for m in each.moves] == [m.text for m in ours[each.seed].moves]
