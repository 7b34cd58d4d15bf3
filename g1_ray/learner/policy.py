"""The model that is trained: loaded by transformers' Auto classes, and run over packs.

Any image-text-to-text model whose text layers all attend to everything before them. Positions come from the model's
own `get_rope_index` where it has one (Qwen's three-dimensional ones), else they count up within a segment.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from g1_ray.config import ModelConfig
from g1_ray.learner.attention import CHUNKS, SEGMENTS, Segments, segments_of
from g1_ray.learner.packs import Pack
from g1_ray.models import weights
from g1_ray.models.adapters import inject
from g1_ray.models.find import model_path
from g1_ray.models.weights import drop_tower, vision_tower
from g1_ray.seeds import seed_of

LOGITS = 1 << 27
"""Most logits at once: half a gigabyte in float32."""
_ROUND = 64
"""Positions are computed for lengths rounded up to this, so that few have to be."""
_KEPT = 4096
"""Positions kept."""


# Loading


def load_model(config: ModelConfig, seed: int = 0, trained: bool = True) -> PreTrainedModel:
    """The model on the CPU, in train mode. What is trained is as it is stored, what is frozen has the config's dtype.

    `seed` is for new adapters. `trained` False: a reference, frozen as a whole, without adapters and without a vision
    tower where that is frozen in the policy too, whose features it is given. Raises `ValueError` for a model that
    can't be run over packs.
    """
    path = model_path(config.path)
    model = weights.load_model(path, dtype=weights.stored_dtype(path), attn_implementation="sdpa")
    _check(model, config.path)
    text = model.config.get_text_config()
    model.set_attn_implementation(
        {name: SEGMENTS for name in model.config.sub_configs if getattr(model.config, name) is text}
    )
    tower = vision_tower(model)
    assert tower is not None, "check_family asks for one"
    tower.config._attn_implementation = CHUNKS
    model.requires_grad_(trained and not config.lora.rank)
    if config.vision_is_frozen:
        tower.requires_grad_(False)
        if not trained:
            drop_tower(model)
    if trained and config.lora.rank:
        model = _with_adapter(model, config, seed)
    dtype = getattr(torch, config.dtype)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    if config.gradient_checkpointing and trained:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _check(model: PreTrainedModel, path: str) -> None:
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"model.path = {path}: has layers of {sorted(kinds)}; take one with full attention only")
    if getattr(text, "final_logit_softcapping", None):
        raise ValueError(f"model.path = {path}: caps its logits; take one that doesn't")


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks, of the language model and of the vision tower."""
    names = set(model._no_split_modules or [])
    return [module for module in model.modules() if type(module).__name__ in names]


def _with_adapter(model: PreTrainedModel, config: ModelConfig, seed: int) -> PreTrainedModel:
    """LoRA (arXiv 2106.09685) on linear layers of the language model."""
    lora = config.lora
    model = inject(model, lora.rank, lora.alpha, lora.targets)
    # peft draws from the global generator; ranks must draw the same.
    generator = torch.Generator().manual_seed(seed_of("lora", seed))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # whatever the layers have that they are added to
        if ".lora_A." in name:
            fresh = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(fresh)
    return model


# Packs


@dataclass(frozen=True)
class Picture:
    """A picture as the vision tower sees it."""

    grid: tuple[int, int, int]
    """(1, height, width) in patches."""
    features: tuple[torch.Tensor, ...]
    """[visual tokens, width]: what stands for the pads, and for models with DeepStack what is added in later layers."""


@dataclass(frozen=True)
class Inputs:
    """A pack as tensors: L tokens, T of them sampled."""

    token_ids: torch.Tensor
    """[1, L]"""
    position_ids: torch.Tensor
    """[3, 1, L] or [1, L], as the model takes them."""
    segments: Segments
    predictors: torch.Tensor
    """[T] where the token before each sampled one stands."""
    target_ids: torch.Tensor
    """[T] the sampled tokens."""
    pixel_values: torch.Tensor | None = None
    """[patches, features] of all pictures: given where the vision tower is trained, with `grids`."""
    grids: torch.Tensor | None = None
    """[pictures, 3]"""
    shown: bool = True
    """False where the tokens have no picture, and the tower looks at one all the same: see `Policy.forward`."""
    pictures: tuple[Picture, ...] = ()
    """Given where the vision tower is frozen."""


class Policy(nn.Module):
    """The log-probabilities of the sampled tokens of packs. It is the root of what FSDP shards."""

    def __init__(self, model: PreTrainedModel, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.image_token_id = int(getattr(model.config, "image_token_id", -1))
        self._positions: dict[tuple[bytes, bytes], NDArray[np.int64]] = {}

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """[T] log-probability, float32, of each sampled token given those it sees in its pack, at the temperature.

        A vision tower that is trained is run for every pack, if only for nothing: all ranks gather its weights and
        reduce its gradients together.
        """
        if inputs.pixel_values is not None:
            pictures: Sequence[Picture] = self.encode(inputs.pixel_values, inputs.grids)
        else:
            pictures = inputs.pictures
        hidden = self.model.base_model(
            input_ids=inputs.token_ids,
            position_ids=inputs.position_ids,
            mm_encoder_outputs={"image": self._joined(pictures)} if pictures and inputs.shown else None,
            use_cache=False,
            segments=inputs.segments,
        ).last_hidden_state[0]
        logprobs = self._head(hidden[inputs.predictors], inputs.target_ids)
        return logprobs if inputs.shown else logprobs + 0 * sum(part.sum() for part in pictures[0].features)

    def _head(self, hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        """[T] from the hidden states [T, width]. Logits are made in parts, and made again for the backward pass."""
        head = self.model.get_output_embeddings()

        def logprobs(hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
            logits = head(hidden).float() / self.temperature
            return -F.cross_entropy(logits, target_ids, reduction="none")

        rows = max(1, LOGITS // self.model.config.get_text_config().vocab_size)
        if len(hidden) <= rows:
            return logprobs(hidden, target_ids)
        parts = zip(hidden.split(rows), target_ids.split(rows), strict=True)
        return torch.cat([checkpoint(logprobs, h, ids, use_reentrant=False) for h, ids in parts])

    def encode(self, pixel_values: torch.Tensor, grids: torch.Tensor) -> list[Picture]:
        """The pictures of patches [patches of all, features] with `grids` [pictures, 3], through the vision tower."""
        made = self.model.base_model.get_image_features(pixel_values, grids, return_dict=True)
        layers = [made.pooler_output, *(getattr(made, "deepstack_features", None) or [])]
        rows = grids.tolist()
        return [
            Picture((rows[i][0], rows[i][1], rows[i][2]), features)
            for i, features in enumerate(zip(*layers, strict=True))
        ]

    def _joined(self, pictures: Sequence[Picture]) -> SimpleNamespace:
        """What `get_image_features` would have given for these pictures."""
        pads, *deep = zip(*(picture.features for picture in pictures), strict=True)
        return SimpleNamespace(pooler_output=pads, deepstack_features=deep)

    def inputs(
        self,
        pack: Pack,
        grids: NDArray[np.int64],
        pixel_values: NDArray[np.float32] | None = None,
        pictures: Sequence[Picture] = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Inputs:
        """A pack as tensors on a device, with its pictures' `grids` [pictures, 3] and either patches or features."""
        token_ids = torch.from_numpy(pack.token_ids.astype(np.int64)).to(device)
        shown = bool(pack.states)
        return Inputs(
            token_ids=token_ids[None],
            position_ids=torch.from_numpy(self.position_ids(pack, grids if shown else grids[:0])).to(device),
            segments=segments_of(pack.segments, dtype, torch.device(device)),
            predictors=torch.from_numpy(pack.predictors.astype(np.int64)).to(device),
            target_ids=token_ids[torch.from_numpy(pack.targets.astype(np.int64)).to(device)],
            pixel_values=None if pixel_values is None else torch.from_numpy(pixel_values).to(device),
            grids=None if pixel_values is None else torch.from_numpy(grids).to(device),
            shown=shown or pixel_values is None,
            pictures=tuple(pictures),
        )

    def position_ids(self, pack: Pack, grids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[3, 1, L] or [1, L]: those of each segment are what they are in its parent and itself alone."""
        pads = pack.token_ids == self.image_token_id
        if len(grids):
            merge = int(self.model.config.vision_config.spatial_merge_size)
            ends = np.cumsum(grids.prod(1) // merge**2)
            if pads.sum() != ends[-1]:
                raise ValueError(f"{int(pads.sum())} image pads for pictures of {int(ends[-1])} visual tokens")
        before = np.concatenate([[0], np.cumsum(pads)])
        parts = []
        for start, end, parent in pack.segments.tolist():
            seen = pack.segments[parent, :2].tolist() if parent >= 0 else [0, 0]
            types = np.concatenate([pads[slice(*seen)], pads[start:end]])
            its = [
                grids[slice(*np.searchsorted(ends, before[list(span)], "right"))] if len(grids) else grids
                for span in (seen, (start, end))
            ]
            whole = self._positions_of(types, np.concatenate(its))
            parts.append(whole[:, seen[1] - seen[0] : len(types)])
        positions = np.concatenate(parts, axis=1)
        return positions[:, None] if len(positions) == 3 else positions

    def _positions_of(self, pads: NDArray[np.bool_], grids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[3 or 1, at least n] positions of a sequence [n] of which `pads` says where pictures are.

        They depend on what stands before, so those of a longer sequence serve, and one with text behind it is kept.
        """
        if not hasattr(self.model.base_model, "get_rope_index"):
            return np.arange(len(pads))[None]
        padded = np.zeros(-(-len(pads) // _ROUND) * _ROUND, np.int64)
        padded[: len(pads)] = pads
        key = padded.tobytes(), grids.tobytes()
        if key not in self._positions:
            if len(self._positions) >= _KEPT:
                self._positions.clear()
            types = torch.from_numpy(padded)[None]
            made, _ = self.model.base_model.get_rope_index(
                types, mm_token_type_ids=types, image_grid_thw=torch.from_numpy(grids) if len(grids) else None
            )
            self._positions[key] = made[:, 0].numpy()
        return self._positions[key]
