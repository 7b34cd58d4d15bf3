"""Answers from a Hugging Face model, where vLLM can't be had: the same methods as vLLM's.

    generate -> waiting -> prefill, once a request -> rows of the KV cache -> one token a step for every row -> answers

Requests join and leave between two steps, and weights are loaded between two steps, so what is in flight goes on under
the new policy, as it does in vLLM with `pause_generation(mode="keep")`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from envs import State
from g1_ray.engines.base import EngineBase
from g1_ray.engines.kv_rows import Answering, Rows
from g1_ray.engines.weight_sync import SyncReport, check_names, check_version, unpack_weights
from g1_ray.models.adapters import adapter_of, inject
from g1_ray.models.chat import Chat
from g1_ray.models.weights import load_model
from g1_ray.types import Completion, Floats, Ints, Picture, Prompt, Request, Sampling

log = logging.getLogger(__name__)
_T = TypeVar("_T")
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


def layout(shown: State | Picture) -> object:
    """Equal for pictures of one size, whose patches stand alike."""
    return shown.task if isinstance(shown, State) else (shown.height, shown.width)


class TransformersEngine(EngineBase):
    """An inference engine around a Hugging Face image-text-to-text model, in one process."""

    async def start(self) -> None:
        """Loads the model."""
        self._device = torch.device("cuda" if self._config.gpus else "cpu")
        self._waiting: deque[Answering] = deque()
        self._rows = Rows()
        self._chat = Chat(self._path)
        model = load_model(self._path, dtype=getattr(torch, self._dtype))
        if lora := self._lora:
            model = inject(model, lora.rank, lora.alpha, lora.targets)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._published, self._kept = (adapter_of(self._model), {}) if lora else self._split(self._model)
        self._banned = torch.zeros(self._model.config.text_config.vocab_size, dtype=torch.bool, device=self._device)
        self._banned[list(self._chat.vision_token_ids)] = True
        self._lock = asyncio.Lock()
        self._work = asyncio.Event()
        self._loop = asyncio.create_task(self._run())
        log.info("%s answers, %s on %s", self._path, self._dtype, self._device)

    def check(self) -> None:
        if self._loop.done():
            self._loop.result()

    async def stop(self) -> None:
        self._loop.cancel()
        await asyncio.wait([self._loop])

    async def version(self) -> int:
        """The policy version it samples from."""
        return self._version

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling | None = None
    ) -> list[tuple[Completion, ...]]:
        self._check(requests)
        jobs = [self._ask(request, sampling) for request in requests]
        try:
            return await self._unless_failed(asyncio.gather(*(job.done for job in jobs)))
        finally:
            for job in jobs:
                job.given_up = True

    async def stream(
        self, request: Request, sampling: Sampling | None = None
    ) -> AsyncGenerator[Ints | Completion, None]:
        self._check([request])
        job = self._ask(request, sampling)
        pieces = job.pieces = asyncio.Queue()
        try:
            piece = None
            while not isinstance(piece, Completion):
                piece = await self._unless_failed(asyncio.ensure_future(pieces.get()))
                yield piece
        finally:
            job.given_up = True

    def _ask(self, request: Request, sampling: Sampling | None) -> Answering:
        job = Answering(request, sampling or self._sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._work.set()
        return job

    async def _unless_failed(self, awaited: asyncio.Future[_T]) -> _T:
        """What is awaited; raises what ended the loop, if it was that instead."""
        both: set[asyncio.Future[Any]] = {awaited, self._loop}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not awaited.done():
                awaited.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody else asks
                awaited.cancel()
        if self._loop.done():
            self._loop.result()
        return await awaited

    async def logprobs(self, sequences: Sequence[tuple[Prompt, Ints]]) -> list[Floats]:
        async with self._lock:
            return await asyncio.to_thread(lambda: [self._score(prompt, ids) for prompt, ids in sequences])

    async def load_policy(self, weights: NDArray[np.uint8], version: int, back: bool = False) -> SyncReport:
        started = time.perf_counter()
        async with self._lock:
            check_version(self._version, version, back)
            locked = time.perf_counter()
            await asyncio.to_thread(self._load, weights)
            self._version = version
        ended = time.perf_counter()
        log.info("policy version %d after %.2f s", version, ended - started)
        return SyncReport(version, len(weights), pause_s=ended - started, load_s=ended - locked)

    def _load(self, weights: NDArray[np.uint8]) -> None:
        new = unpack_weights(weights)
        check_names(new, self._published, self._kept)
        with torch.no_grad():
            for name, parameter in (self._published | self._kept).items():
                if name in new:
                    parameter.copy_(new[name])

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            async with self._lock:
                finished = await asyncio.to_thread(self._step)
            for row, job in enumerate(self._rows.columns["job"]):
                if job.pieces:
                    job.pieces.put_nowait(self._rows.tokens[row, : self._rows.columns["count"][row]].copy())
            for job in finished:
                if job.pieces:
                    job.pieces.put_nowait(job.answers[0])
                elif not job.done.done():
                    job.done.set_result(tuple(job.answers[i] for i in range(job.request.num_answers)))
            if not self._waiting and not len(self._rows):
                self._work.clear()

    @torch.inference_mode()
    def _step(self) -> list[Answering]:
        """Lets in what fits, else samples a token for every row; gives back the jobs whose last answer has ended."""
        rows = self._rows
        if given_up := [row for row, job in enumerate(rows.columns["job"]) if job.given_up]:
            rows.drop(np.array(given_up))
        if not self._admit() and len(rows):
            self._decode()
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
        jobs: dict[object, list[Answering]] = {}  # those whose prompts have one layout are prefilled together
        rows = len(self._rows)
        while self._waiting and rows + self._waiting[0].request.num_answers <= self._config.max_num_seqs:
            job = self._waiting.popleft()
            if job.given_up:
                continue
            rows += job.request.num_answers
            prompt = job.request.prompt
            is_image = prompt.token_ids == self._chat.image_token_id
            jobs.setdefault((is_image.tobytes(), tuple(map(layout, prompt.shown))), []).append(job)
        for alike in jobs.values():
            size = max(1, _PREFILL_TOKENS // len(alike[0].request.prompt.token_ids))
            for start in range(0, len(alike), size):
                self._prefill(alike[start : start + size])
        return bool(jobs)

    def _prefill(self, jobs: list[Answering]) -> None:
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
        logprobs = torch.log_softmax(out.logits[0, :-1].float() / self._temperature, -1)
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
        shown = [picture for prompt in prompts for picture in prompt.shown]
        positions = torch.arange(ids.shape[1], device=self._device).expand(3, 1, -1)
        images: dict[str, torch.Tensor] = {}
        if shown:
            pixel_values, grid_thw = (torch.from_numpy(array) for array in self._chat.pixel_values(shown))
            images = {"pixel_values": pixel_values.to(self._device), "image_grid_thw": grid_thw.to(self._device)}
            types = (ids[:1] == self._chat.image_token_id).int()
            each = len(prompts[0].shown)
            positions, _ = self._model.model.get_rope_index(ids[:1], types, image_grid_thw=grid_thw[:each])
        out = self._model(
            input_ids=ids,
            position_ids=positions.expand(-1, len(prompts), -1),
            use_cache=use_cache,
            logits_to_keep=last,
            **images,
        )
        return out, int(positions.max()) + 1
