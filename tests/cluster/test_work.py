"""What a step takes, beside what a learner really trains on and sends; and the page of the paper's sizes."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import toys  # noqa: E402

from g1_ray.cluster import work as module  # noqa: E402
from g1_ray.cluster.memory import shape_of  # noqa: E402
from g1_ray.cluster.work import step_seconds, work_of  # noqa: E402
from g1_ray.config import load_config  # noqa: E402
from g1_ray.engines.weight_sync import pack_weights, packed_names  # noqa: E402
from g1_ray.learner.learner import Learner  # noqa: E402
from g1_ray.learner.samples import batch_of  # noqa: E402
from jobs.train import main  # noqa: E402

ROOT = Path(__file__).parents[2]
PAPER = str(ROOT / "jobs/configs/paper-3b.toml")


@pytest.mark.parametrize("lora", [0, 8])
def test_work_is_what_a_learner_trains_on_and_sends(lora):
    config = toys.config(lora=lora, rollout={"group_size": 4, "groups_per_step": 6, "max_tokens": 12})
    groups = [toys.group(number) for number in range(6)]
    prompt = max(len(group.turns[0].prompt.token_ids) for group in groups)
    config = config.model_copy(
        update={"engine": config.engine.model_copy(update={"max_model_len": prompt + 12, "kind": "transformers"})}
    )
    lengths = [len(turn.completion.token_ids) for group in groups for turn in group.turns]
    work = work_of(config, shape_of(config.model.path), sum(lengths) / len(lengths))
    learner = Learner(config)
    learner.setup(toys.free_address())
    report = learner.step(batch_of(groups, 0, config))
    weights = learner.adapter() if lora else learner.weights(frozen_tower=False)
    learner.close()
    packed = pack_weights(weights.items(), learner.dtype)
    assert (work.groups, work.answers, work.generated) == (6, 24, sum(lengths))
    assert work.trained == report.metrics["packed_tokens"]  # all of these prompts are as long
    names = int.from_bytes(packed[:8].tobytes(), "little")
    assert len(packed_names(packed)) == len(weights) and work.synced == len(packed) - 8 - names


def test_engines_and_learner_work_at_once_where_rollouts_may_be_stale():
    config = load_config(PAPER)
    work = work_of(config, shape_of(config.model.path), 1024)
    assert work.answers == 640 and work.generated == 640 * 1024 and work.trained == 640 * 1024 + 128 * 1024
    assert step_seconds(config, work, 1024, 1024) == 192  # the four ranks' share of a step; the engines' takes 160 s
    fresh = config.model_copy(update={"asynchrony": config.asynchrony.model_copy(update={"max_staleness": 0})})
    assert step_seconds(fresh, work, 1024, 1024) == 192 + 160


def test_a_dry_run_tells_the_work_and_how_long_it_takes(capsys):
    assert main([PAPER, "--dry-run", "--assume", "8x80GB"]) == 0
    said = capsys.readouterr().out
    assert "8,192 tokens an answer: the longest" in said and "hours" not in said and said.rstrip().endswith("}")
    rates = ["--answer-tokens", "1024", "--engine-rate", "1024", "--rank-rate", "1024"]
    assert main([PAPER, "--dry-run", "--assume", "8x80GB", *rates]) == 0
    assert "192.0 s a step, 21.3 hours for 400 steps" in capsys.readouterr().out
    for wrong in (rates, ["--dry-run", *rates[:4]], ["--dry-run", "--answer-tokens", "-1"]):
        with pytest.raises(ValueError, match="go with --dry-run"):
            main([PAPER, *wrong])
    with pytest.raises(ValueError, match="at most rollout.max_tokens = 8192"):
        main([PAPER, "--dry-run", "--answer-tokens", "9000"])


def test_the_plan_is_what_the_code_says():
    assert (ROOT / "docs" / "plan.md").read_text() == module.page(), "run: python -m g1_ray.cluster.work > docs/plan.md"
