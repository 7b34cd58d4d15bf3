"""A Qwen2.5-VL from scratch, small enough to learn on two CPU cores, in the ordinary Hugging Face format.

Its tokenizer knows the games' own text: every paragraph of their prompts is one token, and so is every cell of a board
with the separator that follows it. So a prompt costs 14 tokens beside the picture, and a described board one a cell.
All else falls back on bytes: any text is encoded and comes back as it was.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from envs import Codec, Task
from envs.teacher import PHRASES
from g1_ray.models.chat import Chat
from g1_ray.models.weights import save_model

_NAMES = "endoftext im_start im_end vision_start vision_end vision_pad image_pad video_pad"
SPECIAL = tuple(f"<|{name}|>" for name in _NAMES.split())
_FRAME = ("system\nYou are a helpful assistant.", "user\n", "assistant\n", "\n", " ")
_TAGS = ("<perception>\n", "</perception>\n<think>\n", "\n</think>\n<answer>", "</answer>")
MAX_PIXELS = 1 << 20
"""No board smaller than 36x36 cells of 28 pixels is resized."""

TASKS = tuple(
    Task.make(game, reasoning=reasoning, perception={"tile_px": 28, **look})
    for game, look, settings in (
        ("2048", {"tiles": "numbers"}, [{"size": size} for size in (3, 4, 5)]),
        ("shisen", {}, [{"rows": rows, "cols": cols} for rows, cols in ((3, 4), (4, 4), (6, 6))]),
        ("shisen-photos", {}, [{"rows": rows, "cols": cols} for rows, cols in ((3, 4), (4, 4), (6, 6))]),
        ("swap", {}, [{"rows": side, "cols": side, "kinds": kinds} for side, kinds in ((5, 4), (6, 6), (8, 12))]),
    )
    for reasoning in settings
)
"""What the tokenizer knows. A visual token is a cell of 28 pixels."""
PAPER_TASKS = tuple(
    Task.make(game, preset=preset, perception={"tile_px": 28})
    for game, preset in (("2048", "paper"), ("shisen", "paper"), ("shisen-photos", "procedural"), ("swap", "paper"))
)
"""The paper's own boards: another tokenizer knows these."""
PAPER_TEXT = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 3, 12]}}
"""Options of the text model for them. Like tiles are some hundred tokens apart in what is told of such a board: for
that half of the frequencies hardly turn over this distance. Rows and columns need the fast ones.
"""

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text()
"""What Qwen2.5-VL's own template makes of the same messages."""


def prompt_pieces(task: Task) -> list[str]:
    """The two paragraphs of a task's prompt, and their parts between what differs between tasks: sizes and kinds."""
    codec = Codec(task)
    text = codec.prompt()
    rules, blank, rest = text.partition("\n\n")
    kinds = ", ".join(codec.listed)
    used = ", ".join(codec.names[1 : task.new_game().num_kinds + 1])
    cut = rf"({re.escape(kinds)}|{re.escape(used)}|[0-9]+x[0-9]+|[0-9]+(?= lines| cells| matches))"
    return [rules, blank + rest, *filter(None, re.split(cut, text))]


def answer_pieces(task: Task) -> list[str]:
    """The cells of a board, each with the separator after it, and the moves."""
    codec = Codec(task)
    cells = [name + after for name in codec.names for after in ("", " ", " | ", "\n")]
    if codec.actions.num <= 8:
        return cells + [codec.actions.write(action) for action in range(codec.actions.num)]
    places = [f"({row}, {col})" for row in range(codec.rows) for col in range(codec.cols)]
    return cells + places + [f"{place} " for place in places]


def make_tokenizer(tasks: Sequence[Task], phrases: Iterable[str] = PHRASES) -> PreTrainedTokenizerFast:
    """Knows the text of `tasks` and `phrases`: a text becomes the fewest pieces that make it up, the rest bytes."""
    known = itertools.chain(
        _FRAME, _TAGS, *(prompt_pieces(task) for task in tasks), *(answer_pieces(task) for task in tasks), phrases
    )
    pieces = list(dict.fromkeys(known))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = [(piece, -1.0) for piece in (*SPECIAL, "<unk>", *pieces)] + [(byte, -100.0) for byte in bytes_]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=len(SPECIAL), byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_config(
    vocab_size: int, ids: Mapping[str, int], text: Mapping[str, Any], vision: Mapping[str, Any]
) -> Qwen2_5_VLConfig:
    """The shape of the model, tiny.json; `text` and `vision` replace options of its parts.

    Rotary frequencies are for positions up to some hundred, as short as its contexts are.
    """
    shape = json.loads((Path(__file__).parent / "tiny.json").read_text())
    ends = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    shape["text_config"] |= {"vocab_size": vocab_size, **ends, **text}
    shape["vision_config"] |= {"out_hidden_size": shape["text_config"]["hidden_size"], **vision}
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start",
             "vision_end_token_id": "vision_end"}  # fmt: skip
    return Qwen2_5_VLConfig(**shape, **{key: ids[f"<|{name}|>"] for key, name in names.items()})


def make_tiny(
    out: str | Path,
    tasks: Sequence[Task],
    seed: int,
    phrases: Iterable[str] = PHRASES,
    *,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> None:
    """Writes an untrained model, its tokenizer and its processor to the folder `out`.

    `text` and `vision` are as in `tiny_config`; a large one is made on a GPU, and stored in half precision.
    """
    tokenizer = make_tokenizer(tasks, phrases)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(tiny_config(len(tokenizer), ids, text or {}, vision or {}))
    model = model.to(getattr(torch, dtype))
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    bounds = {"min_pixels": 28 * 28, "max_pixels": MAX_PIXELS}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**bounds),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**bounds),
        chat_template=CHAT_TEMPLATE,
    )
    save_model(model, processor, out)


def ship(model: PreTrainedModel, chat: Chat, out: Path) -> None:
    """Writes a model with its weights rounded to float16, half as large on disk; it loads as float32 everywhere."""
    save_model(model, chat.processor, out)
    weights = load_file(out / "model.safetensors")
    rounded = {name: weight.half() for name, weight in weights.items()}
    save_file(rounded, out / "model.safetensors", metadata={"format": "pt"})
