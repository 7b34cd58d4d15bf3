"""The `pixel_values` of a board for VLMs of the Qwen2-VL family, without drawing or normalising a frame."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from envs.core import Board, Looks
from envs.drawing import Renderer

if TYPE_CHECKING:
    from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

_CACHE_BYTES = 1 << 30  # a cache that would grow beyond this is started anew


class PixelValues:
    """Makes from boards of a renderer, bit for bit, what a Hugging Face image processor makes from their frames.

    The processor itself turns finished tiles into patches, each tile once; a frame is put together from copies of
    these, which costs no more than copying a frame of finished patches. Where the patches of a frame aren't those of
    its tiles (an offset board, tiles of broken patches) the processor is given the whole frame instead.

    `grid_thw` is (1, height, width) of a frame in patches, `shape` that of its pixel values. Raises `ValueError` where
    the processor would resize the frames of the renderer.
    """

    def __init__(self, processor: "Qwen2VLImageProcessor | Qwen2VLImageProcessorPil", renderer: Renderer) -> None:
        self.processor, self.renderer = processor, renderer
        patch, merge = processor.patch_size, processor.merge_size
        block = patch * merge
        height, width, channels = renderer.shape
        _check_size(processor, height, width, block)
        self.grid_thw = (1, height // patch, width // patch)
        features = channels * processor.temporal_patch_size * patch * patch
        self.shape = (self.grid_thw[1] * self.grid_thw[2], features)
        self.cached = not renderer.margin and renderer.px % block == 0
        # A tile is `lines` lines of merged patches, which lie together in a frame too: `line` floats each.
        self._lines = renderer.px // block if self.cached else 0
        self._line = self._lines * merge * merge * features
        self._item = np.dtype((np.void, max(1, self._line) * 4))  # a line as one opaque item: one memcpy
        self._line_numbers = np.arange(self._lines)[:, None]
        self._place_of = np.zeros(16, np.int64)  # by slot; 0: not made yet
        self._start_cache()

    def _start_cache(self) -> None:
        self._generation = self.renderer.generation
        self._place_of[:] = 0
        self._num_places = 1
        self._cache = np.zeros((16, self._lines, self._line), np.float32)

    def __call__(self, board: Board, looks: Looks) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
        """The pixel values of a board, [patches, channels * temporal * patch * patch], and `grid_thw`."""
        if not self.cached:
            return self._process([self.renderer.draw(board, looks)]), self.grid_thw
        out = np.empty(self.shape, np.float32)
        with self.renderer.lock:
            self._fill(out, self._places(board, looks))
        return out, self.grid_thw

    def _fill(self, out: NDArray[np.float32], places: NDArray[np.int64]) -> None:
        # The line of the cache that each line of each tile of [rows, lines, cols] is.
        numbers = (places[:, None] * self._lines + self._line_numbers).ravel()
        self._cache.reshape(-1).view(self._item).take(numbers, out=out.reshape(-1).view(self._item), mode="clip")

    def _places(self, board: Board, looks: Looks) -> NDArray[np.int64]:
        """[rows, cols] where in the cache the tiles are; those that are missing are made."""
        slots = self.renderer.slots(board, looks)
        if self._generation != self.renderer.generation:
            self._start_cache()
        if slots.max() >= len(self._place_of):
            self._place_of = np.concatenate([self._place_of, np.zeros(slots.max() + 1, np.int64)])
        places: NDArray[np.int64] = self._place_of[slots]
        if places.all():
            return places
        missing = np.unique(slots[places == 0])
        if (self._num_places + len(missing)) * self._cache[0].nbytes > _CACHE_BYTES:
            self._start_cache()
            missing = np.unique(slots)
        self._add(missing)
        places = self._place_of[slots]
        return places

    def _add(self, slots: NDArray[np.intp]) -> None:
        made = self._process([self.renderer.tile(slot) for slot in slots.tolist()])
        end = self._num_places + len(slots)
        if end > len(self._cache):
            more = np.zeros((max(end - len(self._cache), len(self._cache)), self._lines, self._line), np.float32)
            self._cache = np.concatenate([self._cache, more])
        self._cache[self._num_places : end] = made.reshape(len(slots), self._lines, self._line)
        self._place_of[slots] = np.arange(self._num_places, end)
        self._num_places = end

    def _process(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """[patches of all images, features]."""
        made = self.processor(list(images), do_resize=False, input_data_format="channels_last", return_tensors="np")
        pixel_values: NDArray[np.float32] = made["pixel_values"]
        return pixel_values


def _check_size(
    processor: "Qwen2VLImageProcessor | Qwen2VLImageProcessorPil", height: int, width: int, block: int
) -> None:
    frame = f"frames are {width}x{height} = {width * height} pixels, and the image processor would resize them"
    if height % block or width % block:
        raise ValueError(f"{frame}: sides must be multiples of {block}; make the task with perception patch = {block}")
    low, high = processor.size["shortest_edge"], processor.size["longest_edge"]
    if processor.do_resize and not low <= height * width <= high:
        raise ValueError(
            f"{frame}: its bounds are {low} to {high} pixels; make the task with another perception tile_px, or the "
            "processor with other min_pixels and max_pixels"
        )
