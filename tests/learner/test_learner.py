import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from g1_ray.config import RunConfig
from g1_ray.config_optimizer import DecayingOptimizerConfig
from g1_ray.learner import learner as module
from g1_ray.learner.learner import Learner
from g1_ray.learner.optimizer import whole
from g1_ray.learner.packs import packs_of
from g1_ray.learner.policy import Policy
from g1_ray.learner.samples import batch_of
from g1_ray.models.weights import stored_dtype, vision_tower
from g1_ray.types import Batch, StepReport

Weights = dict[str, torch.Tensor]


@contextlib.contextmanager
def learner_of(config: RunConfig, rank: int = 0, address: str = "") -> Iterator[Learner]:
    learner = Learner(config, rank, config.learner.num_ranks)
    learner.setup(address or toys.free_address())
    try:
        yield learner
    finally:
        learner.close()


def batch(config: RunConfig, *numbers: int) -> Batch:
    return batch_of([toys.group(number) for number in numbers or (1, 2, 3)], 0, config)


def after(config: RunConfig, *batches: Batch) -> tuple[Weights, list[StepReport]]:
    with learner_of(config) as learner:
        reports = [learner.step(batch) for batch in batches]
        return learner.weights(), reports


def assert_same(ours: Weights, theirs: Weights, atol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=atol, msg=name)


def run_rank(
    rank: int, config: RunConfig, address: str, batches: list[Batch], load: str, then: Batch, out: str
) -> None:
    """One rank in a process of its own: trains and saves, then loads and trains and saves."""
    torch.set_num_threads(1)
    out_folder = Path(out)
    with learner_of(config, rank, address) as learner:
        metrics = [learner.step(batch).metrics for batch in batches]
        learner.save(out_folder / "step-1")
        scored = learner.logprobs([(toys.group(7).rollouts[0].turns[0].prompt, np.array([30, 31], np.int32))])
        learner.load(load)
        learner.step(then)
        learner.save(out_folder / "step-2")
    (out_folder / f"rank-{rank}.json").write_text(json.dumps([metrics, scored[0].tolist()]))


def saved_model(folder: Path) -> Weights:
    weights: Weights = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    return weights


# Steps


def test_a_step_follows_the_gradient_and_reports():
    config = toys.config()
    with learner_of(config) as learner:
        before = learner.weights()
        report = learner.step(batch(config))
        weights = learner.weights()
    assert report.version == learner.version == 1 and not report.skipped
    moved = {name for name in before if not torch.equal(before[name], weights[name])}
    assert moved and not any("visual" in name for name in moved)  # frozen
    metrics = report.metrics
    assert metrics["tokens"] == batch(config).origin.metrics["tokens"] and report.origin == batch(config).origin
    assert 0 < metrics["ess"] <= 1 and metrics["grad_norm"] > 0 and metrics["ratio"] > 0
    assert metrics["tokens_per_s"] > 0 and metrics["entropy"] > 0


def test_the_first_step_is_adams():
    """AdamW's first step moves every weight by the learning rate, against the sign of its gradient."""
    config = toys.config(optimizer={"lr": 1e-3, "weight_decay": 0.0})
    with learner_of(config) as learner:
        before = learner.weights()
        learner.step(batch(config))
        weights = learner.weights()
    moves = torch.cat([(weights[name] - before[name]).flatten() for name in weights if "layers" in name])
    assert moves.abs().max() < 1.001e-3 and moves.abs().median() > 0.99e-3


def test_training_on_a_batch_makes_its_good_answers_likelier():
    config = toys.config(algorithm={"tis_cap": 0.0, "clip_high": 1e3, "clip_low": 1.0}, optimizer={"lr": 1e-3})
    group = toys.group(1, rewards=(1.0, 0.0, 0.0, 0.0))
    sequences = [(r.turns[0].prompt, r.turns[0].completion.token_ids) for r in group.rollouts]
    with learner_of(config) as learner:
        before = [float(scored.mean()) for scored in learner.logprobs(sequences)]
        for _ in range(5):
            learner.step(batch_of([group], 0, config))
        later = [float(scored.mean()) for scored in learner.logprobs(sequences)]
    gains = np.subtract(later, before)
    assert gains[0] > 0.1 and gains[0] > max(gains[1:]) + 0.1


def test_a_policy_that_sampled_its_own_answers_has_ratios_of_one():
    config = toys.config(algorithm={"kl_coef": 0.1})
    group = toys.group(1)
    with learner_of(config) as learner:
        scored = learner.logprobs([(r.turns[0].prompt, r.turns[0].completion.token_ids) for r in group.rollouts])
        rollouts = tuple(
            replace(r, turns=(replace(r.turns[0], completion=replace(r.turns[0].completion, logprobs=its)),))
            for r, its in zip(group.rollouts, scored, strict=True)
        )
        metrics = learner.step(batch_of([replace(group, rollouts=rollouts)], 0, config)).metrics
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["ess"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_low"] == metrics["clip_high"] == metrics["tis_capped"] == 0
    assert abs(metrics["kl"]) < 1e-8 and abs(metrics["inference_kl"]) < 1e-8


@pytest.mark.parametrize("ratio, advantage", [("token", "grpo"), ("token", "dr-grpo"), ("sequence", "grpo")])
def test_small_and_large_packs_make_the_same_update(ratio: str, advantage: str):
    options = {"algorithm": {"ratio": ratio, "advantage": advantage, "kl_coef": 0.05}}
    whole, one_by_one = toys.config(**options), toys.config(**options, tokens_per_pack=1)
    ours, reports = after(whole, batch(whole), batch(whole, 4, 5))
    theirs, _ = after(one_by_one, batch(whole), batch(whole, 4, 5))
    assert reports[0].metrics["packs"] == 1 and reports[1].metrics["kl"] > 0
    assert_same(ours, theirs)


def test_checkpointing_makes_the_same_update():
    plain, checkpointing = toys.config(), toys.config(gradient_checkpointing=True)
    assert_same(after(plain, batch(plain))[0], after(checkpointing, batch(plain))[0])


def test_a_trained_vision_tower_moves():
    config = toys.config(freeze_vision=False, tokens_per_pack=200)
    weights, _ = after(config, batch(config))
    before = saved_model(Path(toys.tiny_model()))
    moved = [name for name in weights if "visual" in name and not torch.equal(weights[name], before[name])]
    assert len(moved) > 10


@pytest.mark.parametrize("options", [{}, {"lora": 4}, {"freeze_vision": False}])
def test_engines_are_given_all_but_a_frozen_tower_and_nothing_is_gathered_twice(options, monkeypatch):
    gathered, whole = [], module.whole

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        gathered.extend([id(tensor)] * isinstance(tensor, DTensor))
        return whole(tensor)

    monkeypatch.setattr(module, "whole", counted)
    with learner_of(toys.config(**options)) as learner:
        everything = learner.weights()
        gathered.clear()
        given = learner.weights(frozen_tower=False)
        frozen = learner.config.model.vision_is_frozen
    assert gathered and set(Counter(gathered).values()) == {1}
    tower = {name for name in everything if "visual" in name}
    assert tower and set(given) == set(everything) - (tower if frozen else set())


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_a_batch_without_pictures_is_trained_on(freeze_vision: bool):
    config = toys.config(freeze_vision=freeze_vision)
    group = toys.text_group(3)
    with learner_of(config) as learner:
        report = learner.step(batch_of([group, toys.text_group(4)], 0, config))
        prompt, answer = group.rollouts[0].turns[0].prompt, group.rollouts[0].turns[0].completion.token_ids
        scored, weights = learner.logprobs([(prompt, answer)])[0], learner.weights()
    assert report.version == 1 and report.metrics["grad_norm"] > 0
    model = AutoModelForImageTextToText.from_pretrained(toys.tiny_model())
    model.load_state_dict(weights, strict=False)
    np.testing.assert_allclose(plain_score(model, prompt, answer), scored, atol=1e-5)


def test_one_rank_and_two_make_the_same_update(tmp_path: Path):
    """Also where the second rank has nothing to do, and where one goes on from what the other has saved."""
    options = {"freeze_vision": False, "tokens_per_pack": 200, "algorithm": {"kl_coef": 0.05}}
    one, two = toys.config(**options), toys.config(**options, num_ranks=2)
    lonely, then = batch_of([toys.group(9, size=2)], 0, one), batch(one, 7, 8)
    batches = [batch(one), batch(one, 4, 5, 6), lonely, batch_of([toys.group(1), toys.text_group(2)], 0, one)]
    assert len(packs_of(lonely, two, 0)[0]) == 1
    assert {bool(pack.states) for packs in packs_of(batches[-1], two, 0) for pack in packs} == {True, False}
    with learner_of(one) as learner:
        expected = [learner.step(batch).metrics for batch in batches]
        learner.save(tmp_path / "one" / "step-1")
        at_first = learner.weights()
        learner.step(then)
        at_last = learner.weights()
    (tmp_path / "two").mkdir()
    arguments = (two, toys.free_address(), batches, str(tmp_path / "one" / "step-1"), then, str(tmp_path / "two"))
    torch.multiprocessing.spawn(run_rank, arguments, nprocs=2)
    (metrics, scored), (others, others_scored) = (
        json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in range(2)
    )
    assert scored == others_scored
    for ours, others_own, theirs in zip(metrics, others, expected, strict=True):
        for name in ("loss", "grad_norm", "ratio", "kl", "ess", "tokens", "entropy", "packed_tokens"):
            assert ours[name] == others_own[name]
            if name != "packed_tokens":
                assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
    for step, weights in (("step-1", at_first), ("step-2", at_last)):
        ours = saved_model(tmp_path / "two" / step)
        assert_same({name: ours[name] for name in weights}, weights)
    with learner_of(one) as learner:
        learner.load(tmp_path / "two" / "step-1")
        learner.step(then)
        assert_same(learner.weights(), at_last)


def test_the_learning_rate_warms_up():
    config = toys.config(optimizer={"lr": 1e-3, "warmup_steps": 4})
    _, reports = after(config, *[batch(config)] * 5)
    assert [report.metrics["lr"] for report in reports] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(
    "options, rates",
    [
        ({"decay_steps": 4}, [1.0, 0.775, 0.55, 0.325, 0.1, 0.1]),
        ({"warmup_steps": 2, "decay_steps": 4, "final_lr": 0.0}, [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]),
        ({"warmup_steps": 2}, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_falls_to_its_share(options, rates):
    config = DecayingOptimizerConfig(lr=1e-3, **options)
    assert [config.lr_at(step) for step in range(6)] == pytest.approx([1e-3 * rate for rate in rates])


def test_a_learning_rate_that_has_fallen_before_it_has_risen_is_refused():
    with pytest.raises(ValueError, match=r"decay_steps = 4: more than warmup_steps, which is 4; or 0"):
        toys.config(optimizer={"warmup_steps": 4, "decay_steps": 4})


def test_gradients_are_clipped_to_the_norm():
    """With Adam only a clip that shrinks beyond its epsilon shows."""
    config = toys.config(optimizer={"max_grad_norm": 1e-9, "weight_decay": 0.0})
    with learner_of(config) as learner:
        before = learner.weights()
        learner.step(batch(config))
        weights = learner.weights()
    moves = torch.cat([(weights[name] - before[name]).flatten() for name in weights])
    assert 0 < moves.abs().max() < 1e-4


@pytest.mark.parametrize("bad", ["nan", "empty"])
def test_a_batch_that_teaches_nothing_is_skipped_and_counted(bad: str):
    config = toys.config()
    good = batch(config)
    sample = good.samples[0]
    poisoned = replace(sample, advantages=np.full_like(sample.advantages, np.nan))
    samples = (poisoned, *good.samples[1:]) if bad == "nan" else ()
    with learner_of(config) as learner:
        before = learner.weights()
        report = learner.step(replace(good, samples=samples))
        assert_same(learner.weights(), before, atol=0)
        assert report.version == 0 and report.skipped and report.metrics["skipped_steps"] == 1
        assert learner.step(good).version == 1
        assert all(tensor.isfinite().all() for tensor in learner.weights().values())


# Adapters


def test_adapters_are_merged_where_they_leave_and_off_in_the_reference():
    config = toys.config(lora=4, algorithm={"kl_coef": 0.1})
    with learner_of(config) as learner:
        assert learner.reference is None
        start = learner.weights()
        base = saved_model(Path(toys.tiny_model()))
        for name, tensor in start.items():  # a new adapter changes nothing yet
            torch.testing.assert_close(tensor, base[name])
        first = learner.step(batch(config)).metrics
        second = learner.step(batch(config)).metrics
        assert first["kl"] == 0 and second["kl"] > 0
        sequences = [(toys.group(1).rollouts[0].turns[0].prompt, np.array([30, 31, 32], np.int32))]
        scored = learner.logprobs(sequences)[0]
        merged = learner.weights()
    model = AutoModelForImageTextToText.from_pretrained(toys.tiny_model())
    model.load_state_dict(merged, strict=False)
    np.testing.assert_allclose(plain_score(model, *sequences[0]), scored, atol=1e-5)


def test_an_adapter_is_rounded_once_and_a_canary_changes_nothing_of_it():
    """In bfloat16 engines get the layer plus the adapter in float32; gathered copies of that are bfloat16."""
    config = toys.config(lora=4, dtype="bfloat16", optimizer={"lr": 1e-2})
    sequences = [(toys.group(1).rollouts[0].turns[0].prompt, np.array([30, 31, 32], np.int32))]
    with learner_of(config) as learner:
        learner.step(batch(config))
        untouched = learner.weights()
        learner.logprobs(sequences)
        assert_same(learner.weights(), untouched, atol=0)
        parts = {t.name: t.shard.detach() for t in learner.optimizer.trained}
    base, moved = saved_model(Path(toys.tiny_model())), 0
    for name, down in parts.items():
        if ".lora_A." in name:
            layer, up = name.partition(".lora_A.")[0] + ".weight", parts[name.replace(".lora_A.", ".lora_B.")]
            exact = base[layer].bfloat16().float() + 32 / 4 * (up @ down)
            torch.testing.assert_close(untouched[layer], exact.bfloat16(), rtol=0, atol=0)
            moved += int((untouched[layer] != base[layer].bfloat16()).sum())
    assert moved > 1000


def plain_score(model: torch.nn.Module, prompt, completion: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(np.concatenate([prompt.token_ids, completion]).astype(np.int64))[None]
    images = {}
    if prompt.states:
        pixel_values, grids = toys.chat().pixel_values(prompt.states)
        images = {"pixel_values": torch.from_numpy(pixel_values), "image_grid_thw": torch.from_numpy(grids)}
        images["mm_token_type_ids"] = (ids == toys.chat().image_token_id).int()
    with torch.no_grad():
        logits = model(input_ids=ids, **images).logits
    logprobs = logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[-len(completion) :].float().numpy()


# Checkpoints


@pytest.mark.parametrize("options", [{}, {"lora": 4}, {"dtype": "bfloat16"}, {"freeze_vision": False}])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, options: dict[str, object]):
    config = toys.config(**options)
    first, second = batch(config), batch(config, 4, 5)
    with learner_of(config) as learner:
        learner.step(first)
        learner.save(tmp_path / "step-1", {"issued": 7})
        expected = learner.step(second).metrics["loss"]
        weights = learner.weights()
    with learner_of(config) as learner:
        assert learner.load(tmp_path / "step-1") == {"issued": 7}
        assert learner.version == 1
        assert learner.step(second).metrics["loss"] == expected
        assert_same(learner.weights(), weights, atol=0)


@pytest.mark.parametrize("options", [{}, {"lora": 4}, {"dtype": "bfloat16"}, {"freeze_vision": False}])
def test_a_checkpoint_that_is_loaded_after_a_canary_is_what_is_computed_with(
    tmp_path: Path, options: dict[str, object]
):
    config = toys.config(optimizer={"lr": 1e-2}, **options)
    sequences = [(toys.group(1).rollouts[0].turns[0].prompt, np.array([30, 31, 32], np.int32))]
    with learner_of(config) as learner:
        learner.step(batch(config))
        learner.save(tmp_path / "step-1")
        expected, weights = learner.logprobs(sequences)[0], learner.weights()
        learner.step(batch(config, 4, 5))
        assert np.abs(learner.logprobs(sequences)[0] - expected).max() > 1e-3
        learner.load(tmp_path / "step-1")
        assert_same(learner.weights(), weights, atol=0)
        np.testing.assert_array_equal(learner.logprobs(sequences)[0], expected)


@pytest.mark.parametrize("options", [{}, {"lora": 4}, {"dtype": "bfloat16"}])
def test_a_checkpoint_is_a_hugging_face_model(tmp_path: Path, options: dict[str, object]):
    config = toys.config(**options)
    prompt, completion = toys.group(1).rollouts[0].turns[0].prompt, np.array([30, 31, 32], np.int32)
    with learner_of(config) as learner:
        learner.step(batch(config))
        learner.save(tmp_path / "step-1")
        weights = learner.weights()
        scored = learner.logprobs([(prompt, completion)])[0]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "step-1")
    assert str(model.dtype) == f"torch.{config.model.dtype}"
    whole = model.state_dict()
    assert_same({name: whole[name] for name in weights}, weights, atol=0)
    loose = 0.1 if config.model.dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(plain_score(model, prompt, completion), scored, atol=loose)
    assert AutoProcessor.from_pretrained(tmp_path / "step-1").tokenizer.get_vocab() == toys.chat().tokenizer.get_vocab()
    card = (tmp_path / "step-1" / "README.md").read_text()
    assert "policy version 1" in card and ("LoRA of rank 4" in card) == ("lora" in options)
    assert not list((tmp_path / "step-1").rglob("*.bin")) and not list((tmp_path / "step-1").rglob("*.pt"))


def test_an_adapter_is_written_in_pefts_format(tmp_path: Path):
    from peft import PeftModel

    config = toys.config(lora=4)
    prompt, completion = toys.group(1).rollouts[0].turns[0].prompt, np.array([30, 31, 32], np.int32)
    with learner_of(config) as learner:
        learner.step(batch(config))
        learner.save(tmp_path / "step-1")
        scored = learner.logprobs([(prompt, completion)])[0]
    base = AutoModelForImageTextToText.from_pretrained(toys.tiny_model())
    adapted = PeftModel.from_pretrained(base, tmp_path / "step-1" / "adapter")
    np.testing.assert_allclose(plain_score(adapted, prompt, completion), scored, atol=1e-5)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path):
    config = toys.config()
    with learner_of(config) as learner:
        learner.save(tmp_path / "step-0")
    with learner_of(toys.config(lora=4)) as learner:
        with pytest.raises(ValueError, match="trains other parameters"):
            learner.load(tmp_path / "step-0")
        with pytest.raises(ValueError, match="no manifest.json"):
            learner.load(tmp_path / "step-9")
        (tmp_path / "step-0" / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="config.json is not of the size that was written"):
            learner.load(tmp_path / "step-0")


def test_ranks_and_config_must_agree():
    with pytest.raises(ValueError, match="learner.num_ranks is 2"):
        Learner(toys.config(num_ranks=2), 0, 1)


@pytest.mark.parametrize("options", [{}, {"lora": 4}, {"dtype": "bfloat16", "freeze_vision": False}])
def test_how_large_a_checkpoint_will_be_is_known_at_the_start(tmp_path: Path, options: dict[str, object]):
    """How long one is waited for follows from it."""
    config = toys.config(**options)
    learner = Learner(config)
    size = learner.setup(toys.free_address())
    learner.save(tmp_path / "step-0")
    learner.close()
    its = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert size == pytest.approx(its, rel=0.1)


def gathered(policy: Policy) -> bool:
    groups = (m._get_fsdp_state()._fsdp_param_group for m in policy.modules() if isinstance(m, FSDPModule))
    return any(not group.is_sharded for group in groups if group is not None)


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_weights_that_stay_gathered_or_not_make_the_same_update(freeze_vision: bool):
    about = dict(freeze_vision=freeze_vision, algorithm={"kl_coef": 0.02})
    kept = toys.config(**about)
    gone = kept.model_copy(update={"learner": kept.learner.model_copy(update={"keep_gathered_gb": 0.0})})
    theirs, _ = after(kept, batch(kept), batch(kept, 4, 5))
    with learner_of(gone) as learner:
        assert (vision_tower(learner.reference.model) is None) == freeze_vision
        for numbers in ((1, 2, 3), (4, 5)):
            learner.step(batch(gone, *numbers))
            assert not gathered(learner.policy) and not gathered(learner.reference)
        assert_same(learner.weights(), theirs)


def test_a_model_stored_in_half_precision_is_trained_in_float32(tmp_path: Path):
    stored = AutoModelForImageTextToText.from_pretrained(toys.tiny_model(), dtype=torch.bfloat16)
    stored.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(toys.tiny_model()).save_pretrained(tmp_path)
    config = toys.config(path=str(tmp_path), lora=0)
    assert stored_dtype(str(tmp_path)) == torch.bfloat16 and stored_dtype(toys.tiny_model()) == torch.float32
    with learner_of(config) as learner:
        assert {t.shard.dtype for t in learner.optimizer.trained} == {torch.float32}
        before = {name: tensor.float() for name, tensor in stored.state_dict().items()}
        for name, tensor in learner.weights().items():
            assert tensor.equal(before[name]), name
        learner.step(batch(config))
        trained = [whole(t.parameter) for t in learner.optimizer.trained]
        assert not all(tensor.bfloat16().float().equal(tensor) for tensor in trained)  # finer than it was stored
    adapted = toys.config(path=str(tmp_path), lora=4, dtype="bfloat16")
    with learner_of(adapted) as learner:
        assert {t.shard.dtype for t in learner.optimizer.trained} == {torch.float32}
        assert not learner.step(batch(adapted)).skipped
