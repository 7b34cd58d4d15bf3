"""Answers from vLLM, which gets token ids and `pixel_values`, and so tokenises and resizes nothing.

    generate -> EngineInput (ids, pixel values, their hash) -> EngineCore -> ids, logprobs, policy versions

The core is in a process of its own (an `AsyncLLM`), or in a thread of this one, by `engine.core`.

A sync pauses between two steps and keeps what is in flight: those answers go on under the new weights over the keys and
values of the old ones, and say of every token which version sampled it. Nothing that arrives after a sync is computed
from a cache older than it: the prefix cache is salted with the version, and where the vision tower trains, so are the
pictures' names in the encoder cache. (vLLM can't clear its prefix cache while requests are in flight.)
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from envs import State
from g1_ray.engines.base import EngineBase
from g1_ray.engines.weight_sync import SyncReport, check_names, check_version, pack_weights, packed_names, weights_file
from g1_ray.models.adapters import WEIGHTS, adapter_of, inject, write_config
from g1_ray.seeds import seed_of
from g1_ray.types import Completion, Floats, Ints, Picture, Prompt, Request, Sampling

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

    from g1_ray.engines.vllm_thread import ThreadedLLM


class VLLMEngine(EngineBase):
    """An inference engine around vLLM.

    Its model's logits are divided by the engine's temperature before vLLM gets to see them. So all log-probabilities,
    those of answers that are sampled otherwise too, are of softmax(logits / temperature) over the whole vocabulary;
    those that vLLM itself divides have no share for vision tokens, and it divides none of a prompt's.
    """

    async def start(self) -> None:
        """Loads the model."""
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if not self._config.gpus:
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # to compile takes longer than it saves
        from g1_ray.models.chat import Chat
        from g1_ray.models.weights import skeleton

        self._chat = Chat(self._path)
        model = skeleton(self._path)
        if lora := self._lora:
            model = inject(model, lora.rank, lora.alpha, lora.targets)
        self._published, self._kept = (adapter_of(model), {}) if lora else self._split(model)
        self._llm = await self._begin()
        self._ids = itertools.count()
        self._loads = 0  # names what caches hold: a version that is gone back to has other weights the second time
        self._open = asyncio.Event()
        self._open.set()
        self._sync = asyncio.Lock()
        if self._lora:
            await self._load_zeros()
        await self._llm.update_weight_version("0")
        if self._temperature != 1:
            await self._llm.collective_rpc("divide_logits", args=(self._temperature,))
        log.info("%s answers, %s", self._path, self._dtype)

    def _in_thread(self) -> bool:
        from g1_ray.engines.vllm_thread import has_room

        core = self._config.core
        return not self._config.gpus and has_room() if core == "auto" else core == "thread"

    async def _begin(self) -> "AsyncLLM | ThreadedLLM":
        if self._in_thread():
            from g1_ray.engines.vllm_thread import ThreadedLLM

            return await ThreadedLLM.begun(self._arguments())
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments()))

    def _arguments(self) -> dict[str, Any]:
        from vllm.config import WeightTransferConfig
        from vllm.config.lora import MaxLoRARanks

        config = self._config
        arguments: dict[str, Any] = {
            "model": self._path,
            "dtype": self._dtype,
            "max_model_len": config.max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "enable_prefix_caching": True,
            "mm_processor_cache_gb": 0,
            "mm_device_do_normalize": False,  # pixel values come normalised
            "limit_mm_per_prompt": {"video": 0},
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
            "disable_log_stats": True,
            "worker_extension_cls": "g1_ray.engines.vllm_worker.Worker",
            "weight_transfer_config": WeightTransferConfig(backend="file"),
        }
        if self._lora:
            rank = min(rank for rank in get_args(MaxLoRARanks) if rank >= self._lora.rank)
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
            arguments["lora_target_modules"] = list(self._lora.targets)
        if config.gpus:
            return arguments | {
                "gpu_memory_utilization": config.memory_utilization,
                "tensor_parallel_size": max(1, int(config.gpus)),
                # Its GPUs are on one node. In a placement group vLLM would take Ray's executor by itself, and refuse
                # the group: a bundle may not have more than one GPU there.
                "distributed_executor_backend": "mp" if config.gpus > 1 else "uni",
                "enforce_eager": config.enforce_eager,
            }
        return arguments | {
            "kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30),
            "distributed_executor_backend": "uni",
            "enforce_eager": True,
            "block_size": 32,  # of the prefix cache, in tokens: prompts of tiny models are short
            # A request with a seed whose prompt is computed in two parts brings vLLM 0.32 down on a CPU.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(8192, config.max_model_len),
        }

    def check(self) -> None:
        if self._llm.errored:
            raise self._llm.dead_error

    async def alive(self) -> None:
        self.check()
        await self._llm.get_weight_version()  # whoever makes the steps answers

    async def stop(self) -> None:
        self._llm.shutdown()

    async def version(self) -> int:
        """The policy version it samples from, as vLLM itself states it."""
        return int(await self._llm.get_weight_version())

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling | None = None
    ) -> list[tuple[Completion, ...]]:
        self._check(requests)
        chosen = sampling or self._sampling
        return await asyncio.gather(*(self._answer(request, chosen) for request in requests))

    async def stream(
        self, request: Request, sampling: Sampling | None = None
    ) -> AsyncGenerator[Ints | Completion, None]:
        from vllm.sampling_params import RequestOutputKind

        self._check([request])
        params = self._params(request, sampling or self._sampling)
        params.output_kind = RequestOutputKind.CUMULATIVE
        async with contextlib.aclosing(self._outputs(request.prompt, request.prompt.token_ids, params)) as outputs:
            async for output in outputs:
                (answer,) = output.outputs
                yield self._completion(answer) if output.finished else np.array(answer.token_ids, np.int32)

    async def logprobs(self, sequences: Sequence[tuple[Prompt, Ints]]) -> list[Floats]:
        return await asyncio.gather(*(self._score(prompt, ids) for prompt, ids in sequences))

    async def load_policy(self, weights: NDArray[np.uint8], version: int, back: bool = False) -> SyncReport:
        async with self._sync:
            check_version(self._version, version, back)
            check_names(names := packed_names(weights), self._published, self._kept)
            if not self._kept.keys().isdisjoint(names):
                self._freeze_vision = False  # it changes after all
            with weights_file(weights, WEIGHTS) as file:
                self._open.clear()
                started = time.perf_counter()
                await self._llm.pause_generation(mode="keep", clear_cache=False)
                paused = time.perf_counter()
                await (self._load_adapter(file.parent) if self._lora else self._load_weights(file))
                await self._llm.update_weight_version(str(version))
                self._loads += 1
                loaded = time.perf_counter()
            await self._llm.reset_prefix_cache()
            self._version = version
            await self._llm.resume_generation()
            self._open.set()
        ended = time.perf_counter()
        log.info("policy version %d after %.2f s", version, ended - started)
        return SyncReport(version, len(weights), pause_s=ended - started, load_s=loaded - paused)

    async def _load_weights(self, file: Path) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info={"path": str(file)}))
        await self._llm.finish_weight_update()

    async def _load_adapter(self, folder: Path) -> None:
        """Puts the adapter in the place of the last one: what is in flight knows it by the same number."""
        from vllm.lora.request import LoRARequest

        assert self._lora is not None
        write_config(folder, self._lora.rank, self._lora.alpha, self._lora.targets, self._path)
        loaded = await self._llm.add_lora(LoRARequest("policy", 1, str(folder), load_inplace=True))
        assert loaded

    async def _load_zeros(self) -> None:
        """An adapter that changes nothing: without one, answers that it begins would go on without the next one."""
        import torch

        zeros = {name: torch.zeros(part.shape) for name, part in self._published.items()}
        with weights_file(pack_weights(zeros.items(), getattr(torch, self._dtype)), WEIGHTS) as file:
            await self._load_adapter(file.parent)

    async def _answer(self, request: Request, sampling: Sampling) -> tuple[Completion, ...]:
        output = await self._run(request.prompt, request.prompt.token_ids, self._params(request, sampling))
        return tuple(self._completion(answer) for answer in output.outputs)

    def _params(self, request: Request, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=request.num_answers,
            seed=seed_of("answers", request.seed) >> 1,  # vLLM gives answer i the seed + i
            temperature=sampling.temperature / self._temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[self._chat.eos_token_id],
            logit_bias=dict.fromkeys(self._chat.vision_token_ids, float("-inf")),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: "CompletionOutput") -> Completion:
        token_ids = np.asarray(output.token_ids, np.int32)
        logprobs, spans = output.logprobs, output.weight_versions
        assert logprobs is not None and spans is not None and output.finish_reason in ("stop", "length"), output
        versions = np.repeat([int(span.version) for span in spans], [span.end - span.start for span in spans])
        values = np.asarray(logprobs.logprobs, np.float32)[logprobs.start_indices]
        assert len(token_ids) == len(values) == len(versions)
        return Completion(token_ids, values, versions.astype(np.int32), output.finish_reason)

    async def _score(self, prompt: Prompt, completion: Ints) -> Floats:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        start = len(prompt.token_ids)
        whole = np.concatenate([prompt.token_ids, completion])
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        output = await self._run(prompt, whole, params)
        assert output.prompt_logprobs is not None
        pairs = zip(completion.tolist(), output.prompt_logprobs[start:], strict=True)
        return np.array([at[token].logprob for token, at in pairs if at is not None], np.float32)

    async def _run(self, prompt: Prompt, token_ids: Ints, params: Any) -> "RequestOutput":
        """Runs a request to its end."""
        (output,) = [output async for output in self._outputs(prompt, token_ids, params)]
        assert output.finished and output.prompt_token_ids == token_ids.tolist()
        return output

    async def _outputs(self, prompt: Prompt, token_ids: Ints, params: Any) -> AsyncGenerator["RequestOutput", None]:
        """What comes of a request; closing it ends the request in vLLM."""
        from vllm.lora.request import LoRARequest

        await self._open.wait()
        number, adapter = str(next(self._ids)), LoRARequest("policy", 1, "loaded") if self._lora else None
        made = self._llm.generate(self._input(prompt, token_ids), params, number, lora_request=adapter)
        async with contextlib.aclosing(made) as outputs:
            async for output in outputs:
                yield output

    def _input(self, prompt: Prompt, token_ids: Ints) -> Any:
        """What vLLM's own processor would make of ids and pictures; pictures of equal states are computed once."""
        from vllm.inputs.engine import mm_input, tokens_input

        salt = f"policy {self._loads}"
        if not prompt.shown:
            return tokens_input(token_ids.tolist(), cache_salt=salt)
        from vllm.multimodal.inputs import PlaceholderRange

        is_image = np.concatenate([[False], prompt.token_ids == self._chat.image_token_id, [False]])
        edges = np.flatnonzero(is_image[1:] != is_image[:-1]).reshape(-1, 2)
        ranges = [PlaceholderRange(offset=start, length=end - start) for start, end in edges.tolist()]
        assert [each.length for each in ranges] == list(map(self._chat.pads_of, prompt.shown))
        return mm_input(
            token_ids.tolist(),
            mm_kwargs={"image": list(map(self._image, prompt.shown))},
            mm_hashes={"image": list(map(self._name, prompt.shown))},
            mm_placeholders={"image": ranges},
            cache_salt=salt,
        )

    def _image(self, shown: State | Picture) -> Any:
        """A picture as a processed item of vLLM."""
        import torch
        from vllm.multimodal.inputs import (
            MultiModalBatchedField,
            MultiModalFieldElem,
            MultiModalFlatField,
            MultiModalKwargsItem,
        )

        pixel_values, grid_thw = (torch.from_numpy(array) for array in self._chat.pixel_values([shown]))
        flat = MultiModalFlatField(slices=[slice(0, len(pixel_values))])
        return MultiModalKwargsItem(
            {
                "pixel_values": MultiModalFieldElem(pixel_values, flat),
                "image_grid_thw": MultiModalFieldElem(grid_thw[0], MultiModalBatchedField(keep_on_cpu=True)),
            }
        )

    def _name(self, shown: State | Picture) -> str:
        """What the encoder and prefix caches call a picture: of a state, by its task, board and looks."""
        if isinstance(shown, State):
            game = shown.game()
            name = hashlib.sha256(shown.task.to_json().encode())
            name.update(np.ascontiguousarray(game.perception()).tobytes())
            name.update(np.ascontiguousarray(game.looks).tobytes())
        else:
            name = hashlib.sha256(f"{shown.height} {shown.width} ".encode() + shown.pixels)
        return name.hexdigest() if self._freeze_vision else f"{name.hexdigest()} {self._loads}"
