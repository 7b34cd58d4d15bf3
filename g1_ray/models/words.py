"""The words of prompts about games and of answers to them, as token ids: all that who plays the games has to know.

A `Chat` makes them with the model's own processor, and with it transformers and torch: seconds and most of a gigabyte a
process. `Phrases` are what it has made of some tasks, to be handed to processes that have neither.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from envs import State, Task
from envs.codec import TAG
from g1_ray.types import Ints, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Words(ABC):
    """Prompts are put together from phrases that are tokenised once a task; answers stay the ids that were sampled."""

    core: "Tokenizer | PreTrainedTokenizerBase"
    """What tokenises: that of the Rust library where the model's is one."""
    eos_token_id: int
    """The token that ends an answer."""
    opened: str
    """The `<think>` that the template writes at the end of a prompt, where the answer begins; '' for most."""

    @abstractmethod
    def head(self, task: Task) -> Ints:
        """What stands before the first answer, what the template opens included."""

    @abstractmethod
    def following(self, task: Task) -> Ints:
        """From the end token of an answer to the start of the next one."""

    def prompt(self, history: Sequence[tuple[State, Ints | None]]) -> Prompt:
        """The prompt for the last state of a history; the turns before it are states with the completions [C] given.

        The rules stand with the first picture, so any tail of a history makes a whole prompt.
        """
        parts = [self.head(history[0][0].task)]
        for _, completion in history[:-1]:
            if completion is None:
                raise ValueError("only the last turn of a history has no completion")
            following = self.following(history[0][0].task)
            ended = len(completion) > 0 and completion[-1] == self.eos_token_id
            parts += [completion, following[1:] if ended else following]
        return Prompt(np.concatenate(parts).astype(np.int32), tuple(state for state, _ in history))

    def ids(self, text: str) -> Ints:
        """Text as tokens, nothing added."""
        if isinstance(self.core, Tokenizer):
            return np.asarray(self.core.encode(text, add_special_tokens=False).ids, np.int32)
        return np.asarray(self.core(text, add_special_tokens=False)["input_ids"], np.int32)

    def decode(self, token_ids: Ints, begun: str = "") -> str:
        """The words of an answer, without special tokens, after those that it was `begun` with.

        A `<think>` that the template opens comes first, but where an answer opens its own, as those of a cold start do.
        """
        text: str = begun + self.core.decode(token_ids.tolist(), skip_special_tokens=True)
        if self.opened and not any(tag[2].lower() == "think" and not tag[1] for tag in TAG.finditer(text)):
            return self.opened + text
        return text


def core_of(tokenizer: Any) -> "Tokenizer | PreTrainedTokenizerBase":
    """What a tokenizer of transformers has for its core, set as it sets it for a text; itself, if it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        its: PreTrainedTokenizerBase = tokenizer
        return its
    core = Tokenizer.from_str(backend.to_str())
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = False  # i.e. "<|im_end|>" in a text is that token
    return core


@dataclass(frozen=True)
class Phrases(Words):
    """The words of some tasks, with all that it takes to put prompts together; may be sent to other processes."""

    core: "Tokenizer | PreTrainedTokenizerBase"
    eos_token_id: int
    opened: str
    heads: Mapping[Task, Ints]
    followings: Mapping[Task, Ints]
    """Empty where answers are to single turns."""

    def head(self, task: Task) -> Ints:
        return self.heads[task]

    def following(self, task: Task) -> Ints:
        return self.followings[task]
