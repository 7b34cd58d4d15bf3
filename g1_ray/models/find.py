"""Which model a name means: one that ships, a folder, a run's newest checkpoint, an adapter, a Hugging Face name."""

import re
from pathlib import Path

from envs.options import nearest
from g1_ray.files import steps_in

MODELS = Path(__file__).parent
SHIPPED = ("tiny-base", "tiny-coldstart")
"""Models that come with g1_ray, in this folder."""


def model_path(path: str, key: str = "model.path") -> str:
    """What `from_pretrained` takes: the folder of a shipped model, another folder, or a Hugging Face name as it is.

    A run's folder stands for its newest checkpoint. Raises `ValueError` that names the key where a folder is no model.
    `check_model` finds out if a name can be had.
    """
    folder = MODELS / path if path in SHIPPED else Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        if not (steps := steps_in(folder / "checkpoints")):
            raise ValueError(f"{key} = {path!r}: that run has no checkpoint yet")
        folder = steps[-1]
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            inside = sorted(str(file.parent) for file in folder.glob("*/config.json"))
            raise ValueError(
                f"{key} = {path!r}: no config.json in that folder" + (nearest(path, inside) if inside else "")
            )
        return str(folder)
    if path not in SHIPPED and re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not path.startswith("."):
        return path
    hint = nearest(path, SHIPPED)
    raise ValueError(f"{key} = {path!r}: no such folder{hint}, or a name such as Qwen/Qwen2.5-VL-3B-Instruct")


def check_model(path: str, key: str = "model.path", timeout_s: float = 10.0) -> None:
    """Raises `ValueError` where a Hugging Face name is neither in the cache nor to be had from the Hub."""
    name = model_path(path, key)
    if Path(name).is_dir():
        return
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str) and any(Path(cached).parent.glob("*.safetensors")):
        return
    try:
        HfApi().model_info(name, timeout=timeout_s)
    except RepositoryNotFoundError:
        raise ValueError(
            f"{key} = {name!r}: no folder, and the Hub has no such model, or keeps it from you.\n"
            "Log in with `hf auth login` if it is gated."
        ) from None
    except Exception as error:  # its class depends on the HTTP library that huggingface_hub has chosen
        raise ValueError(
            f"{key} = {name!r}: no folder, not in the cache, and the Hub can't be reached ({type(error).__name__}).\n"
            f"Fetch it where there is a network (hf download {name}) and give the folder as {key}."
        ) from None


def is_adapter(path: str) -> bool:
    """Whether a folder holds a LoRA adapter that peft saved, and no model."""
    folder = Path(path).expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def merge_adapter(path: str, folder: str) -> str:
    """Writes the model that a LoRA adapter (a folder that peft saved) makes of its base into `folder`; returns that."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = model_path(PeftConfig.from_pretrained(path).base_model_name_or_path, f"the base of {path}")
    model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, path).merge_and_unload().save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    return folder
