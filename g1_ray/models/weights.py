"""The weights of a folder, all of them or an error: every model that is trained or asked is loaded here.

transformers fills what it does not find with random numbers and leaves out what it does not know, and says so in a log.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g1_ray.files import checked, read_json

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel

FAMILIES = ("Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "GLM-4.1V")
"""Families that were tried."""
INDEX = "model.safetensors.index.json"
LARGE = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Files of JSON that are read by libraries that take little more than their size."""
LARGEST = 48 << 20
"""Bytes of one."""
_HINTS = {
    "_orig_mod.": "Such names come from torch.compile: save the model inside it, model._orig_mod.save_pretrained(...).",
    ".base_layer.": "A LoRA adapter wraps it: save model.merge_and_unload(), or give the adapter's own folder.",
    ".lora_A.": "A LoRA adapter wraps it: save model.merge_and_unload(), or give the adapter's own folder.",
    "base_model.model.": "A LoRA adapter wraps it: save model.merge_and_unload(), or give the adapter's own folder.",
    "_fsdp_wrapped_module.": "Such names come from FSDP: gather a full state dict and save that.",
    "_checkpoint_wrapped_module.": "Such names come from activation checkpointing: save the model without its wrapper.",
    "module.": "Such names come from DistributedDataParallel: save the model inside it, model.module.",
}
"""By what is in the name of a weight that nobody asked for: how that comes about and what helps."""


# Files


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's model. Raises `ValueError` where they are not there."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).exists():
        if pickles := sorted(folder.glob("*.bin")):
            raise ValueError(
                f"{folder}: {pickles[0].name} is a pickle, which can hold any program, and is not opened.\n"
                "Load it where you trust it and save it again: model.save_pretrained(...) writes safetensors."
            )
        raise ValueError(f"{folder}: no weights there, neither model.safetensors nor {INDEX}")
    try:
        index = read_json(folder / INDEX, dict[str, Any])
        shards = sorted(set(checked(index.get("weight_map"), dict[str, str], "weight_map").values()))
    except ValueError as error:
        raise ValueError(f"{folder / INDEX}: is no index of weights ({_line(error)}); copy it again") from None
    if outside := [shard for shard in shards if "/" in shard]:
        raise ValueError(f"{folder / INDEX}: leads out of the folder, to {outside[0]}; copy it again")
    files = [folder / shard for shard in shards]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(files)} weight files are not there, first {missing[0]}.\n"
            "Copy or download the folder again."
        )
    return files


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file, from its header. Raises `ValueError` for a broken one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError), open(file, "rb") as head:
            if head.read(40).startswith(b"version https://git-lfs"):
                raise ValueError(
                    f"{file}: a pointer of Git LFS, and not the file itself.\nFetch it: git lfs pull, in {file.parent}"
                ) from None
        raise ValueError(f"{file}: is broken or cut off ({_line(error)}).\nCopy or download it again.") from None


def dtypes_in(file: Path) -> set[str]:
    """Of the tensors of a safetensors file, as it calls them: "BF16", "F32"."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        return {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118


def check_files(folder: Path, weights: bool = True) -> None:
    """Raises `ValueError` where a file of a model's folder is broken, or so large that reading it would not end."""
    held = weight_files(folder) if weights else []
    said = sorted([*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.txt")])
    for file in [*said, *held]:
        if not file.is_file():
            raise ValueError(f"{file}: is no file; copy or download the folder again")
    for file in said:
        if file.name in LARGE or file.suffix != ".json":
            if file.stat().st_size > LARGEST:
                raise ValueError(f"{file}: is larger than the {LARGEST / 1e6:.0f} MB that such a file may have")
        elif file.name != INDEX:
            read_json(file, dict[str, Any])
    for file in held:
        shapes_in(file)


# Models


TOWERS = ("visual", "vision_tower", "vision_model")
"""What families call the part that makes features of pictures."""


def vision_tower(model: "PreTrainedModel") -> "Module | None":
    """The part that makes features of pictures."""
    from torch.nn import Module

    for name in TOWERS:
        if isinstance(tower := getattr(model.base_model, name, None), Module):
            return tower
    return None


def drop_tower(model: "PreTrainedModel") -> None:
    """Leaves nothing of it: for a model that is given features."""
    for name in TOWERS:
        if hasattr(model.base_model, name):
            setattr(model.base_model, name, None)


def stored_dtype(path: str) -> "torch.dtype":
    """What a model is stored as, a folder or a name in the Hub's cache: bfloat16 where all of it is, else float32."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    folder = Path(path)
    if not folder.is_dir() and isinstance(cached := try_to_load_from_cache(path, "config.json"), str):
        folder = Path(cached).parent
    kinds = {kind for file in weight_files(folder) for kind in dtypes_in(file)} if folder.is_dir() else set()
    return torch.bfloat16 if kinds == {"BF16"} else torch.float32


def load_model(path: str, **options: Any) -> "PreTrainedModel":
    """What `AutoModelForImageTextToText.from_pretrained` makes of a folder or a Hugging Face name, and `options`.

    Raises `ValueError` of at most three lines where a weight is missing, left over or of another shape, where files are
    broken, and for a model of a family that can't be run. With `device_map="meta"` no weight is read.
    """
    from transformers import AutoModelForImageTextToText

    if Path(path).is_dir():
        check_files(Path(path))
    with _quiet(), told(path):
        model, report = AutoModelForImageTextToText.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **options
        )
    check_family(model, path)
    _check_complete(report, path)
    loaded: PreTrainedModel = model
    return loaded


def skeleton(path: str) -> "PreTrainedModel":
    """The model without its weights, on the meta device; raises `ValueError` as `load_model` would.

    It reads headers only. The weights of a quantised model have names of their own, which are left to its engine.
    """
    if Path(path).is_dir():
        check_files(Path(path))  # before torch is imported, which takes seconds
    import torch

    with told(path):
        from transformers import AutoConfig, AutoModelForImageTextToText

        config = AutoConfig.from_pretrained(path)
        if hasattr(config, "quantization_config"):
            with torch.device("meta"):
                quantised: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
            return quantised
    return load_model(path, device_map="meta")


def check_family(model: "PreTrainedModel", path: str) -> None:
    """Raises `ValueError` for a model that does not take pictures as a grid of patches, merged in squares."""
    vision = getattr(model.config, "vision_config", None)
    if not hasattr(model.base_model, "get_rope_index") or not hasattr(vision, "spatial_merge_size"):
        raise ValueError(
            f"{path}: {model.config.model_type} does not take pictures as Qwen2-VL does, in patches of a grid.\n"
            f"Families that do: {', '.join(FAMILIES)}."
        )


def _check_complete(report: Mapping[str, Any], path: str) -> None:
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if report["mismatched_keys"]:
        name, there, wanted = min(report["mismatched_keys"])
        raise ValueError(
            f"{path}: {name} is {list(there)}, and its config.json asks for {list(wanted)}"
            f" ({len(report['mismatched_keys'])} such weights).\nTake config and weights of one and the same model."
        )
    if missing or unused:
        raise ValueError(f"{path}: {counted(missing, unused)}.\n{hint_of(missing, unused)}")
    if report["error_msgs"]:
        raise ValueError(f"{path}: {_line(report['error_msgs'][0])}")


def counted(missing: Sequence[str], unused: Sequence[str]) -> str:
    """What is missing and what is left over, in words."""
    parts = [(missing, "weights that the model needs are not there"), (unused, "that are there are not the model's")]
    return "; ".join(f"{len(names)} {what}, first {names[0]}" for names, what in parts if names)


def hint_of(missing: Sequence[str], unused: Sequence[str]) -> str:
    """What helps."""
    for part, hint in _HINTS.items():
        if unused and (unused[0].startswith(part) or part in f".{unused[0]}" and part.startswith((".", "_"))):
            return hint
    if not unused:
        return "Part of it was not saved or not copied: write or download the folder again."
    return "Take config and weights of one and the same model."


def save_model(
    model: "PreTrainedModel", processor: Any, folder: Path | str, weights: "Mapping[str, torch.Tensor] | None" = None
) -> None:
    """Writes a model, with other `weights` if they are given, and what makes its inputs, in the Hugging Face format."""
    with _quiet():
        model.save_pretrained(folder, state_dict=dict(weights) if weights is not None else None)
        processor.save_pretrained(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without bars that are over at once, and without the table of keys that transformers logs: it is an error here,
    of three lines."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """What transformers says about somebody's folder, in a line."""
    try:
        yield
    except Exception as error:  # what is in a folder makes any
        if "Unrecognized configuration class" in str(error):
            why = "not a vision-language model; families that work: " + ", ".join(FAMILIES)
        else:
            why = f"can't be loaded ({_line(error)})"
        raise ValueError(f"{path}: {why}") from error


def _line(error: object) -> str:
    """The first line of an error, and not all of a long one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
