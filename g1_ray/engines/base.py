"""What an inference engine is: an asyncio class that answers prompts, and takes on the weights of a newer policy."""

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from g1_ray.config import EngineConfig, LoraConfig
from g1_ray.engines.weight_sync import SyncReport
from g1_ray.models.weights import vision_tower
from g1_ray.types import Completion, Floats, Ints, Prompt, Request, Sampling

if TYPE_CHECKING:
    from torch.nn import Parameter
    from transformers import PreTrainedModel


class Engine(Protocol):
    """What the pipeline and evaluations ask of an engine; it is made as `EngineBase` is, and need not descend from it.

    It is given token ids and gives token ids, states the policy version of each, never samples a vision token, and
    samples each answer from a generator of its own.
    """

    async def start(self) -> None:
        """Loads the model; its weights are policy version 0 until `load_policy` says otherwise."""

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling | None = None
    ) -> list[tuple[Completion, ...]]:
        """`num_answers` completions for each request, sampled as the engine was told where it is not told otherwise.

        Where it is not, their log-probabilities are what `logprobs` gives for them.
        Raises `ValueError` for a prompt that leaves no room for an answer, and for more answers than `max_num_seqs`.
        """

    def stream(self, request: Request, sampling: Sampling | None = None) -> AsyncGenerator[Ints | Completion, None]:
        """The one answer to a request: its token ids [C] so far whenever there are more, and at last the completion.

        To be closed with `contextlib.aclosing`, which ends a request that nobody reads to its end.
        """

    async def logprobs(self, sequences: Sequence[tuple[Prompt, Ints]]) -> list[Floats]:
        """Log-probabilities [C] of the tokens of completions [C] that follow the prompts, nats.

        Of softmax(logits / temperature), at the temperature that the engine was told (at 1 where that is 0).
        """

    async def load_policy(self, weights: NDArray[np.uint8], version: int, back: bool = False) -> SyncReport:
        """Goes on with the weights that `pack_weights` made, between two tokens of the answers in flight.

        Raises `ValueError` for a version that is not newer unless it is to go `back`, and for another model's weights.
        """

    def check(self) -> None:
        """Raises what ended it, if anything did."""

    async def alive(self) -> None:
        """Returns within moments, whatever it is at work on, unless it hangs; raises as `check` does."""

    async def stop(self) -> None:
        """Ends the engine and its processes; answers in flight are lost."""


class EngineBase:
    """What engines share. `path`: a folder or name that Hugging Face loads; `dtype`: 'float32' or 'bfloat16'.

    `sampling`: what `generate` uses where it is not told otherwise; `freeze_vision`: what a picture looks like to the
    model never changes; `lora`: of the adapter that `load_policy` is given in place of whole weights, if it is.
    """

    def __init__(
        self,
        path: str,
        engine: EngineConfig,
        dtype: str,
        sampling: Sampling,
        freeze_vision: bool = True,
        lora: LoraConfig | None = None,
    ) -> None:
        self._path, self._config, self._dtype, self._sampling = path, engine, dtype, sampling
        self._freeze_vision, self._lora = freeze_vision, lora
        self._version = 0

    def _split(self, model: "PreTrainedModel") -> "tuple[dict[str, Parameter], dict[str, Parameter]]":
        """The parameters of a model that a policy has to have, and those that it may have: a frozen tower's."""
        tower = vision_tower(model) if self._freeze_vision else None
        frozen = {id(parameter) for parameter in tower.parameters()} if tower is not None else set()
        all_of = dict(model.named_parameters())
        kept = {name: parameter for name, parameter in all_of.items() if id(parameter) in frozen}
        return {name: parameter for name, parameter in all_of.items() if name not in kept}, kept

    @property
    def _temperature(self) -> float:
        """At which log-probabilities are: a greedy engine's are the model's own."""
        return self._sampling.temperature or 1.0

    def check(self) -> None:
        """As `Engine.check`, for one that nothing but its process can end."""

    async def alive(self) -> None:
        """As `Engine.alive`, for one whose work is done in this process."""
        self.check()

    def _check(self, requests: Sequence[Request]) -> None:
        """Raises `ValueError` for what an engine of this size can't answer."""
        room, rows = self._config.max_model_len, self._config.max_num_seqs
        for request in requests:
            length = len(request.prompt.token_ids)
            if length >= room:
                raise ValueError(
                    f"a prompt of {length} tokens leaves no room for an answer: engine.max_model_len = {room}"
                )
            if not 1 <= request.num_answers <= rows:
                raise ValueError(
                    f"{request.num_answers} answers to one prompt: must be 1 to engine.max_num_seqs = {rows}"
                )
