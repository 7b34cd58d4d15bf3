"""How a learner's weights reach the engines, and how a sync that did not take is noticed.

    learner: named parameters -> pack_weights -> an array of bytes -> engine: load_policy(bytes, version) -> its version

The bytes are a safetensors file, so they travel as one Ray object and are mapped from a file without a copy. Where LoRA
is trained and the kind of engine takes adapters, they are the adapter, in peft's format: a few hundredths of that, and
nothing of it is rounded away, as a small change is when it is merged into bfloat16. An engine refuses a version that is
not newer than its own, and weights that are not exactly its model's, or its adapter's.
"""

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from g1_ray.processes import scratch
from g1_ray.types import Floats

if TYPE_CHECKING:
    import torch

CANARY_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Nats. Measured on a tiny model: 2.5e-7 and 1.8e-3; models of billions of parameters differ some 20 times as much."""


_KINDS = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
"""What safetensors calls them."""
CANARIES = 4
"""Sequences of a game: an answer to a board, the same again, the same with a blank picture, and without a prompt."""
SIGHT = 1e-4
"""Nats. What log-probabilities move by, in the mean, when a board is taken away, is more. Measured: 0.05 to 0.4 of
untrained tiny models, 0.5 to 11 of the two that ship, in float32 as in bfloat16; 0 where pixel values are."""


@dataclass(frozen=True)
class SyncReport:
    """What a weight sync came to."""

    version: int
    """Policy version of the engine from now on."""
    num_bytes: int
    """Of the weights, with their names: what comes to a node once, however many engines it has."""
    pause_s: float
    """How long no token was sampled."""
    load_s: float
    """The part of it that loading took."""


class WeightSyncError(RuntimeError):
    """The engine does not compute what the learner computes."""


class BlindError(ValueError):
    """The picture makes no difference: it does not reach the model."""


def pack_weights(parameters: "Iterable[tuple[str, torch.Tensor]]", dtype: "torch.dtype") -> NDArray[np.uint8]:
    """The parameters of a model by their names in Hugging Face's module tree, cast to `dtype`, as safetensors bytes.

    All of them, whole (not shards), frozen ones too, but for a frozen vision tower; the names are those of
    `model.named_parameters()`, a peft adapter is merged into them. Or, for an engine that takes it, all of the adapter
    alone, by the names of peft's files.
    """
    import torch

    tensors = {name: tensor.detach() for name, tensor in parameters}
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": _KINDS[str(dtype)], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    packed = np.empty(8 + len(text) + end, np.uint8)
    packed[: 8 + len(text)] = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    body = torch.from_numpy(packed)[8 + len(text) :]
    for name, tensor in tensors.items():
        begin, end = header[name]["data_offsets"]
        body[begin:end].view(dtype).view(tensor.shape).copy_(tensor)  # the one copy there is, cast on its way
    return packed


def unpack_weights(weights: NDArray[np.uint8]) -> "dict[str, torch.Tensor]":
    """The tensors of `pack_weights` by name: the bytes themselves, not to be written to."""
    import torch

    length, header = _header(weights)
    with warnings.catch_warnings(action="ignore"):  # that an array which came through Ray can't be written to
        body = torch.from_numpy(weights)[8 + length :]
    kinds = {kind: getattr(torch, name.removeprefix("torch.")) for name, kind in _KINDS.items()}
    return {
        name: body[slice(*about["data_offsets"])].view(kinds[about["dtype"]]).view(about["shape"])
        for name, about in header.items()
    }


def packed_names(weights: NDArray[np.uint8]) -> list[str]:
    """The names of what `pack_weights` packed."""
    return list(_header(weights)[1])


def _header(weights: NDArray[np.uint8]) -> tuple[int, dict[str, Any]]:
    """Its length in bytes, and what it says of each tensor."""
    length = int.from_bytes(weights[:8].tobytes(), "little")
    return length, json.loads(weights[8 : 8 + length].tobytes())


@contextlib.contextmanager
def weights_file(weights: NDArray[np.uint8], name: str = "model.safetensors") -> Iterator[Path]:
    """A file with these bytes, in a folder of its own, while the context lasts: in memory (/dev/shm) where it fits."""
    with scratch(len(weights)) as folder:
        file = folder / name
        file.write_bytes(weights.data)
        yield file


def check_version(old: int, new: int, back: bool = False) -> None:
    """Raises `ValueError` unless the version is newer than the engine's, or it is to go back."""
    if new <= old and not back:
        raise ValueError(f"policy version {new}: the engine holds version {old} and takes newer ones only")


def check_names(given: Iterable[str], needed: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raises `ValueError` where weights lack a parameter of the model, or hold more than a tied head that it lacks.

    `needed`: of the model, or of the adapter where that is what the engine takes; `more` may come, too.
    """
    given, needed = set(given), set(needed)
    missing, over = sorted(needed - given), sorted(given - needed - set(more) - {"lm_head.weight"})
    if missing or over:
        what = f"lack {missing[0]} and {len(missing) - 1} more" if missing else f"hold {over[0]}, which the model lacks"
        of_adapter = any(".lora_" in name for name in needed)
        how = "the adapter, all of it, alone" if of_adapter else "all of model.named_parameters(), adapters merged"
        raise ValueError(f"these weights {what}: publish {how}")


class Canary:
    """Compares log-probabilities of engine and learner on fixed sequences, once after a sync.

    `tolerance`: largest mean difference, nats; `CANARY_TOLERANCE` has one for each dtype. A sync that did not take
    differs by as much as a step changes the policy, which may well be within it, and in bfloat16 less than what the two
    always differ by. So what each moved by since the last check is compared as well: there that is gone.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._last: tuple[Floats, Floats] | None = None

    def check(self, version: int, engine: Sequence[Floats], learner: Sequence[Floats]) -> float:
        """The mean difference, nats, over the tokens of the sequences.

        Raises `WeightSyncError` above the tolerance, and where the learner's values moved, and not the engine's.
        """
        ours, theirs = np.concatenate(list(learner)), np.concatenate(list(engine))
        assert ours.shape == theirs.shape
        gap = float(np.abs(ours - theirs).mean())
        last, self._last = self._last, (ours, theirs)
        if not gap <= self.tolerance:
            raise WeightSyncError(
                f"version {version}: log-probabilities of engine and learner differ by {gap:.2g} nats a token "
                f"(tolerance {self.tolerance:.2g}): the weights did not arrive, or the two disagree about the model"
            )
        if last is not None:
            ours_moved, theirs_moved = (float(np.abs(a - b).mean()) for a, b in zip((ours, theirs), last, strict=True))
            if ours_moved > self.tolerance / 100 and theirs_moved < ours_moved / 4:
                raise WeightSyncError(
                    f"version {version}: since the last check the learner's log-probabilities moved by "
                    f"{ours_moved:.2g} nats a token, the engine's by {theirs_moved:.2g}: its weights were not replaced"
                )
        return gap


def check_sight(version: int, games: Sequence[str], scored: Mapping[str, Sequence[Floats]]) -> None:
    """Raises `BlindError` where somebody's log-probabilities are the same with a board and with a blank picture.

    `scored`: by who computed them, those of the `CANARIES` of each game. Engine and learner that agree may both be
    blind. What asking twice comes to, where kernels round by their place in a batch, is not sight either.
    """
    for i, game in enumerate(games):
        blind = []
        for name, sequences in scored.items():
            shown, again, blank = sequences[CANARIES * i : CANARIES * i + 3]
            if np.abs(shown - blank).mean() <= max(SIGHT, 2 * np.abs(shown - again).mean()):
                blind.append(name)
        if blind:
            raise BlindError(
                f"version {version}: {' and '.join(blind)} blind on {game}: log-probabilities are the same with a "
                "board and with a blank picture.\nThe picture does not reach the model: look at the chat template and "
                "the image processor in the model's folder"
                + ("." if len(blind) == len(scored) else "; the others see, so it is lost where these compute.")
            )
