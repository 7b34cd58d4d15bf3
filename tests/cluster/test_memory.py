"""Estimates of memory against known sizes, and placement on clusters that fit and that don't."""

import json
import math
from collections import Counter

import pytest
import transformers

from g1_ray.cluster.memory import learner_need, needs_of, picture_tokens, shape_of
from g1_ray.cluster.placement import (
    check_placement,
    check_run,
    dry_run,
    gpu_memory,
    nodes_assumed,
    nodes_of_ray,
    nodes_of_yaml,
    this_machine,
)
from g1_ray.config import RunConfig, load_config
from g1_ray.models.find import check_model

QWEN_3B, QWEN_7B = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
H100 = {"CPU": 96.0, "GPU": 8.0, "memory": 1e12, "accelerator_type:H100": 1.0}


def run(path=QWEN_7B, **sections):
    return RunConfig.model_validate({"name": "x", "model": {"path": path}, "games": [{"game": "2048"}], **sections})


def learner_bytes(config, part=None):
    need = learner_need(config, shape_of(config.model.path))
    return need.parts[part] if part else need.total


def test_parameters_are_those_of_the_published_models():
    assert shape_of(QWEN_3B).params == 3_754_622_976
    assert shape_of(QWEN_7B).params == 8_292_166_656
    assert shape_of(QWEN_3B).kv_bytes("bfloat16") == 36 * 1024


def test_a_folder_is_looked_at_and_an_unknown_name_is_not():
    shape = shape_of("tiny-base")
    assert shape.params == 497_712 and (shape.text.depth, shape.text.width, shape.text.inner) == (3, 96, 192)
    assert shape_of("somebody/unknown-vl") is None


TEXT = dict(
    head_dim=8, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
)
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}, "vocab_size": 90}
SEEING = dict(depth=2, num_heads=2)


def family(folder, model_type, vision, /, **text):
    """A tiny model of a family, made of its config."""
    config = transformers.AutoConfig.for_model(
        model_type, text_config={**TEXT, **text}, vision_config=vision, tie_word_embeddings=False
    )
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "model_type, vision, inner",
    [
        ("qwen2_vl", {**SEEING, "embed_dim": 48, "hidden_size": 32, "mlp_ratio": 2}, 96),
        ("qwen2_5_vl", {**SEEING, "hidden_size": 48, "intermediate_size": 80, "out_hidden_size": 32}, 80),
        ("qwen3_vl", {**SEEING, "hidden_size": 48, "intermediate_size": 80, "out_hidden_size": 32, "patch_size": 16,
                      "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}, 80),
        ("glm4v", {**SEEING, "hidden_size": 48, "intermediate_size": 80, "out_hidden_size": 80, "image_size": 112}, 80),
    ],
)  # fmt: skip
def test_families_are_read_whatever_they_call_their_numbers(tmp_path, model_type, vision, inner):
    path = family(tmp_path, model_type, vision, **ROPE)
    shape = shape_of(path)
    assert shape.text.depth == 3 and shape.text.width == 32 and shape.kv_bytes("bfloat16") == 2 * 2 * 3 * 16
    assert (shape.vision.depth, shape.vision.width, shape.vision.inner) == (2, 48, inner)
    assert shape.params == transformers.AutoModelForImageTextToText.from_pretrained(path).num_parameters()
    assert "1 x learner rank" in check_run(run(path), [H100])


@pytest.mark.parametrize(
    "model_type, vision",
    [
        ("llava", {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
                   "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}),
        ("idefics3", {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "image_size": 64, "patch_size": 16}),
    ],
)  # fmt: skip
def test_families_that_take_pictures_otherwise_are_told(tmp_path, model_type, vision):
    path = family(tmp_path, model_type, vision, model_type="llama", vocab_size=90)
    for use in (shape_of, check_model):
        with pytest.raises(ValueError, match=f"{model_type} does not take pictures as Qwen2-VL does") as error:
            use(path)
        assert "Families that do: Qwen2-VL" in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_the_learner_needs_what_its_options_say():
    plain = run()
    # Full fine-tuning without the tower: 16 bytes a trained parameter on one rank.
    trained = shape_of(QWEN_7B).params - shape_of(QWEN_7B).vision_params
    states = sum(learner_bytes(plain, part) for part in ("weights", "gradients", "Adam"))
    assert states == pytest.approx(16 * trained + 2 * shape_of(QWEN_7B).vision_params)
    assert learner_bytes(run(learner={"num_ranks": 4}), "Adam") == learner_bytes(plain, "Adam") / 4
    assert learner_bytes(plain, "reference") == 0
    assert learner_bytes(run(algorithm={"kl_coef": 0.01}), "reference") == 2 * trained  # it has no tower
    kept = learner_bytes(run(learner={"keep_gathered_gb": 17}), "gathered weights")
    assert kept == 2 * trained > 4 * learner_bytes(plain, "gathered weights")  # 16.6 GB and more than 16
    assert learner_bytes(run(learner={"keep_gathered_gb": 33}, algorithm={"kl_coef": 0.01}), "gathered weights") < kept
    lora = {"path": QWEN_7B, "lora": {"rank": 16}}
    assert learner_bytes(run(model=lora)) < 0.4 * learner_bytes(plain)
    assert learner_bytes(run(model=lora, algorithm={"kl_coef": 0.01})) == learner_bytes(run(model=lora))
    whole = {"path": QWEN_7B, "gradient_checkpointing": False}
    assert learner_bytes(run(model=whole), "activations") > 5 * learner_bytes(plain, "activations")
    packs = run(learner={"tokens_per_pack": 32768})
    assert learner_bytes(packs, "activations") == pytest.approx(2 * learner_bytes(plain, "activations"))


def test_pictures_are_counted_in_visual_tokens():
    config = run(games=[{"game": "2048", "reasoning": {"size": 3}, "perception": {"tile_px": 28}}, {"game": "swap"}])
    alone = run(games=[{"game": "2048", "reasoning": {"size": 3}, "perception": {"tile_px": 28}}])
    assert picture_tokens(alone, shape_of(QWEN_3B)) == 9 < picture_tokens(config, shape_of(QWEN_3B))


def test_roles_are_packed_on_gpus_and_the_rest_stays_off_them():
    config = run(
        learner={"num_ranks": 4},
        engine={"num_engines": 2, "gpus": 2, "max_model_len": 2048},
        asynchrony={"num_env_workers": 3},
    )
    nodes = [{"CPU": 8.0, "memory": 5e10}, {**H100, "GPU": 4.0}, {**H100, "GPU": 4.0}]
    placed = check_placement(needs_of(config, shape_of(QWEN_7B)), nodes)
    assert placed[0] == Counter({"env worker": 3, "driver and buffer": 1})
    assert sorted(map(tuple, (sorted(p.elements()) for p in placed[1:]))) == [
        ("engine", "engine"),
        ("learner rank",) * 4,
    ]


@pytest.mark.parametrize(
    "sections, nodes, said",
    [
        ({"learner": {"num_ranks": 8}}, [H100], ["asks for 9 GPUs, the cluster has 8 GPUs", "learner.num_ranks=7"]),
        ({}, [{"CPU": 8.0, "memory": 1e11}], ["the cluster has 0 GPUs", "engine.gpus=0 learner.gpus=0"]),
        ({"engine": {"num_engines": 9}, "asynchrony": {"lanes": 9}}, [H100], ["10 GPUs", "engine.num_engines=8"]),
        (
            {"engine": {"gpus": 4}, "learner": {"num_ranks": 4}},
            [{**H100, "GPU": 3.0}] * 3,
            ["engine 1 of 1 needs 4 GPUs", "on one node"],
        ),
        ({"asynchrony": {"num_env_workers": 200}}, [H100], ["202 CPUs", "num_env_workers"]),
        ({"learner": {"num_ranks": 1}}, [H100], ["learner rank: needs", "GPU memory", "learner.num_ranks"]),
        (
            {"learner": {"num_ranks": 6}, "engine": {"max_model_len": 1200000}},
            [H100],
            ["engine: needs", "may take 0.85 of 85.9 GB", "engine.gpus=2"],
        ),
        (
            {"learner": {"gpus": 0}, "engine": {"gpus": 0}},
            [{"CPU": 2.1, "memory": 8e9}, {"CPU": 4.0, "memory": 8e9}],
            ["of memory, the cluster has 16.0 GB", "engine.kv_cache_gb"],
        ),
        ({}, [], ["no nodes"]),
    ],
)
def test_what_does_not_fit_is_told_with_what_helps(sections, nodes, said):
    with pytest.raises(ValueError) as error:
        check_placement(needs_of(run(**sections), shape_of(QWEN_7B)), nodes)
    assert all(part in str(error.value) for part in said), str(error.value)
    assert len(str(error.value).splitlines()) <= 3


def test_a_fix_that_is_named_works():
    """As many ranks as the message says do fit, and one more does not."""
    seven = needs_of(run(learner={"num_ranks": 7}), shape_of(QWEN_7B))
    assert check_placement(seven, [H100])[0] == Counter(
        {"learner rank": 7, "engine": 1, "env worker": 1, "driver and buffer": 1}
    )


def test_a_shared_gpu_has_room_for_both_only_within_their_shares():
    shares = {"engine": {"gpus": 0.3, "memory_utilization": 0.25}, "learner": {"gpus": 0.7}}
    node = {"CPU": 16.0, "GPU": 1.0, "memory": 1e11, "accelerator_type:H200": 1.0}
    assert "1 x learner rank" in check_run(run(QWEN_3B, **shares), [node])
    with pytest.raises(ValueError, match="may take 0.7 of 85.9 GB"):
        check_run(run(QWEN_3B, **shares), [{**H100, "GPU": 1.0}])
    with pytest.raises(ValueError, match="memory_utilization = 0.85: at most gpus, which is 0.3"):
        run(engine={"gpus": 0.3})


def test_unknown_models_are_placed_without_memory():
    config = run("somebody/unknown-vl")
    assert "memory: unknown" in check_run(config, [H100])
    with pytest.raises(ValueError, match="has 1 GPU"):
        check_run(config, [{**H100, "GPU": 1.0}])


def test_nodes_are_read_from_ray_and_from_this_machine():
    assert nodes_of_ray([{"Alive": True, "Resources": H100}, {"Alive": False, "Resources": H100}]) == [H100]
    assert gpu_memory({"GPU": 1, "accelerator_type:A100": 1}) == 0  # 40 or 80 GB: who knows
    assert gpu_memory(H100) == 80 * 2**30
    (machine,) = this_machine()
    assert machine["CPU"] >= 1 and machine["memory"] > 1e8


def test_a_dry_run_tells_its_verdict_first_and_the_run_last():
    cpu = {"learner": {"gpus": 0}, "engine": {"gpus": 0}}
    text, fits = dry_run(run("tiny-base", **cpu), [{"CPU": 4.0, "memory": 1e10}])
    head, _, rest = text.partition("\n{\n")
    assert fits and json.loads("{" + rest)["rollout"]["group_size"] == 8
    assert head.startswith("x fits\n") and "KV cache" in head and "1 x learner rank" in head.split("placement")[1]
    text, fits = dry_run(run("tiny-base", **cpu), [{"CPU": 1.0, "memory": 1e10}])
    assert not fits and text.startswith("x does not fit: the run asks for 3 CPUs, the cluster has 1 CPU")
    assert "KV cache" in text


@pytest.mark.parametrize(
    "config, fits, less",
    [("one-24gb-3b", "1x24GB", "1x16GB"), ("one-80gb-3b", "1x80GB", "1x32GB"), ("one-80gb-7b", "1x80GB", "1x48GB")],
)
def test_presets_for_one_card_fit_on_it(config, fits, less):
    config = load_config(f"jobs/configs/{config}.toml")
    assert dry_run(config, nodes_assumed(fits))[1]
    assert not dry_run(config, nodes_assumed(less))[1]


def test_machines_that_are_not_there():
    first, second = nodes_assumed("8x80GB, 4x24gb")
    assert (first["GPU"], gpu_memory(first), first["CPU"]) == (8, 80 * 2**30, math.inf)
    assert (second["GPU"], gpu_memory(second)) == (4, 24 * 2**30)
    for text in ("", "24GB", "0x24GB", "1x24TB", "1x24GB,", "-1x24GB"):
        with pytest.raises(ValueError, match="write 1x24GB, or 8x80GB,4x24GB"):
            nodes_assumed(text)


HEAD = "available_node_types:\n  h: {resources: {CPU: 8}}\n  "


@pytest.mark.parametrize(
    "text, cpus",
    [
        (f"head_node_type: h\n{HEAD}w: {{resources: {{CPU: 4}}}}", [8, 4, 4]),  # Ray's two workers
        (f"head_node_type: h\nmax_workers: 3\n{HEAD}w: {{resources: {{CPU: 4}}, max_workers: 9}}", [8, 4, 4, 4]),
        (f"head_node_type: h\nmax_workers: 3\n{HEAD}w: {{resources: {{CPU: 4}}, max_workers: 9}}\n"
         "  v: {resources: {CPU: 2}, max_workers: 1}", [8, 4, 2, 4]),
        ("available_node_types:\n  ray.head.default: {}\n  w: {resources: {CPU: 4}, max_workers: 1}", [0, 4]),
        (f"head_node_type: h\nmax_workers: 0\n{HEAD}w: {{}}", [8]),
    ],
)  # fmt: skip
def test_a_cluster_file_leaves_out_what_ray_lets_it(tmp_path, text, cpus):
    (tmp_path / "c.yaml").write_text(text)
    assert [node.get("CPU", 0) for node in nodes_of_yaml(tmp_path / "c.yaml")] == cpus


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no node types"),
        ("- a\n- b", "no node types"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("a: [1", "is not YAML"),
        ("available_node_types: [a]", "no node types"),
        ("available_node_types: {w: {resources: {CPU: 4}}}", "'ray.head.default' is not among its node types: w"),
        (f"head_node_type: h\n{HEAD}w: {{}}", "w says no resources"),
        (f"head_node_type: h\n{HEAD}w: {{resources: {{GPU: 1}}}}", "or no CPU"),
        (f"head_node_type: h\n{HEAD}w: {{resources: [4]}}", "w.resources = [4]: numbers by name"),
        (f"head_node_type: h\nmax_workers: many\n{HEAD}w: {{}}", "max_workers = 'many'"),
    ],
)
def test_a_cluster_file_that_is_wrong_is_told_with_its_name(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        nodes_of_yaml(path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)
    assert len(str(error.value).splitlines()) <= 3
