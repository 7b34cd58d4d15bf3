"""Answers from a Hugging Face model, where vLLM can't be had: the same methods as `g1_ray.inference.VLLMEngine`.

    generate -> waiting -> prefill, once a request -> rows of the KV cache -> one token a step for every row -> answers

Requests join and leave between two steps, and weights are loaded between two steps, so what is in flight goes on under
the new policy, as it does in vLLM with `pause_generation(mode="keep")`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText

from g1_ray.chat import Chat
from g1_ray.config import EngineConfig
from g1_ray.inference import check_request
from g1_ray.seeds import seed_of
from g1_ray.types import Completion, Floats, Ints, Prompt, Request, Sampling
from g1_ray.weight_sync import SyncReport, check_names, check_version, unpack_weights

_PREFILL_TOKENS = 16384
"""Most prompt tokens of one forward pass."""


def sample(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor, banned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] and their log-probabilities [B] from logits [B, V], by inversion of the distribution function.

    `temperature`, `top_p` and `uniform` (float64, 0 <= u < 1) are [B], `banned` [V] True on tokens that are never
    sampled. Log-probabilities are of softmax(logits / temperature) over the whole vocabulary, of softmax(logits) where
    the temperature is 0 (greedy).
    """
    greedy = temperature == 0
    logprobs = torch.log_softmax(logits.float() / torch.where(greedy, 1.0, temperature)[:, None], -1)
    weights = logprobs.exp().masked_fill(banned, 0)
    if bool((top_p < 1).any()):
        ordered, order = weights.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= top_p[:, None] * ordered.sum(-1, keepdim=True), 0)
        weights = torch.zeros_like(weights).scatter(-1, order, ordered)
    below = weights.double().cumsum(-1)
    drawn = torch.searchsorted(below, (uniform * below[:, -1])[:, None], right=True)[:, 0]
    tokens = torch.where(greedy, weights.argmax(-1), drawn)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


@dataclass(eq=False)
class _Job:
    """A request on its way."""

    request: Request
    sampling: Sampling
    done: asyncio.Future[tuple[Completion, ...]]
    answers: dict[int, Completion] = field(default_factory=dict)


class _RowCache:
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


_FIELDS: dict[str, Any] = {
    "job": object,  # the request that the row answers
    "index": np.int64,  # which of its answers
    "position": np.int64,  # rotary position of the next token
    "count": np.int64,  # tokens sampled so far
    "limit": np.int64,  # most of them
    "temperature": np.float32,
    "top_p": np.float32,
}


class _Rows:
    """The answers in flight, column by column: row i of every array and of the KV cache is one answer."""

    def __init__(self) -> None:
        self.cache = _RowCache()
        self.columns = {name: np.empty(0, dtype) for name, dtype in _FIELDS.items()}
        self.uniform = np.empty((0, 0))
        """[rows, tokens] what each token is drawn with: a stream of its own for each answer."""
        self.tokens = np.empty((0, 0), np.int32)
        self.logprobs = np.empty((0, 0), np.float32)
        self.versions = np.empty((0, 0), np.int32)

    def __len__(self) -> int:
        return len(self.columns["count"])

    def add(self, job: _Job, prompt: int, position: int, max_model_len: int) -> None:
        """Appends rows for the answers of a job whose prompt of `prompt` tokens is in the cache."""
        n, sampling = job.request.num_answers, job.sampling
        limit = min(sampling.max_tokens, max_model_len - prompt)
        new = (job, np.arange(n), position, 0, limit, sampling.temperature, sampling.top_p)
        for (name, dtype), value in zip(_FIELDS.items(), new, strict=True):
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


class TransformersEngine:
    """An inference engine around a Hugging Face image-text-to-text model, in one process.

    `model_path` is a folder or name that Hugging Face loads, `dtype` 'float32' or 'bfloat16', `sampling` what
    `generate` uses where it is not told otherwise.
    """

    def __init__(
        self, model_path: str, engine: EngineConfig, dtype: str, sampling: Sampling, freeze_vision: bool = True
    ) -> None:
        self._path, self._config, self._dtype, self._sampling = model_path, engine, dtype, sampling
        self._device = torch.device("cuda" if engine.gpus else "cpu")
        self._version = 0
        self._waiting: deque[_Job] = deque()
        self._rows = _Rows()

    async def start(self) -> None:
        """Loads the model; its weights are policy version 0 until `load_policy` says otherwise."""
        self._chat = Chat(self._path)
        model = AutoModelForImageTextToText.from_pretrained(self._path, dtype=getattr(torch, self._dtype))
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._banned = torch.zeros(self._model.config.text_config.vocab_size, dtype=torch.bool, device=self._device)
        self._banned[list(self._chat.vision_token_ids)] = True
        self._lock = asyncio.Lock()
        self._work = asyncio.Event()
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends the engine; answers in flight are lost."""
        self._loop.cancel()
        await asyncio.wait([self._loop])

    async def version(self) -> int:
        """The policy version it samples from."""
        return self._version

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling | None = None
    ) -> list[tuple[Completion, ...]]:
        """`num_answers` completions for each request.

        Raises `ValueError` for a prompt that leaves no room for an answer, and for more answers than `max_num_seqs`.
        """
        for request in requests:
            check_request(request, self._config)
        loop = asyncio.get_running_loop()
        jobs = [_Job(request, sampling or self._sampling, loop.create_future()) for request in requests]
        self._waiting.extend(jobs)
        self._work.set()
        answers = asyncio.gather(*(job.done for job in jobs))
        both: set[asyncio.Future[Any]] = {answers, self._loop}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self._loop.done():
            self._loop.result()
        return await answers

    async def logprobs(self, sequences: Sequence[tuple[Prompt, Ints]]) -> list[Floats]:
        """Log-probabilities [C], at temperature 1, of the tokens of completions [C] that follow the prompts."""
        async with self._lock:
            return await asyncio.to_thread(lambda: [self._score(prompt, ids) for prompt, ids in sequences])

    async def load_policy(self, weights: NDArray[np.uint8], version: int) -> SyncReport:
        """Goes on with the weights that `pack_weights` made, between two tokens of the answers in flight.

        Raises `ValueError` for a version that is not newer, and for weights of another model.
        """
        started = time.perf_counter()
        async with self._lock:
            check_version(self._version, version)
            locked = time.perf_counter()
            await asyncio.to_thread(self._load, weights)
            self._version = version
        ended = time.perf_counter()
        return SyncReport(version, len(weights), pause_s=ended - started, load_s=ended - locked)

    def _load(self, weights: NDArray[np.uint8]) -> None:
        new, own = unpack_weights(weights), dict(self._model.named_parameters())
        check_names(new, own)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(new[name])

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            async with self._lock:
                finished = await asyncio.to_thread(self._step)
            for job in finished:
                if not job.done.done():
                    job.done.set_result(tuple(job.answers[i] for i in range(job.request.num_answers)))
            if not self._waiting and not len(self._rows):
                self._work.clear()

    @torch.inference_mode()
    def _step(self) -> list[_Job]:
        """Lets in what fits, else samples a token for every row; gives back the jobs whose last answer has ended."""
        if not self._admit():
            self._decode()
        rows = self._rows
        count = rows.columns["count"]
        eos = self._chat.eos_token_id
        ended = np.flatnonzero((count == rows.columns["limit"]) | (rows.tokens[np.arange(len(rows)), count - 1] == eos))
        finished = []
        for row in ended.tolist():
            job = rows.columns["job"][row]
            job.answers[int(rows.columns["index"][row])] = rows.completion(row, eos)
            if len(job.answers) == job.request.num_answers:
                finished.append(job)
        if len(ended):
            rows.drop(ended)
        return finished

    def _admit(self) -> bool:
        """Whether there was a request to let in."""
        jobs: dict[object, list[_Job]] = {}  # those whose prompts have one layout are prefilled together
        rows = len(self._rows)
        while self._waiting and rows + self._waiting[0].request.num_answers <= self._config.max_num_seqs:
            job = self._waiting.popleft()
            rows += job.request.num_answers
            prompt = job.request.prompt
            is_image = prompt.token_ids == self._chat.image_token_id
            jobs.setdefault((is_image.tobytes(), tuple(state.task for state in prompt.states)), []).append(job)
        for alike in jobs.values():
            size = max(1, _PREFILL_TOKENS // len(alike[0].request.prompt.token_ids))
            for start in range(0, len(alike), size):
                self._prefill(alike[start : start + size])
        return bool(jobs)

    def _prefill(self, jobs: list[_Job]) -> None:
        """Runs the prompts of jobs, all of one layout, and samples the first token of every answer."""
        prompts = [job.request.prompt for job in jobs]
        out, position = self._forward(prompts, [prompt.token_ids for prompt in prompts], use_cache=True, last=1)
        layers, length = out.past_key_values.layers, len(prompts[0].token_ids)
        first, counts = len(self._rows), [job.request.num_answers for job in jobs]
        longest = max(job.sampling.max_tokens for job in jobs)
        tokens = min(length + longest, self._config.max_model_len)
        self._rows.cache.reserve(layers, first + sum(counts), tokens)
        for i, job in enumerate(jobs):
            self._rows.cache.add(layers, i, counts[i])
            self._rows.add(job, length, position, self._config.max_model_len)
        which = torch.from_numpy(np.repeat(np.arange(len(jobs)), counts)).to(self._device)
        self._sample(np.arange(first, len(self._rows)), out.logits[which, -1])

    def _decode(self) -> None:
        rows = self._rows
        everyone = np.arange(len(rows))
        last = rows.tokens[everyone, rows.columns["count"] - 1].astype(np.int64)
        position = torch.from_numpy(rows.columns["position"]).to(self._device)
        out = self._model(
            input_ids=torch.from_numpy(last).to(self._device)[:, None],
            position_ids=position[None, :, None].expand(3, -1, -1),
            attention_mask=rows.cache.begin(),
            past_key_values=rows.cache,
            use_cache=True,
        )
        rows.cache.end()
        rows.columns["position"] += 1
        self._sample(everyone, out.logits[:, -1])

    def _sample(self, rows: NDArray[np.int64], logits: torch.Tensor) -> None:
        columns = self._rows.columns
        given = (
            columns["temperature"],
            columns["top_p"],
            self._rows.uniform[np.arange(len(self._rows)), columns["count"]],
        )
        temperature, top_p, uniform = (torch.from_numpy(array[rows]).to(self._device) for array in given)
        tokens, logprobs = sample(logits, temperature, top_p, uniform, self._banned)
        self._rows.append(rows, tokens.cpu().numpy(), logprobs.cpu().numpy(), self._version)

    @torch.inference_mode()
    def _score(self, prompt: Prompt, completion: Ints) -> Floats:
        whole = np.concatenate([prompt.token_ids, completion])
        out, _ = self._forward([prompt], [whole], use_cache=False, last=len(completion) + 1)
        logprobs = torch.log_softmax(out.logits[0, :-1].float(), -1)
        targets = torch.from_numpy(completion.astype(np.int64)).to(self._device)
        scored: Floats = logprobs.gather(-1, targets[:, None])[:, 0].cpu().numpy()
        return scored

    def _forward(
        self, prompts: Sequence[Prompt], token_ids: Sequence[Ints], use_cache: bool, last: int
    ) -> tuple[Any, int]:
        """The model's output for sequences [L] that begin with prompts of one layout, logits of the `last` tokens.

        Also the rotary position of the token that comes next, the same for all.
        """
        ids = torch.from_numpy(np.stack(token_ids).astype(np.int64)).to(self._device)
        states = [state for prompt in prompts for state in prompt.states]
        positions = torch.arange(ids.shape[1], device=self._device).expand(3, 1, -1)
        images: dict[str, torch.Tensor] = {}
        if states:
            pixel_values, grid_thw = (torch.from_numpy(array) for array in self._chat.pixel_values(states))
            images = {"pixel_values": pixel_values.to(self._device), "image_grid_thw": grid_thw.to(self._device)}
            types = (ids[:1] == self._chat.image_token_id).int()
            each = len(prompts[0].states)
            positions, _ = self._model.model.get_rope_index(ids[:1], types, image_grid_thw=grid_thw[:each])
        out = self._model(
            input_ids=ids,
            position_ids=positions.expand(-1, len(prompts), -1),
            use_cache=use_cache,
            logits_to_keep=last,
            **images,
        )
        return out, int(positions.max()) + 1
