"""Which model a name means: one that ships, a folder, a run's newest checkpoint, an adapter, a Hugging Face name."""

import re
from pathlib import Path
from typing import Any

from envs.options import nearest
from g1_ray.files import read_json, steps_in
from g1_ray.models.adapters import CONFIG, base_named, check_adapter, merge
from g1_ray.models.manifest import MANIFEST, fault_of
from g1_ray.models.weights import skeleton, weight_files

MODELS = Path(__file__).parent
SHIPPED = ("tiny-base", "tiny-coldstart")
"""Models that come with g1_ray, in this folder."""


def model_path(path: str, key: str = "model.path") -> str:
    """What `from_pretrained` takes: the folder of a shipped model, another folder, or a Hugging Face name as it is.

    A run's folder stands for its newest checkpoint. Raises `ValueError` that names the key where a folder is no model.
    `check_model` finds out if it can be had, and loads.
    """
    folder = MODELS / path if path in SHIPPED else Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        if not (steps := steps_in(folder / "checkpoints")):
            raise ValueError(f"{key} = {path!r}: that run has no checkpoint yet")
        folder = steps[-1]
    if folder.is_dir():
        if is_adapter(str(folder)):
            raise ValueError(
                f"{key} = {path!r}: a LoRA adapter, and no model: merge it into its base.\n"
                "(`g1-ray evaluate --players FOLDER` does so by itself.)"
            )
        if not (folder / "config.json").is_file():
            inside = sorted(str(file.parent) for file in folder.glob("*/config.json"))
            raise ValueError(
                f"{key} = {path!r}: no config.json in that folder" + (nearest(path, inside) if inside else "")
            )
        return str(folder)
    if is_hub_name(path):
        return path
    hint = nearest(path, SHIPPED)
    raise ValueError(f"{key} = {path!r}: no such folder{hint}, or a name such as Qwen/Qwen2.5-VL-3B-Instruct")


def is_hub_name(path: str) -> bool:
    """Whether a model is named as the Hub names them, and nothing here is called so."""
    here = path in SHIPPED or path.startswith(".") or Path(path).expanduser().exists()
    return not here and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path))


def check_model(path: str, key: str = "model.path", timeout_s: float = 10.0) -> None:
    """Raises `ValueError` where a model, or an adapter and its base, would not load whole.

    A Hugging Face name that is not in the cache is asked for at the Hub, and looked at when it is loaded.
    """
    if is_adapter(path):
        check_adapter(str(Path(path).expanduser()), base_of(path, timeout_s))
        return
    name = model_path(path, key)
    try:
        if (Path(name) / MANIFEST).is_file() and (fault := fault_of(Path(name), but="learner")):
            raise ValueError(f"{fault}.\nTake an older checkpoint, or copy this one again.")
        if Path(name).is_dir() or is_cached(name):
            skeleton(name)
        else:
            _check_hub(name, timeout_s)
    except ValueError as error:
        raise ValueError(f"{key} = {error}") from error


def is_cached(name: str) -> bool:
    """Whether a Hugging Face name has its config and all of its weights in the cache of this machine."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    try:
        return isinstance(cached, str) and bool(weight_files(Path(cached).parent))
    except ValueError:
        return False


def _check_hub(name: str, timeout_s: float) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=timeout_s)
    except RepositoryNotFoundError:
        raise ValueError(
            f"{name!r}: no folder, and the Hub has no such model, or keeps it from you.\n"
            "Log in with `hf auth login` if it is gated."
        ) from None
    except Exception as error:  # its class depends on the HTTP library that huggingface_hub has chosen
        raise ValueError(
            f"{name!r}: no folder, not in the cache, and the Hub can't be reached ({type(error).__name__}).\n"
            f"Fetch it where there is a network (hf download {name}) and give its folder instead."
        ) from None


def is_coldstart(path: str) -> bool:
    """Whether a model comes from a cold start: the shipped one, a cold start's folder, or one of its checkpoints."""
    if path in SHIPPED or Path(path).name in SHIPPED:
        return Path(path).name == "tiny-coldstart"
    folder = Path(path).expanduser().absolute()
    for place in (folder, *folder.parents[:2]):
        if (place / "checkpoints").is_dir() and (place / "config.json").is_file():
            return "sft" in read_json(place / "config.json", dict[str, Any])
    return False


def is_adapter(path: str) -> bool:
    """Whether a folder holds a LoRA adapter that peft saved, and no model."""
    folder = Path(path).expanduser()
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(path: str, timeout_s: float = 10.0) -> str:
    """What `from_pretrained` takes of the model that an adapter was trained on. Raises `ValueError`."""
    folder = Path(path).expanduser()
    base = base_named(str(folder))
    try:
        name = model_path(base, "base_model_name_or_path")
        if not Path(name).is_dir() and not is_cached(name):
            _check_hub(name, timeout_s)
    except ValueError:
        raise ValueError(
            f"{path}: its base model {base!r} is not here.\n"
            f"Write where it is into {folder / CONFIG}, as base_model_name_or_path."
        ) from None
    return name


def merge_adapter(path: str, folder: str) -> str:
    """Writes the model that a LoRA adapter (a folder that peft saved) makes of its base into `folder`; returns that.

    Raises `ValueError` where a tensor of the adapter is not used. See `adapters.merge`.
    """
    merge(str(Path(path).expanduser()), base_of(path), folder)
    return folder
