"""What a tile set is."""

from abc import ABC, abstractmethod

from PIL import Image

EMPTY = "-"
"""What an empty cell is called."""
ROOMY = 56
"""Pixels from which a tile has room for details; smaller ones keep the pixels that shipped models have seen."""


class TileSet(ABC):
    """Pictures and names of the kinds 1, 2, ...; the same arguments always give the same picture."""

    names: tuple[str, ...]
    """names[k] is what kind k is called in prompts and descriptions; names[0] is `EMPTY`."""

    photos: bool = False
    """Whether the pictures of a kind are different photos of it, so that equal kinds don't look equal."""

    max_turn: float = 45.0
    """The largest angle, in degrees, by which pictures can be turned and none is taken for one of another name."""

    @property
    def num_kinds(self) -> int:
        """Kinds there are, the empty cell not counted."""
        return len(self.names) - 1

    def num_pictures(self, kind: int) -> int:
        """Different pictures of a kind, at least 1."""
        return 1

    @abstractmethod
    def draw(self, kind: int, picture: int, px: int) -> Image.Image:
        """The picture [px, px] RGBA of kind 1..num_kinds, number 0..num_pictures(kind) - 1, clear where nothing is."""
