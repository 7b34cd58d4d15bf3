from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from transformers import AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from g1_ray.learner import policy as policy_module
from g1_ray.learner.packs import Pack, packs_in_order, packs_of
from g1_ray.learner.policy import Policy, load_model
from g1_ray.learner.samples import batch_of
from g1_ray.types import Sample

PAD = toys.chat().image_token_id


def plain_logprobs(model: torch.nn.Module, samples: list[Sample], temperature: float = 1.0) -> torch.Tensor:
    """[T] of the sampled tokens: transformers' own forward pass, one padded batch of the samples."""
    longest = max(len(sample.token_ids) for sample in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.token_ids)] = torch.from_numpy(sample.token_ids.astype(np.int64))
        mask[row, : len(sample.token_ids)] = 1
    pixel_values, grids = toys.chat().pixel_values([state for sample in samples for state in sample.states])
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=torch.from_numpy(pixel_values),
        image_grid_thw=torch.from_numpy(grids),
        mm_token_type_ids=(ids == PAD).int(),
    ).logits
    logprobs = (logits / temperature).log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    masks = [torch.from_numpy(sample.loss_mask[1:]) for sample in samples]
    return torch.cat([logprobs[row, : len(m)][m] for row, m in enumerate(masks)])


def logprobs_of(policy: Policy, pack: Pack) -> torch.Tensor:
    pixel_values, grids = toys.chat().pixel_values(pack.states)
    return policy(policy.inputs(pack, grids, pixel_values=pixel_values))


def gradient(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def chained(size: int = 3, window: int = 2) -> list:
    return [toys.chain_group(1, size=size, window=window), toys.chain_group(2, size=size, window=window)]


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(toys.tiny_model(), dtype=torch.float32)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(load_model(toys.config(freeze_vision=False).model))


@pytest.mark.parametrize("groups", [[toys.group(1), toys.group(2)], chained(), chained(window=3)])
def test_packs_that_share_prefixes_equal_samples_one_by_one(policy: Policy, plain: torch.nn.Module, groups: list):
    """Log-probabilities and the gradient of every parameter, vision tower included."""
    config = toys.config()
    samples = list(batch_of(groups, 0, config).samples)
    [[pack]] = packs_of(batch_of(groups, 0, config), config, PAD)
    ours = logprobs_of(policy, pack)
    theirs = torch.cat([plain_logprobs(plain, [sample]) for sample in samples])
    # A pack has the samples in its own order: they are told apart by their made-up log-probabilities.
    order = np.argsort(pack.inference_logprobs)
    expected = np.argsort(np.concatenate([s.inference_logprobs[s.loss_mask] for s in samples]))
    torch.testing.assert_close(ours[order], theirs[expected], rtol=0, atol=1e-5)
    ours, theirs = gradient(policy.model, ours.mean()), gradient(plain, theirs.mean())
    assert ours.keys() == theirs.keys() and any("visual" in name for name in ours)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5, msg=name)
    assert max(float(g.abs().max()) for g in theirs.values()) > 1e-2


def test_packs_equal_a_padded_batch(policy: Policy, plain: torch.nn.Module):
    samples = list(batch_of([toys.group(3)], 0, toys.config()).samples)
    [pack] = packs_in_order(samples, 4096, PAD)
    with torch.no_grad():
        torch.testing.assert_close(logprobs_of(policy, pack), plain_logprobs(plain, samples), rtol=0, atol=1e-5)


def test_long_and_short_segments_are_stacked_apart(policy: Policy, plain: torch.nn.Module):
    group = toys.group(4)
    rng = np.random.default_rng(0)
    answers = [toys.completion(rng, length) for length in (1, 70, 3, 200)]
    prompt = group.rollouts[0].turns[0].prompt
    rollouts = tuple(
        replace(r, turns=(toys.turn(prompt, a, float(i)),))
        for i, (r, a) in enumerate(zip(group.rollouts, answers, strict=True))
    )
    batch = batch_of([replace(group, rollouts=rollouts)], 0, toys.config())
    [[pack]] = packs_of(batch, toys.config(), PAD)
    with torch.no_grad():
        ours = logprobs_of(policy, pack)
        theirs = plain_logprobs(plain, list(batch.samples))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_features_made_beforehand_serve_as_well(policy: Policy):
    [pack] = packs_in_order(batch_of([toys.group(1)], 0, toys.config()).samples, 4096, PAD)
    pixel_values, grids = toys.chat().pixel_values(pack.states)
    with torch.no_grad():
        pictures = policy.encode(torch.from_numpy(pixel_values), torch.from_numpy(grids))
        made = policy(policy.inputs(pack, grids, pictures=pictures))
        torch.testing.assert_close(made, logprobs_of(policy, pack), rtol=0, atol=1e-6)


def test_the_picture_matters(policy: Policy):
    [pack] = packs_in_order(batch_of([toys.group(1)], 0, toys.config()).samples, 4096, PAD)
    pixel_values, grids = toys.chat().pixel_values(pack.states)
    with torch.no_grad():
        blank = policy(policy.inputs(pack, grids, pixel_values=np.zeros_like(pixel_values)))
        assert (blank - logprobs_of(policy, pack)).abs().max() > 1e-3


def test_pictures_that_do_not_fit_their_pads_are_refused(policy: Policy):
    [pack] = packs_in_order(batch_of([toys.group(1)], 0, toys.config()).samples, 4096, PAD)
    pixel_values, grids = toys.chat().pixel_values(pack.states[:-1])
    with pytest.raises(ValueError, match="64 image pads for pictures of 48 visual tokens"):
        policy.inputs(pack, grids, pixel_values=pixel_values)


def test_logits_in_parts_are_the_same(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    [pack] = packs_in_order(batch_of([toys.group(1)], 0, toys.config()).samples, 4096, PAD)
    whole = logprobs_of(policy, pack)
    whole_gradient = gradient(policy.model, whole.sum())
    monkeypatch.setattr(policy_module, "LOGITS", 7 * policy.model.config.get_text_config().vocab_size)
    parts = logprobs_of(policy, pack)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    for name, its in gradient(policy.model, parts.sum()).items():
        torch.testing.assert_close(its, whole_gradient[name], rtol=0, atol=1e-4, msg=name)


def test_the_temperature_divides_the_logits(policy: Policy, plain: torch.nn.Module):
    samples = list(batch_of([toys.group(1)], 0, toys.config()).samples)
    [pack] = packs_in_order(samples, 4096, PAD)
    with torch.no_grad():
        ours = logprobs_of(Policy(policy.model, temperature=0.5), pack)
        torch.testing.assert_close(ours, plain_logprobs(plain, samples, temperature=0.5), rtol=0, atol=1e-5)


def test_checkpointing_changes_nothing(policy: Policy):
    config = toys.config(freeze_vision=False, gradient_checkpointing=True).model
    [pack] = packs_in_order(batch_of([toys.group(1)], 0, toys.config()).samples, 4096, PAD)
    other = Policy(load_model(config))
    assert other.model.is_gradient_checkpointing
    ours = gradient(policy.model, logprobs_of(policy, pack).mean())
    for name, its in gradient(other.model, logprobs_of(other, pack).mean()).items():
        torch.testing.assert_close(its, ours[name], rtol=0, atol=1e-6, msg=name)


def test_what_is_frozen_and_what_is_trained():
    frozen = load_model(toys.config(dtype="bfloat16").model)
    for name, p in frozen.named_parameters():
        assert p.requires_grad == ("visual" not in name)
        assert p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16)
    assert not any(p.requires_grad for p in load_model(toys.config().model, trained=False).parameters())
    adapted = load_model(toys.config(lora=4, freeze_vision=False).model)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name and "language_model" in name for name in trained)


def test_adapters_start_the_same_for_a_seed():
    def first(seed: int) -> torch.Tensor:
        model = load_model(toys.config(lora=4).model, seed)
        return next(p for name, p in model.named_parameters() if ".lora_A." in name).detach()

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_qwen3_vl_runs_over_packs(tmp_path):
    """Features that are added in deeper layers travel with the picture."""
    text = dict(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "mrope_section": [6, 5, 5]},
    )
    vision = dict(
        depth=3,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=64,
        patch_size=14,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1],
    )
    config = Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=PAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = Qwen3VLForConditionalGeneration(config).float()
    plain.save_pretrained(tmp_path)
    policy = Policy(load_model(toys.config(path=str(tmp_path)).model))
    batch = batch_of([toys.group(1)], 0, toys.config())
    [[pack]] = packs_of(batch, toys.config(), PAD)
    with torch.no_grad():
        theirs = plain_logprobs(plain, list(batch.samples))
        torch.testing.assert_close(logprobs_of(policy, pack), theirs, rtol=0, atol=1e-5)
