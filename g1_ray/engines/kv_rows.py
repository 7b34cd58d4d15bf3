"""The answers that the transformers engine has in flight: rows of token columns, and their keys and values."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g1_ray.seeds import seed_of
from g1_ray.types import Completion, Floats, Ints, Request, Sampling


@dataclass(eq=False)
class Answering:
    """A request on its way."""

    request: Request
    sampling: Sampling
    done: asyncio.Future[tuple[Completion, ...]]
    answers: dict[int, Completion] = field(default_factory=dict)
    pieces: "asyncio.Queue[Ints | Completion] | None" = None
    """Where its answer goes as it grows, if it is streamed."""
    given_up: bool = False
    """Whether nobody waits for it any more."""


class RowCache:
    """Keys and values of answers in flight: rows that each have a length of their own. What a decoder layer calls.

    Layer l holds [rows, heads, tokens, head size], with room to spare; `lengths` [rows] counts the tokens in it.
    """

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.lengths = torch.zeros(0, dtype=torch.long)
        self._rows = torch.zeros(0, dtype=torch.long)
        self._span = 0

    def reserve(self, layers: Sequence[Any], rows: int, tokens: int) -> None:
        """Makes room for `rows` x `tokens`, shaped as the `layers` of a prefill cache are; keeps what is held."""
        if not self.keys:
            empty = [layer.keys.new_zeros((0, layer.keys.shape[1], 0, layer.keys.shape[3])) for layer in layers]
            self.keys, self.values = empty, list(empty)
        have = self.keys[0].shape
        if rows <= have[0] and tokens <= have[2]:
            return
        rows, tokens = (-(-size // 64) * 64 for size in (max(rows, have[0]), max(tokens, have[2])))
        size = (rows, have[1], tokens, have[3])
        for held in (self.keys, self.values):
            for i, old in enumerate(held):
                held[i] = old.new_zeros(size)
                held[i][: have[0], :, : have[2]] = old
        self.lengths = self.lengths.to(self.keys[0].device)

    def add(self, layers: Sequence[Any], which: int, copies: int) -> None:
        """Appends `copies` rows with what a prefill cache holds for its item `which`."""
        start, tokens = len(self.lengths), layers[0].keys.shape[2]
        for held, name in ((self.keys, "keys"), (self.values, "values")):
            for buffer, layer in zip(held, layers, strict=True):
                buffer[start : start + copies, :, :tokens] = getattr(layer, name)[which]
        self.lengths = torch.cat([self.lengths, self.lengths.new_full((copies,), tokens)])

    def keep(self, rows: NDArray[np.int64], holes: NDArray[np.int64], movers: NDArray[np.int64]) -> None:
        """Rows `movers` take the places of `holes`; what stands behind the first len(rows) rows is dropped."""
        to, source = (torch.from_numpy(array).to(self.lengths.device) for array in (holes, movers))
        if len(holes):
            for buffer in (*self.keys, *self.values):
                buffer[to, :, : self._span] = buffer[source, :, : self._span]
        self.lengths = self.lengths[torch.from_numpy(rows).to(self.lengths.device)]

    def begin(self) -> torch.Tensor:
        """Before a step: the attention mask [rows, 1, 1, tokens] of the token that every row appends."""
        self._rows = torch.arange(len(self.lengths), device=self.lengths.device)
        self._span = int(self.lengths.max()) + 1
        return (torch.arange(self._span, device=self.lengths.device) <= self.lengths[:, None])[:, None, None]

    def end(self) -> None:
        """After a step."""
        self.lengths += 1

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values [rows, heads, 1, head size] of a layer; what it holds, up to the longest row."""
        for held, new in ((self.keys, keys), (self.values, values)):
            held[layer][self._rows, :, self.lengths] = new[:, :, 0]
        rows = len(self._rows)
        return self.keys[layer][:rows, :, : self._span], self.values[layer][:rows, :, : self._span]

    def get_seq_length(self, *_: Any) -> int:
        """Of the longest row."""
        return self._span


_COLUMNS: dict[str, Any] = {
    "job": object,  # the request that the row answers
    "index": np.int64,  # which of its answers
    "position": np.int64,  # rotary position of the next token
    "count": np.int64,  # tokens sampled so far
    "limit": np.int64,  # most of them
    "temperature": np.float32,
    "top_p": np.float32,
}


class Rows:
    """The answers in flight, column by column: row i of every array and of the KV cache is one answer."""

    def __init__(self) -> None:
        self.cache = RowCache()
        self.columns = {name: np.empty(0, dtype) for name, dtype in _COLUMNS.items()}
        self.uniform = np.empty((0, 0))
        """[rows, tokens] what each token is drawn with: a stream of its own for each answer."""
        self.tokens = np.empty((0, 0), np.int32)
        self.logprobs = np.empty((0, 0), np.float32)
        self.versions = np.empty((0, 0), np.int32)

    def __len__(self) -> int:
        return len(self.columns["count"])

    def add(self, job: Answering, prompt: int, position: int, max_model_len: int) -> None:
        """Appends rows for the answers of a job whose prompt of `prompt` tokens is in the cache."""
        n, sampling = job.request.num_answers, job.sampling
        limit = min(sampling.max_tokens, max_model_len - prompt)
        new = (job, np.arange(n), position, 0, limit, sampling.temperature, sampling.top_p)
        for (name, dtype), value in zip(_COLUMNS.items(), new, strict=True):
            self.columns[name] = np.concatenate([self.columns[name], np.full(n, value, dtype)])
        width = max(limit, self.tokens.shape[1])
        for name in ("uniform", "tokens", "logprobs", "versions"):
            old = getattr(self, name)
            grown = np.zeros((len(old) + n, width), old.dtype)
            grown[: len(old), : old.shape[1]] = old
            setattr(self, name, grown)
        for i in range(n):
            rng = np.random.Generator(np.random.Philox(seed_of("answer", job.request.seed, i)))
            self.uniform[len(self) - n + i, :limit] = rng.random(limit)

    def append(self, rows: NDArray[np.int64], tokens: NDArray[np.int64], logprobs: Floats, version: int) -> None:
        """Appends a token to each of `rows`."""
        count = self.columns["count"][rows]
        self.tokens[rows, count] = tokens
        self.logprobs[rows, count] = logprobs
        self.versions[rows, count] = version
        self.columns["count"][rows] += 1

    def completion(self, row: int, eos: int) -> Completion:
        """The answer in a row, as it stands."""
        count = int(self.columns["count"][row])
        tokens, logprobs = self.tokens[row, :count].copy(), self.logprobs[row, :count].copy()
        reason = "stop" if tokens[-1] == eos else "length"
        return Completion(tokens, logprobs, self.versions[row, :count].copy(), reason)

    def drop(self, rows: NDArray[np.int64]) -> None:
        """Drops rows; the last ones take their places."""
        left = len(self) - len(rows)
        gone = np.zeros(len(self), np.bool_)
        gone[rows] = True
        holes = np.flatnonzero(gone[:left])
        movers = left + np.flatnonzero(~gone[left:])
        order = np.arange(left)
        order[holes] = movers
        self.cache.keep(order, holes, movers)
        for name, column in self.columns.items():
            self.columns[name] = column[order]
        for name in ("uniform", "tokens", "logprobs", "versions"):
            setattr(self, name, getattr(self, name)[order])
