"""How a conversation about boards becomes token ids, and ids become words: the chat template of a model, applied once.

Text is tokenised once a task, completions stay the ids that were sampled, and pictures are computed from states, so
engine and learner can't see different prompts.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoProcessor

from envs import Codec, State, Task
from g1_ray.models.pixels import PixelValues
from g1_ray.models.template import templates
from g1_ray.models.weights import check_files, told
from g1_ray.models.words import Phrases, Words, core_of
from g1_ray.types import Ints, Picture, Prompt

SYSTEM = "You are a helpful assistant."
_ANSWER = "THOUGHT\n</think>\nANSWER"


class Chat(Words):
    """Prompts of one model. `path` is a folder or name that Hugging Face's `AutoProcessor` loads.

    Raises `ValueError` where it does not, or gives no processor of pictures and text.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        if Path(path).is_dir():
            check_files(Path(path), weights=False)
        with told(str(path)):
            self.processor = AutoProcessor.from_pretrained(path)
            self.tokenizer = self.processor.tokenizer
            self.image_processor = self.processor.image_processor
            self.image_token_id: int = self.processor.image_token_id
            self.core = core_of(self.tokenizer)
            if self.tokenizer.eos_token_id is None:
                raise ValueError("its tokenizer names no eos_token, which ends an answer")
            self.eos_token_id = int(self.tokenizer.eos_token_id)
        self._pixels: dict[Task, PixelValues] = {}

    @functools.cached_property
    def vision_token_ids(self) -> tuple[int, ...]:
        """Tokens that stand for pictures: a sampled one would make the next forward pass fail."""
        names = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
        vocabulary = self.tokenizer.get_vocab()
        return tuple(sorted(vocabulary[name] for name in names if name in vocabulary))

    def conversation(self, messages: Sequence[Any], pictures: Sequence[Picture]) -> Prompt:
        """The prompt for messages of any kind, as the chat template takes them, whose pictures stand in `pictures`.

        Raises `ValueError` where the template can't write them, or shows other pictures than there are.
        """
        ids = self.ids(self._render(list(messages)))
        places = np.flatnonzero(ids == self.image_token_id)
        if len(places) != len(pictures):
            raise ValueError(f"the chat template shows {len(places)} pictures, and {len(pictures)} were sent")
        repeats = np.ones(len(ids), np.int64)
        repeats[places] = [self.pads_of(picture) for picture in pictures]
        return Prompt(np.repeat(ids, repeats).astype(np.int32), (), tuple(pictures))

    def phrases(self, tasks: Iterable[Task], turns: int = 1) -> Phrases:
        """What prompts about some tasks are made of. Raises `ValueError` as `head` does, and `following` for turns."""
        tasks = list(tasks)
        heads, followings = {t: self.head(t) for t in tasks}, {t: self.following(t) for t in tasks if turns > 1}
        return Phrases(self.core, self.eos_token_id, self.opened, heads, followings)

    @functools.cached_property
    def opened(self) -> str:  # type: ignore[override]
        found = re.search(r"<think>\s*\Z", self._render([{"role": "user", "content": [{"type": "image"}]}]))
        return found[0] if found else ""

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a chat lives as long as its process
    def head(self, task: Task) -> Ints:
        """What stands before the first answer. Raises `ValueError` where a template doesn't show one picture."""
        return self._ids(self._render(_asked(task)), self.pads(task))

    @functools.lru_cache(maxsize=256)  # noqa: B019
    def following(self, task: Task) -> Ints:
        """From the end token of an answer to the start of the next one.

        Raises `ValueError` for a template that shows earlier turns otherwise than they were, as those do that leave
        out what was thought: it is for single turns.
        """
        again = {"role": "user", "content": [{"type": "image"}]}
        given = ("" if self.opened else "<think>\n") + _ANSWER
        answer = {"role": "assistant", "content": [{"type": "text", "text": self.opened + given}]}
        before, whole = self._render(_asked(task)) + given, self._render([*_asked(task), answer, again])
        if not whole.startswith(before):
            raise ValueError(
                f"{self.path}: the chat template shows earlier turns otherwise than they were, and a rollout of "
                "several turns is trained on as it was.\nUse rollout.turns=1 with this model."
            )
        return self._ids(whole[len(before) :], self.pads(task))

    def _render(self, messages: list[Any]) -> str:
        template = self.processor.chat_template
        template = template.get("default") if isinstance(template, dict) else template
        about = {"messages": messages, "add_generation_prompt": True, **self.tokenizer.special_tokens_map}
        try:
            return templates().render(template or "", {"tools": None, "documents": None, **about})
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.path}: the chat template can't write a turn with a picture ({str(error)[:200]}).\n"
                "Take chat_template.jinja from the model that this one was made of."
            ) from error

    def _ids(self, text: str, pads: int) -> Ints:
        """Of text with one picture in it."""
        ids = self.ids(text)
        if (shown := int((ids == self.image_token_id).sum())) != 1:
            raise ValueError(
                f"{self.path}: the chat template writes {shown} pictures into a turn that has one: the model would not "
                "see what it is asked about.\nTake a model whose template shows every picture of a user's turn."
            )
        return np.repeat(ids, np.where(ids == self.image_token_id, pads, 1))

    def pads(self, task: Task) -> int:
        """Visual tokens of a picture of the task."""
        pixels = self._pixels_of(task)
        return int(np.prod(pixels.grid_thw)) // int(self.image_processor.merge_size) ** 2

    def pads_of(self, shown: State | Picture) -> int:
        """Visual tokens of one picture."""
        if isinstance(shown, State):
            return self.pads(shown.task)
        return int(np.prod(self._processed(shown)[1])) // int(self.image_processor.merge_size) ** 2

    @functools.lru_cache(maxsize=64)  # noqa: B019 - of each picture first the size is asked for, then the values
    def _processed(self, picture: Picture) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Patches and their grid, as the model's own processor makes them."""
        pixels = np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3)
        made = self.image_processor(images=[pixels], return_tensors="np", input_data_format="channels_last")
        values = np.asarray(made["pixel_values"], np.float32)
        return values, tuple(int(size) for size in np.asarray(made["image_grid_thw"])[0])

    def _pixels_of(self, task: Task) -> PixelValues:
        if task not in self._pixels:
            self._pixels[task] = PixelValues(self.image_processor, task.renderer)
        return self._pixels[task]

    def pixel_values(self, shown: Sequence[State | Picture]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Pictures as the model takes them: [patches of all, features] and `grid_thw` [pictures, 3]."""
        arrays, grids = [], []
        for each in shown:
            if isinstance(each, State):
                game = each.game()
                made: tuple[NDArray[np.float32], tuple[int, ...]] = self._pixels_of(each.task)(
                    game.perception(), game.looks
                )
            else:
                made = self._processed(each)
            arrays.append(made[0])
            grids.append(made[1])
        return np.concatenate(arrays), np.array(grids, np.int64)

    def no_picture(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The smallest picture there is, of one visual token, with nothing in it: as `pixel_values` gives one."""
        its = self.image_processor
        features = 3 * its.temporal_patch_size * its.patch_size**2
        grid = np.array([[1, its.merge_size, its.merge_size]], np.int64)
        return np.zeros((its.merge_size**2, features), np.float32), grid


def _asked(task: Task) -> list[Any]:
    """The messages before the first answer."""
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": Codec(task).prompt()}]}
    return [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}, ask]
