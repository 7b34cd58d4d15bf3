"""Lists of tiles, until two are alike: what a model from scratch learns on them it takes along to boards.

    left cat (0, 1) ship (3, 2) cat same (5, 5) (0, 1) top ...

That a word was said before is noticed by an induction head (arXiv 2209.11895). It comes of itself only where texts
repeat themselves a lot; answers about a board do so once. So a model learns to tell boards and the tiles of their
sides, and still not that two of them are alike.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from envs import Codec, Task
from envs.teacher import place
from g1_ray.models.chat import Chat
from g1_ray.models.weights import load_model, save_model
from g1_ray.seeds import seed_of

SAME = "same"
SIDES = ("left", "top", "right", "bottom")
LENGTH, BATCH = 40, 64
"""Tokens of a text, texts of a step."""
LR, WARMUP, BETAS = 2e-3, 40, (0.9, 0.98)


def lists(task: Task, num: int, rng: np.random.Generator) -> list[str]:
    """So many texts, each of several lists one after the other, with the words of a task's teacher."""
    codec = Codec(task)
    return [" ".join(_lists(codec, rng)) + " " for _ in range(num)]


def _lists(codec: Codec, rng: np.random.Generator) -> list[str]:
    words: list[str] = []
    kinds = rng.permutation(codec.names[1:])[: int(rng.integers(4, 20))]  # of few kinds two are soon alike
    while len(words) < LENGTH:
        words.append(str(rng.choice(SIDES)))
        told: dict[str, str] = {}
        for _ in range(int(rng.integers(2, 7))):
            kind, where = str(rng.choice(kinds)), place(int(rng.integers(codec.rows * codec.cols)), codec.cols)
            if kind in told:
                words += [kind, SAME, where, told[kind]]
                break
            words += [kind, where]
            told[kind] = where
    return words


def drill(folder: str, tasks: Sequence[Task], steps: int, seed: int, tell: Callable[[str], None] = print) -> float:
    """Trains the model in a folder on lists with the words of `tasks`, and writes it back.

    Returns how sure it is, in the mean, of new lists' like tiles: a probability.
    """
    model, chat = load_model(folder, dtype=torch.float32).train(), Chat(folder)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=BETAS)

    def logits(ids: torch.Tensor, first: int) -> torch.Tensor:
        """Of texts [B, L] that stand behind so many other tokens: [B, L - 1, vocabulary]."""
        positions = (torch.arange(ids.shape[1]) + first).expand(3, *ids.shape)
        hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        scores: torch.Tensor = model.lm_head(hidden[:, :-1])
        return scores

    for step in range(steps):
        rng = np.random.default_rng(seed_of("drill", seed, step))
        ids = torch.from_numpy(_tokens(chat.tokenizer, lists(tasks[step % len(tasks)], BATCH, rng)))
        loss = torch.nn.functional.cross_entropy(logits(ids, int(rng.integers(60))).flatten(0, 1), ids[:, 1:].flatten())
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARMUP)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    sure = _sure(chat, logits, tasks, np.random.default_rng(seed_of("drill", seed, "held back")))
    save_model(model.eval(), chat.processor, folder)
    tell(f"{steps} steps on lists of tiles: where two are alike, this is said with a probability of {sure:.2f}")
    return sure


@torch.no_grad()
def _sure(
    chat: Chat, logits: Callable[[torch.Tensor, int], torch.Tensor], tasks: Sequence[Task], rng: np.random.Generator
) -> float:
    ids = torch.from_numpy(_tokens(chat.tokenizer, [text for task in tasks for text in lists(task, BATCH, rng)]))
    (same,) = chat.tokenizer(SAME + " ", add_special_tokens=False)["input_ids"]
    return float(logits(ids, 0).softmax(-1)[..., same][ids[:, 1:] == same].mean())


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> NDArray[np.int64]:
    """[texts, LENGTH]"""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return np.array([its[:LENGTH] for its in ids], np.int64)
