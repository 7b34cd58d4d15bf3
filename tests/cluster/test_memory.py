"""Estimates of memory against known sizes, and placement on clusters that fit and that don't."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save_file

from g1_ray.cluster.memory import learner_need, needs_of, picture_tokens, shape_of
from g1_ray.cluster.placement import check_placement, check_run, dry_run, gpu_memory, nodes_of_ray, this_machine
from g1_ray.config import RunConfig

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


def test_a_folder_is_counted_from_its_files_and_agrees_with_the_formula():
    shape = shape_of("tiny-base")
    assert shape.counted > 0 and dataclasses.replace(shape, counted=0).params == shape.counted
    assert shape_of("somebody/unknown-vl") is None


def test_the_published_layout_of_config_json_is_read_too(tmp_path):
    """With the language model's numbers at the top level, as in the Hub's files."""
    shape = shape_of(QWEN_3B)
    values = {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert dataclasses.replace(shape_of(str(tmp_path)), source=shape.source) == shape
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}, tmp_path / "model.safetensors")
    assert shape_of(str(tmp_path)).params == 22
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(ValueError, match="a vision-language model is needed"):
        shape_of(str(tmp_path))


def test_the_learner_needs_what_its_options_say():
    plain = run()
    # Full fine-tuning without the tower: 16 bytes a trained parameter on one rank.
    trained = shape_of(QWEN_7B).params - shape_of(QWEN_7B).vision_params
    states = sum(learner_bytes(plain, part) for part in ("weights", "gradients", "Adam"))
    assert states == pytest.approx(16 * trained + 2 * shape_of(QWEN_7B).vision_params)
    assert learner_bytes(run(learner={"num_ranks": 4}), "Adam") == learner_bytes(plain, "Adam") / 4
    assert learner_bytes(plain, "reference") == 0
    assert learner_bytes(run(algorithm={"kl_coef": 0.01}), "reference") > 2 * trained
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
        ({"engine": {"num_engines": 9}}, [H100], ["10 GPUs", "engine.num_engines=8"]),
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


def test_a_dry_run_tells_the_run_its_memory_and_its_place():
    cpu = {"learner": {"gpus": 0}, "engine": {"gpus": 0}}
    text, fits = dry_run(run("tiny-base", **cpu), [{"CPU": 4.0, "memory": 1e10}])
    head, _, rest = text.partition("\n}\n")
    assert json.loads(head + "}")["rollout"]["group_size"] == 8
    assert "KV cache" in rest and "1 x learner rank" in rest.split("placement")[1]
    text, fits = dry_run(run("tiny-base", **cpu), [{"CPU": 1.0, "memory": 1e10}])
    assert "KV cache" in text and "placement: does not fit\nthe run asks for 3 CPUs, the cluster has 1 CPU" in text
