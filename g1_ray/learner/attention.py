"""Attention over packs and over pictures, in few large calls: two functions for transformers' attention registry.

`SEGMENTS`, for the language model: a token of a pack sees its own segment up to itself, and all of its segment's
parent. A mask of the whole pack would spend most of its L x L entries on tokens that don't see each other, so segments
of about one length are stacked and attended to together, each with its parent's keys in front of its own.

`CHUNKS`, for the vision tower: transformers calls attention once a picture or window, which on a GPU costs more in
launches than in arithmetic. Chunks of one length are stacked into one call.

Both compute what `sdpa` computes, and are `sdpa` where they are called without segments or chunks.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from g1_ray.types import Ints

SEGMENTS = "g1_ray_segments"
CHUNKS = "g1_ray_flash_chunks"  # transformers hands cumulative lengths to what has 'flash' in its name
_SHORTEST = 6
"""Segments of up to 2^6 tokens are stacked together; longer ones by powers of two."""


@dataclass(frozen=True)
class Stack:
    """B segments of up to Q tokens, that see up to K tokens."""

    queries: torch.Tensor
    """[B, Q] rows of the pack; what fills up is row 0, and its results are not looked at."""
    keys: torch.Tensor
    """[B, K] rows of the pack: those of the parent, then those of the segment."""
    mask: torch.Tensor | None
    """[B, 1, Q, K] what is added to the scores: 0 or -inf; None: causal, the queries are the keys."""


@dataclass(frozen=True)
class Segments:
    """How a pack is attended to."""

    stacks: tuple[Stack, ...]
    rows: torch.Tensor
    """[L] where each token of the pack is among the rows of all stacks."""


def segments_of(bounds: Ints, dtype: torch.dtype, device: torch.device) -> Segments:
    """The stacks for segments [S, 3] of start, end and parent (`Pack.segments`), for queries of `dtype`."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for i, (start, end, parent) in enumerate(bounds.tolist()):
        alike[parent >= 0, max(_SHORTEST, (end - start - 1).bit_length())].append(i)
    stacks, rows, filled = [], np.zeros(int(bounds[-1, 1]), np.int64), 0
    for members in alike.values():
        own = bounds[members].astype(np.int64)
        parents = np.where(own[:, 2:] >= 0, bounds[own[:, 2], :2], 0).astype(np.int64)
        lengths, seen = own[:, 1] - own[:, 0], parents[:, 1] - parents[:, 0]
        across = np.arange(int((lengths + seen).max()))
        queries = _within(own[:, :1] + across[: int(lengths.max())], own[:, 1:2])
        of_parent = across < seen[:, None]
        keys = np.where(of_parent, parents[:, :1] + across, _within(own[:, :1] + across - seen[:, None], own[:, 1:2]))
        mask = None
        if seen.any():
            # Keys that fill up come after all that a real query sees.
            limits = seen[:, None] + np.arange(queries.shape[1])
            hidden = torch.from_numpy(across > limits[:, :, None])[:, None].to(device)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
        stacks.append(Stack(torch.from_numpy(queries).to(device), torch.from_numpy(keys).to(device), mask))
        places = filled + np.arange(queries.size).reshape(queries.shape)
        real = np.arange(queries.shape[1]) < lengths[:, None]
        rows[queries[real]] = places[real]
        filled += queries.size
    return Segments(tuple(stacks), torch.from_numpy(rows).to(device))


def _within(rows: np.ndarray[Any, np.dtype[np.int64]], ends: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.where(rows < ends, rows, 0)


def _gather(rows: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Rows [...] of states [L, width]. An embedding: its backward pass is fast on CPUs, and deterministic on GPUs."""
    return F.embedding(rows, states)


# Both have the arguments with which transformers' registry calls an attention.


def _segments_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, heads, L, D], key and value [1, key heads, L, D]; gives [1, L, heads, D]."""
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    _, heads, length, width = query.shape
    key_heads = key.shape[1]
    by_row = [states[0].transpose(0, 1).reshape(length, -1) for states in (query, key, value)]
    outputs = []
    for stack in segments.stacks:
        size, num_queries = stack.queries.shape
        q = _gather(stack.queries, by_row[0]).view(size, num_queries, heads, width).transpose(1, 2)
        k, v = (_gather(stack.keys, rows).view(size, -1, key_heads, width).transpose(1, 2) for rows in by_row[1:])
        if key_heads != heads:
            k, v = (states.repeat_interleave(heads // key_heads, dim=1) for states in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, stack.mask, is_causal=stack.mask is None, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(size * num_queries, heads * width))
    return _gather(segments.rows, torch.cat(outputs)).view(1, length, heads, width), None


def _chunks_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query, key and value [1, heads, N, D] of chunks that see only themselves; gives [1, N, heads, D]."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    lengths = cu_seq_lens_q.diff().tolist()
    states = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if len(set(lengths)) == 1:
        return _stacked(states, len(lengths), scaling)[None], None
    starts = cu_seq_lens_q.tolist()
    outputs, order = [], []
    for length in sorted(set(lengths)):
        chosen = [start for start, its in zip(starts[:-1], lengths, strict=True) if its == length]
        rows = (torch.tensor(chosen)[:, None] + torch.arange(length)).flatten().to(query.device)
        outputs.append(_stacked([tensor[rows] for tensor in states], len(chosen), scaling))
        order.append(rows)
    back = torch.argsort(torch.cat(order))
    return torch.cat(outputs)[back][None], None


def _stacked(states: Sequence[torch.Tensor], num_chunks: int, scaling: float | None) -> torch.Tensor:
    """Attention [N, heads, D] within `num_chunks` chunks of one length."""
    length, heads, width = states[0].shape
    q, k, v = (tensor.reshape(num_chunks, -1, heads, width).transpose(1, 2) for tensor in states)
    out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
    return out.transpose(1, 2).reshape(length, heads, width)


AttentionInterface.register(SEGMENTS, _segments_forward)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
AttentionInterface.register(CHUNKS, _chunks_forward)
