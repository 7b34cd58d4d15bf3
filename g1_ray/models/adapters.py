"""LoRA adapters: new ones, and those in peft's format, put into the model that they fit: every tensor, or an error."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g1_ray.files import read_json
from g1_ray.models.weights import counted, load_model, save_model, shapes_in, vision_tower

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.nn import Parameter
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"
"""What peft calls the one adapter there is in a model."""
_PREFIX = "base_model.model."


# New ones


def inject(model: "PreTrainedModel", rank: int, alpha: float, targets: Sequence[str]) -> "PreTrainedModel":
    """The model with an adapter, which changes nothing yet, on linear layers of its language model.

    `targets`: the last parts of their names. Raises `ValueError` where none is there.
    """
    from peft import LoraConfig, inject_adapter_in_model

    tower = vision_tower(model)
    seeing = set(tower.modules()) if tower is not None else set()
    names = [
        name for name, module in model.named_modules() if name.rpartition(".")[2] in targets and module not in seeing
    ]
    if not names:
        raise ValueError(f"model.lora.targets: none of {', '.join(targets)} is in {model.name_or_path}")
    made: PreTrainedModel = inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), model, adapter_name=ADAPTER
    )
    return made


def adapter_of(model: "PreTrainedModel") -> "dict[str, Parameter]":
    """The parameters of the adapter in a model, by their names in peft's files."""
    return {tensor_name(name): part for name, part in model.named_parameters() if ".lora_" in name}


def tensor_name(parameter: str) -> str:
    """What peft's files call a parameter of an adapter."""
    return _PREFIX + parameter.replace(f".{ADAPTER}.", ".")


def write_config(folder: Path, rank: int, alpha: float, modules: Sequence[str], base: str) -> None:
    """Writes what peft and vLLM read beside an adapter's tensors. `modules`: the names of those that it is for."""
    from peft import LoraConfig

    LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(modules),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(folder)


# Those in folders


def base_named(path: str) -> str:
    """The model that an adapter says it was trained on. Raises `ValueError` where it says none."""
    file = Path(path) / CONFIG
    base = read_json(file, dict[str, Any]).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(f"{file}: names no base model; write its folder or name there as base_model_name_or_path")
    return base


def check_adapter(path: str, base: str) -> None:
    """Raises `ValueError` where a tensor of an adapter has no place in its base model; reads no weights of that."""
    _put_in(load_model(base, device_map="meta"), path)


def merge(path: str, base: str, folder: str) -> None:
    """Writes the model that an adapter makes of its base into `folder`, in the base's dtype.

    It is added up in float32 and rounded once, so that the same folders always make the same model. Where the adapter
    trained an output layer of its own, that and the embedding are no longer one.
    """
    import torch
    from transformers import AutoConfig, AutoProcessor

    dtype = AutoConfig.from_pretrained(base).dtype or torch.float32
    model = _put_in(load_model(base, dtype=torch.float32), path).merge_and_unload()
    save_model(model.to(dtype), AutoProcessor.from_pretrained(base), folder)


def _put_in(model: "PreTrainedModel", path: str) -> "PeftModel":
    """The base model with the adapter around it. Raises `ValueError` where a tensor is not used, or is missing."""
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    on_meta = model.device.type == "meta"
    tensors = _tensors_of(model, path)
    try:
        wrapped = PeftModel(model, PeftConfig.from_pretrained(path), low_cpu_mem_usage=on_meta)
        result = set_peft_model_state_dict(wrapped, tensors, low_cpu_mem_usage=on_meta)
    except RuntimeError as error:
        found = re.search(r"size mismatch for (\S+):.*?(\[[\d, ]*\]).*?(\[[\d, ]*\])", str(error))
        what = f"{found[1]} is {found[2]}, and the base makes it {found[3]}" if found else str(error)[:200]
        raise ValueError(f"{path}: {what}.\nIts base, {model.name_or_path}, is not the one that it fits.") from error
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(
            f"{path}: peft can't put this adapter into {model.name_or_path}: {str(error).strip()[:300]}".splitlines()[0]
        ) from error
    missing = sorted(name for name in result.missing_keys if ".default" in name)
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{path}: {counted(missing, sorted(result.unexpected_keys))}.\n"
            f"It was trained on another model than {model.name_or_path}, or on parts with other names, such as "
            f"{next(name for name in wrapped.state_dict() if 'lora_' in name)}."
        )
    return wrapped


def _tensors_of(model: "PreTrainedModel", path: str) -> dict[str, Any]:
    """The tensors of an adapter's file, by the names that its modules have in this version of transformers.

    transformers renames what is in the file of a model (`model.layers` is `model.language_model.layers` since 4.52),
    and peft does not rename what is in an adapter's.
    """
    from safetensors.torch import load_file
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    file = Path(path) / WEIGHTS
    if not file.exists():
        if (pickle := file.with_suffix(".bin")).exists():
            raise ValueError(
                f"{pickle}: a pickle can hold any program, and is not opened. Where you trust it:\n"
                f"python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('{pickle.name}', "
                f"weights_only=True), '{WEIGHTS}')\""
            )
        raise ValueError(f"{path}: no {WEIGHTS} in that folder")
    shapes_in(file)
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    own = dict(model.named_parameters())

    def renamed(name: str) -> str:
        if not name.startswith(_PREFIX):
            return name
        inside: str = rename_source_key(name.removeprefix(_PREFIX), renamings, [], model.base_model_prefix, own)[0]
        return _PREFIX + inside

    tensors = {renamed(name): tensor for name, tensor in load_file(file).items()}
    if not tensors:
        raise ValueError(f"{file}: is empty")
    return tensors
