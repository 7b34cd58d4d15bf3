"""Weights that don't load whole, and adapters that don't go in whole, are errors of a few lines that say what helps."""

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from toys import tiny_model  # noqa: E402

from g1_ray.models.find import check_model, merge_adapter, model_path  # noqa: E402
from g1_ray.models.weights import load_model, skeleton  # noqa: E402


def copied(folder: Path, change) -> str:
    """The toy model with its tensors changed."""
    shutil.copytree(tiny_model(), folder, dirs_exist_ok=True)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def unmerged(tensors):
    return {name.replace("down_proj.weight", "down_proj.base_layer.weight"): tensor for name, tensor in tensors.items()}


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def cut(tensors):
    return {
        name: tensor[:-1].contiguous() if "gate_proj.weight" in name else tensor for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    "change, said",
    [
        (prefixed("_orig_mod."), ["not there, first lm_head.weight", "first _orig_mod.", "torch.compile"]),
        (prefixed("module."), ["first module.", "DistributedDataParallel"]),
        (prefixed("_fsdp_wrapped_module."), ["first _fsdp_wrapped_module.", "FSDP"]),
        (prefixed("base_model.model."), ["first base_model.model.", "merge_and_unload"]),
        (unmerged, ["down_proj.base_layer.weight", "merge_and_unload"]),
        (
            without("layers.1."),
            ["12 weights that the model needs", "layers.1.input_layernorm", "not saved or not copied"],
        ),
        (without("blocks.0.attn.qkv.bias"), ["1 weights", "visual.blocks.0.attn.qkv.bias"]),
        (cut, ["gate_proj.weight is [", "asks for [", "one and the same model"]),
        (
            lambda tensors: {**tensors, "value_head.weight": torch.ones(3)},
            ["first value_head.weight", "one and the same"],
        ),
        (lambda tensors: {}, ["not there, first"]),
    ],
)
def test_weights_that_are_not_the_models_are_named(tmp_path, change, said):
    folder = copied(tmp_path, change)
    for load in (load_model, skeleton, check_model):
        with pytest.raises(ValueError) as error:
            load(folder)
        assert all(part in str(error.value) for part in (*said, folder)), str(error.value)
        assert len(str(error.value).splitlines()) <= 3


def as_published(tensors):
    """The names of Qwen's own files, which transformers has others for."""
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in tensors.items()
    }


def with_tied_head(tensors):
    (embedding,) = (tensor for name, tensor in tensors.items() if "embed_tokens" in name)
    return {**tensors, "lm_head.weight": embedding.clone()}


@pytest.mark.parametrize("change", [dict, as_published, with_tied_head])
def test_what_is_whole_under_other_names_loads(tmp_path, change):
    model, known = load_model(copied(tmp_path, change), dtype=torch.float32), load_model(tiny_model())
    assert all(torch.equal(weight, known.state_dict()[name]) for name, weight in model.state_dict().items())
    assert skeleton(str(tmp_path)).device.type == "meta"


def sharded(folder: Path) -> None:
    load_model(tiny_model()).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()


def lose_a_shard(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def cut_a_shard(folder: Path) -> None:
    sharded(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def config_of(change):
    def write(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(change(values)))

    return write


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lose_a_shard, ["weight files are not there", "model-00002-of-"]),
        (cut_a_shard, ["model-00002-of-", "broken or cut off"]),
        (lambda folder: (sharded(folder), (folder / "model.safetensors.index.json").write_text("[]")), ["no index"]),
        (pickled, ["pytorch_model.bin is a pickle", "save_pretrained"]),
        (pointer, ["pointer of Git LFS", "git lfs pull"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), ["broken or cut off"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["no weights there"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json: no JSON"]),
        (config_of(lambda values: {**values, "model_type": "nope_vl"}), ["nope_vl"]),
        (config_of(lambda values: {**values["text_config"], "model_type": "qwen2"}), ["families that work: Qwen2-VL"]),
    ],
)
def test_broken_folders_are_told_before_anything_starts(tmp_path, spoil, said):
    folder = copied(tmp_path, dict)
    spoil(tmp_path)
    for load in (load_model, check_model):
        with pytest.raises(ValueError) as error:
            load(folder)
        assert all(part in str(error.value) for part in (*said, folder)), str(error.value)
        assert len(str(error.value).splitlines()) <= 3


# Adapters


def adapter(folder: Path, **options) -> Path:
    """An adapter on the toy model, as peft saves it."""
    model = peft.get_peft_model(
        load_model(tiny_model()), peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **options})
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def rewritten(folder: Path, change) -> None:
    save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")


def changed_by(folder: Path, out: Path) -> int:
    """How many weights the merged model has that the base has not."""
    check_model(str(folder))
    merged, base = load_model(merge_adapter(str(folder), str(out))).state_dict(), load_model(tiny_model()).state_dict()
    return sum(not torch.equal(weight, base[name]) for name, weight in merged.items())


@pytest.mark.parametrize(
    "options, changed",
    [
        ({}, 4),
        ({"use_dora": True}, 4),
        ({"use_rslora": True, "rank_pattern": {"v_proj": 2}}, 4),
        ({"target_modules": r".*language_model.*\.(up|down)_proj"}, 4),
        ({"target_modules": ["qkv", "q_proj"]}, 4),  # of the vision tower too
    ],
)
def test_every_tensor_of_an_adapter_is_merged(tmp_path, options, changed):
    assert changed_by(adapter(tmp_path / "a", **options), tmp_path / "out") == changed
    again = merge_adapter(str(tmp_path / "a"), str(tmp_path / "again"))
    assert (Path(again) / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("old, new", [("model.language_model.", "model."), ("model.visual.", "visual.")])
def test_names_of_older_transformers_are_read(tmp_path, old, new):
    folder = adapter(tmp_path / "a", target_modules=["qkv", "q_proj"])
    known = changed_by(folder, tmp_path / "known")
    rewritten(folder, lambda tensors: {name.replace(f"model.{old}", f"model.{new}"): t for name, t in tensors.items()})
    assert changed_by(folder, tmp_path / "out") == known == 4
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "known/model.safetensors").read_bytes()


def of_another_base(folder: Path) -> None:
    values = json.loads((folder / "adapter_config.json").read_text())
    values["base_model_name_or_path"] = "tiny-base"  # a wider one
    (folder / "adapter_config.json").write_text(json.dumps(values))


def told(key, value):
    def write(folder: Path) -> None:
        values = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**values, key: value}))

    return write


def nested(folder: Path) -> None:
    rewritten(folder, lambda tensors: {name.replace("layers.", "model.layers."): t for name, t in tensors.items()})


def bare(folder: Path) -> None:
    rewritten(folder, lambda tensors: {name.removeprefix("base_model.model."): t for name, t in tensors.items()})


@pytest.mark.parametrize(
    "spoil, said",
    [
        (nested, ["8 weights", "8 that are there", "model.layers.0", "such as base_model.model"]),
        (bare, ["first model.language_model", "not the model's"]),
        (lambda folder: rewritten(folder, without("layers.1.self_attn.v_proj")), ["layers.1.self_attn.v_proj.lora_A"]),
        (told("r", 8), [" is [4, 64], and the base makes it [8, 64]"]),
        (told("target_modules", ["q_proj"]), ["4 that are there", "v_proj"]),
        (told("target_modules", ["qq_proj"]), ["qq_proj"]),
        (told("peft_type", "NOPE"), ["peft can't put"]),
        (of_another_base, [" is [4, 64], and the base makes it [4, 96]", "not the one that it fits"]),
        (told("base_model_name_or_path", "../models/Qwen-7B"), ["base model '../models/Qwen-7B' is not here"]),
        (told("base_model_name_or_path", ""), ["names no base model"]),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), ["adapter_config.json: no JSON"]),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), ["no adapter_model.safetensors"]),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 30), ["broken or cut off"]),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), ["is not opened"]),
    ],
)
def test_an_adapter_that_does_not_fit_is_an_error(tmp_path, spoil, said):
    folder = adapter(tmp_path / "a")
    spoil(folder)
    for use in (check_model, lambda path: merge_adapter(path, str(tmp_path / "out"))):
        with pytest.raises(ValueError) as error:
            use(str(folder))
        assert all(part in str(error.value) for part in (*said, str(folder))), str(error.value)
        assert len(str(error.value).splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_an_output_layer_of_its_own_is_kept_apart_from_the_embedding(tmp_path):
    folder = adapter(tmp_path / "a", modules_to_save=["lm_head"])
    assert changed_by(folder, tmp_path / "out") == 5
    merged = load_model(str(tmp_path / "out"))
    trained = load_file(folder / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    assert torch.equal(merged.get_output_embeddings().weight, trained)
    assert not torch.equal(merged.get_input_embeddings().weight, trained)


def test_an_adapter_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="a LoRA adapter, and no model: merge it"):
        model_path(str(adapter(tmp_path / "a")))
