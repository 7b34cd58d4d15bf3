"""Supervised fine-tuning of a VLM of the Qwen2-VL family on a teacher's answers: loss on their tokens only.

Every step takes a share of its batch from each game, each in one forward pass: there prompts are the same and pictures
are of one size. Which examples a step takes depends on the seed and the step alone, so a resumed run goes on as if it
had never stopped. One process, on a GPU where there is one.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from envs import State, Task
from g1_ray.coldstart.config import SftConfig
from g1_ray.coldstart.examples import Example
from g1_ray.engines.weight_sync import SIGHT
from g1_ray.files import Journal, read_json, read_lines, set_aside, take_back, write_json
from g1_ray.learner.attention import CHUNKS
from g1_ray.models.card import Card
from g1_ray.models.chat import Chat
from g1_ray.models.weights import load_model, save_model, vision_tower
from g1_ray.runs.checkpoints import newest, published
from g1_ray.runs.curves import save_curves
from g1_ray.runs.progress import Count
from g1_ray.runs.shapes import Step
from g1_ray.seeds import seed_of
from g1_ray.types import Ints

log = logging.getLogger(__name__)
LOOKED = 0.02
"""Nats a token. Answers that describe a board are less likely beside another one by 0.1 and more."""
OPTIMIZER = "optimizer.safetensors"
TRAINER = "trainer.json"


@dataclass(frozen=True)
class Lot:
    """The examples of one task, ready for a model."""

    task: Task
    prompt: Ints
    """[P] the same for all, pads expanded."""
    answers: list[Ints]
    """[C] each, end token included."""
    states: list[State]
    share: float
    """Of every batch."""


def make_lot(chat: Chat, examples: Sequence[Example], share: float) -> Lot:
    """The tokens of examples, all of one task."""
    task = examples[0].state.task
    if any(example.state.task != task for example in examples):
        raise ValueError(f"{examples[0].game}: examples of several tasks under one name; give each its own")
    texts = chat.tokenizer([example.answer for example in examples], add_special_tokens=False)["input_ids"]
    answers = [np.array([*ids, chat.eos_token_id], np.int32) for ids in texts]
    states = [example.state for example in examples]
    return Lot(task, chat.prompt([(states[0], None)]).token_ids, answers, states, share)


class Trainer:
    """A model in training: weights, optimizer and the number of steps made; `card` goes with what is saved."""

    def __init__(self, path: str | Path, config: SftConfig, steps: int, seed: int, card: Card | None = None) -> None:
        self.chat = Chat(path)
        self.config, self.steps, self.seed, self.card = config, steps, seed, card
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(str(path), dtype=torch.float32).to(self.device).train()
        tower = vision_tower(self.model)
        if tower is not None:
            tower.config._attn_implementation = CHUNKS
            tower.requires_grad_(not config.freeze_vision)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        of = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=of.lr, betas=of.betas, weight_decay=of.weight_decay, fused=True
        )
        self.step = 0
        self._positions: dict[tuple[Task, int], torch.Tensor] = {}

    def lr(self, step: int) -> float:
        """The learning rate of a step: up linearly, then down along a cosine."""
        of, floor = self.config.optimizer, self.config.final_lr
        if step < of.warmup_steps:
            return of.lr * (step + 1) / of.warmup_steps
        along = (step - of.warmup_steps) / max(1, self.steps - of.warmup_steps)
        return of.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))

    def update(self, lots: Sequence[Lot]) -> dict[str, float]:
        """One optimizer step; returns its loss (nats a token), share of tokens foretold, gradient norm and tokens."""
        drawn = [(lot, self._indices(lot)) for lot in lots]
        tokens = sum(len(lot.answers[i]) for lot, indices in drawn for i in indices)
        loss, right = 0.0, 0
        for lot, indices in drawn:
            for at in range(0, len(indices), self.config.micro_batch):
                part, hits = self.loss(lot, indices[at : at + self.config.micro_batch])
                (part / tokens).backward()
                loss, right = loss + part.item() / tokens, right + hits
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.config.optimizer.max_grad_norm)
        lr = self.lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"loss": loss, "token_acc": right / tokens, "grad_norm": float(norm), "lr": lr, "tokens": tokens}

    def _indices(self, lot: Lot) -> list[int]:
        """The examples that this step takes from a lot: the next of an order that is drawn anew each time round."""
        num, size = max(1, round(self.config.batch_size * lot.share)), len(lot.answers)
        first, end = self.step * num, (self.step + 1) * num
        orders = [
            np.random.default_rng(seed_of("order", self.seed, lot.task.name, turn)).permutation(size)
            for turn in range(first // size, (end - 1) // size + 1)
        ]
        start = first % size
        return [int(index) for index in np.concatenate(orders)[start : start + num]]

    def loss(self, lot: Lot, indices: Sequence[int], shown: Sequence[State] | None = None) -> tuple[torch.Tensor, int]:
        """The summed cross entropy of the answers' tokens, and how many of them were the likeliest.

        `shown`: other pictures than the examples' own.
        """
        answers = [lot.answers[i] for i in indices]
        longest, prompt = max(map(len, answers)), len(lot.prompt)
        # Answers of other lengths are filled up at their end, where a causal model's earlier tokens don't see it.
        ids = np.zeros((len(answers), prompt + longest), np.int64)
        ids[:, :prompt] = lot.prompt
        wanted = np.zeros(ids.shape, np.bool_)
        for row, answer in enumerate(answers):
            ids[row, prompt : prompt + len(answer)] = answer
            wanted[row, prompt : prompt + len(answer)] = True
        pixels, grid = self.chat.pixel_values(shown or [lot.states[i] for i in indices])
        tokens, labels = torch.from_numpy(ids).to(self.device), torch.from_numpy(wanted[:, 1:]).to(self.device)
        grids = torch.from_numpy(grid).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
            hidden = self.model.model(
                input_ids=tokens,
                position_ids=self._position_ids(lot, tokens, grids[:1]),
                pixel_values=torch.from_numpy(pixels).to(self.device),
                image_grid_thw=grids,
                use_cache=False,
            ).last_hidden_state
            logits = self.model.lm_head(hidden[:, :-1][labels])
        target = tokens[:, 1:][labels]
        return torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum"), int(
            (logits.argmax(-1) == target).sum()
        )

    @torch.no_grad()
    def check_sight(self, lot: Lot) -> None:
        """Raises `ValueError` where no answer is the likelier or the less likely for the picture it is about."""
        indices = range(min(8, len(lot.states)))
        looks = replace(lot.task.perception, blank=1)
        blank = [State(replace(lot.task, perception=looks), lot.states[i].data) for i in indices]
        pairs = [(self.loss(lot, [i])[0], self.loss(lot, [i], [blank[i]])[0]) for i in indices]
        moved = max(abs(float(own - other)) / len(lot.answers[i]) for i, (own, other) in enumerate(pairs))
        if moved <= SIGHT:
            raise ValueError(
                f"{lot.task.name}: answers are as likely with a blank picture as with the board's ({moved:.1g} nats a "
                "token apart): the pictures are blank, or don't reach the model.\nLook at the game's perception "
                "(blank = 0), and at the image processor and the chat template in the model's folder."
            )

    @torch.no_grad()
    def sight(self, lot: Lot) -> float:
        """What the pictures are worth: the loss with another example's picture, less that with their own, nats a token.

        Of the first examples; 0 where the answers were learned without looking.
        """
        indices = list(range(min(self.config.micro_batch, len(lot.states))))
        others = [lot.states[(i + 1) % len(lot.states)] for i in indices]
        tokens = sum(len(lot.answers[i]) for i in indices)
        return float(self.loss(lot, indices, others)[0] - self.loss(lot, indices)[0]) / tokens

    @property
    def _mixed(self) -> bool:
        return self.device.type == "cuda" and self.config.dtype == "bfloat16"

    def _position_ids(self, lot: Lot, tokens: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """[3, batch, length] the same for every row, and worked out once: the model does it token by token."""
        key = lot.task, tokens.shape[1]
        if key not in self._positions:
            row = tokens[:1]
            kinds = (row == self.chat.image_token_id).long()
            self._positions[key] = self.model.model.get_rope_index(row, image_grid_thw=grid, mm_token_type_ids=kinds)[0]
        return self._positions[key].expand(-1, len(tokens), -1)

    def save(self, folder: Path) -> None:
        """Writes the model in the Hugging Face format, with what training needs to go on: whole, or not at all."""
        moments = {
            f"{name}.{kind}": state[kind].contiguous()
            for name, weight in self.weights.items()
            if (state := self.optimizer.state.get(weight))
            for kind in ("step", "exp_avg", "exp_avg_sq")
        }
        with published(folder) as beside:
            save_model(self.model, self.chat.processor, beside)
            save_file(moments, beside / OPTIMIZER)
            write_json(beside / TRAINER, {"step": self.step, "steps": self.steps, "seed": self.seed})
            if self.card:
                self.card.write(beside, self.reached)

    @property
    def reached(self) -> str:
        """How far it is, in words."""
        return f"step {self.step} of {self.steps}"

    def resume(self, folder: Path) -> None:
        """Goes on from what `save` wrote; the weights are loaded by giving `folder` as the model's path."""
        told = read_json(folder / TRAINER, _Reached)
        if told["seed"] != self.seed:
            raise ValueError(f"{folder}: was trained with seed {told['seed']}, not {self.seed}")
        moments = load_file(folder / OPTIMIZER)
        for name, weight in self.weights.items():
            self.optimizer.state[weight] = {
                kind: moments[f"{name}.{kind}"].to(weight.device) for kind in ("step", "exp_avg", "exp_avg_sq")
            }
        self.step = told["step"]


def fit(trainer: Trainer, lots: Sequence[Lot], out: Path, show: Callable[[str], None] = print) -> dict[str, float]:
    """Trains to the last step; returns the last metrics.

    Writes a line in out/metrics.jsonl for each, checkpoints in out/checkpoints, and at the end out/curves.png. A run
    that goes on drops the lines after its checkpoint. Says so where answers don't depend on the pictures at the end.
    Raises `ValueError` where they can't.
    """
    for lot in lots:
        trainer.check_sight(lot)
    journal = Journal(out / "metrics.jsonl")
    all_lines = read_lines(journal.path, Step)
    lines = all_lines[: trainer.step]
    take_back(journal.path, lines, all_lines[trainer.step :], out / "taken-back")
    metrics: dict[str, float] = lines[-1] if lines else {}
    config, started = trainer.config, time.monotonic()
    with contextlib.closing(journal), Count("steps", trainer.steps, trainer.step) as count:
        while trainer.step < trainer.steps:
            metrics = trainer.update(lots)
            if not math.isfinite(metrics["loss"]):
                raise FloatingPointError(f"step {trainer.step}: the loss is {metrics['loss']}")
            passed = time.monotonic() - started
            metrics = {"step": trainer.step, **metrics, "seconds": round(passed, 2)}
            due = trainer.step % config.log_every == 0 or trainer.step == trainer.steps
            told = f"loss {metrics['loss']:.4f}, tokens right {metrics['token_acc']:.3f}" if due else ""
            count(trainer.step, told)
            if trainer.step == trainer.steps:
                metrics["sight"] = _told_sight(trainer, lots, show)
            journal.append({name: value if math.isfinite(value) else None for name, value in metrics.items()})
            if config.checkpoint_every and trainer.step % config.checkpoint_every == 0:
                trainer.save(out / "checkpoints" / f"step-{trainer.step}")
    trainer.save(out / "checkpoints" / f"step-{trainer.step}")
    save_curves(out)
    return metrics


def _told_sight(trainer: Trainer, lots: Sequence[Lot], show: Callable[[str], None]) -> float:
    """That of the game that is looked at least; loud where it is next to nothing."""
    sights = [trainer.sight(lot) for lot in lots]
    for lot, sight in zip(lots, sights, strict=True):
        if sight < LOOKED:
            show(
                f"WARNING: {lot.task.name} was learned without looking: answers are as likely beside another board's "
                f"picture ({sight:.2g} nats a token apart). Train longer, or see if pictures and answers are a pair"
            )
    return min(sights)


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a run that is intact, if it has one; newer ones that are broken are put aside, and told.

    Raises `ValueError` where all are broken.
    """
    found, broken = newest(out / "checkpoints")
    if broken and found is None:
        raise ValueError(
            f"{out}: no checkpoint is intact to go on from.\n{next(iter(broken.values()))}\n"
            f"Restore that file, or start anew under another name: name={out.name}-2"
        )
    for path, fault in broken.items():
        log.warning("%s; it is kept as %s", fault, set_aside(path).name)
    return found


class _Reached(BaseModel):
    """What `TRAINER` has."""

    step: int
    steps: int
    seed: int
