"""How a board looks: the perception axis of difficulty.

`Perception` is the description (tile set, variant, perturbations, sizes), `Look` what follows from it. Perturbations
act on single tiles and are decided by the tile's look, so that all of them compose with all tile sets, the picture of
a state is always the same, and each perturbed tile is made only once. (`offset` moves the board as a whole.)
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from envs.options import Options, option
from envs.tiles import Cifar10, Colors, Folder, Glyphs, Numbers, Shapes, Textures, TileSet
from envs.tiles.base import ROOMY
from envs.tiles.drawn import PALETTE, SHAPE_NAMES

TILE_SETS = ("colors", "shapes", "numbers", "glyphs", "photos", "cifar10", "folder")
FRAME = 672  # pixels a side that a frame is made for when no tile size is given
VARIATIONS = 16  # differently perturbed copies of one picture
_SLATE = (58, 64, 76)
_LIFT = 20  # brightness that patterns add to slate: darker than slate, black would vanish on it, and brighter, gray
_LUMA = (0.299, 0.587, 0.114)  # what red, green and blue add to brightness
_FRAME = (40, 44, 53)


@dataclass(frozen=True)
class Perception(Options):
    """Perception options of every game."""

    tiles: str = option(
        "shapes", "tile set; 'photos' are procedural, 'cifar10' and 'folder' need path", choices=TILE_SETS
    )
    split: str = option("train", "variant of the tile set", choices=("train", "heldout"))
    path: str = option("", "folder of the photos of 'cifar10' and 'folder'")
    colors: int = option(0, "colours in use; 0: as few as the game needs", low=0, high=len(PALETTE))
    shapes: int = option(0, "shapes in use; 0: as few as the game needs", low=0, high=len(SHAPE_NAMES))
    patch: int = option(28, "pixels that frames are a multiple of: 28 for Qwen2.5-VL, 32 for Qwen3-VL", low=1, high=128)
    tile_px: int = option(
        0, f"pixels of a tile; 0: whole patches, for a frame of about {FRAME} pixels", low=0, high=512
    )
    rotation: float = option(
        0.0, "largest angle by which tiles are turned, in degrees; 'shapes' stop at 22", low=0.0, high=45.0
    )
    jitter: float = option(0.0, "change of colour, brightness and contrast, 1: by up to a half", low=0.0, high=1.0)
    blur: float = option(0.0, "radius of the blur, 1: a tenth of a tile", low=0.0, high=1.0)
    resolution: float = option(1.0, "share of the tile's pixels a side that are kept", low=0.05, high=1.0)
    noise: float = option(0.0, "strength of the noise, 1: deviation of a quarter of the range", low=0.0, high=1.0)
    background: str = option("plain", "what lies behind the tiles", choices=("plain", "stripes", "marble"))
    offset: int = option(0, "largest shift of the board within the picture, in pixels", low=0, high=128)
    blank: int = option(0, "1: nothing is drawn, to find out what a player knows without looking", low=0, high=1)

    def grid(self, num_kinds: int) -> tuple[int, int]:
        """Colours and shapes of the tile set 'shapes' for a game with that many kinds."""
        colors, shapes = self.colors, self.shapes
        if not colors and not shapes:
            shapes = min(len(SHAPE_NAMES), math.isqrt(num_kinds - 1) + 1)
        if not colors:
            colors = min(len(PALETTE), -(-num_kinds // shapes))
        if not shapes:
            shapes = min(len(SHAPE_NAMES), -(-num_kinds // colors))
        return colors, shapes

    def max_kinds(self) -> int:
        """The most kinds a game can show with this tile set."""
        if self.tiles == "shapes":
            return (self.colors or len(PALETTE)) * (self.shapes or len(SHAPE_NAMES))
        return self.tile_set(1).num_kinds

    def tile_set(self, num_kinds: int) -> TileSet:
        """The tile set, shared within the process. Raises `ValueError` for a `path` without what is needed."""
        FOLDERS.add(self.path)
        colors, shapes = self.grid(num_kinds) if self.tiles == "shapes" else (self.colors or len(PALETTE), 0)
        return _tile_set(self.tiles, self.split == "heldout", self.path, colors, shapes)

    @property
    def varies(self) -> bool:
        """Whether copies of one picture differ from tile to tile."""
        return self.rotation > 0 or self.jitter > 0 or self.noise > 0 or self.background != "plain"


FOLDERS: set[str] = set()
"""Folders of photos that a config or a command has named: what data names besides is not opened."""


@functools.cache
def _tile_set(tiles: str, heldout: bool, path: str, colors: int, shapes: int) -> TileSet:
    match tiles:
        case "colors":
            return Colors(colors, heldout)
        case "shapes":
            return Shapes(colors, shapes, heldout)
        case "numbers":
            return Numbers(heldout)
        case "glyphs":
            return Glyphs(heldout)
        case "photos":
            return Textures(heldout)
        case "cifar10":
            return Cifar10(path, heldout)
    return Folder(path, heldout)


@dataclass(frozen=True)
class Look:
    """A tile set with its perturbations: finished tiles for (kind, look)."""

    perception: Perception
    tiles: TileSet
    px: int

    def period(self, kind: int) -> int:
        """Looks after which the tiles of a kind repeat; kind 0 is the empty cell."""
        pictures = self.tiles.num_pictures(kind) if kind else 1
        return math.lcm(pictures, VARIATIONS) if self.perception.varies else pictures

    def tile(self, kind: int, look: int) -> NDArray[np.uint8]:
        """The finished tile, [px, px, 3] RGB."""
        options, px = self.perception, self.px
        if options.blank:
            return np.full((px, px, 3), _SLATE, np.uint8)
        # Both halves of a split draw their perturbations from different generators, like all else that is held out.
        # And from others than the pictures themselves, which photos draw from [kind, picture, split].
        rng = np.random.default_rng([kind, look % VARIATIONS, options.split == "heldout", 1])
        angle, *shift = rng.uniform(-1, 1, 4)
        tile = _background(options.background, px, rng)
        if kind:
            picture = self._turned(kind, look % self.tiles.num_pictures(kind), angle)
            tile.paste(picture, mask=picture)
            # A frame, so that equal neighbours don't run together.
            if self.tiles.photos and px >= ROOMY:
                edge = px // ROOMY
                ImageDraw.Draw(tile).rectangle((0, 0, px - 1, px - 1), outline=_FRAME, width=edge)
        if options.jitter:
            enhancers = (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast)
            for enhance, amount in zip(enhancers, shift, strict=True):
                tile = enhance(tile).enhance(1 + 0.5 * options.jitter * amount)
        if options.resolution < 1:
            small = max(1, round(px * options.resolution))
            tile = tile.resize((small, small), Image.Resampling.BOX).resize((px, px), Image.Resampling.NEAREST)
        if options.blur:
            tile = tile.filter(ImageFilter.GaussianBlur(0.1 * px * options.blur))
        pixels = np.asarray(tile)
        if options.noise:
            noisy = pixels + rng.normal(0, 64 * options.noise, pixels.shape)
            pixels = np.clip(noisy, 0, 255).astype(np.uint8)
        return pixels

    def _turned(self, kind: int, picture: int, angle: float) -> Image.Image:
        """A picture of a kind [px, px] RGBA, turned by that share, -1..1, of the largest angle."""
        largest = min(self.perception.rotation, self.tiles.max_turn)
        if not largest:
            return self.tiles.draw(kind, picture, self.px)
        fine = 1 if self.px >= ROOMY else 2  # turned pixel by pixel, a small tile would lose its thin strokes
        drawn = self.tiles.draw(kind, picture, fine * self.px)
        return drawn.rotate(angle * largest, Image.Resampling.BICUBIC).reduce(fine)


def _background(name: str, px: int, rng: np.random.Generator) -> Image.Image:
    """An opaque cell [px, px] RGB, a little darker at its edges so that cells can be told apart."""
    pixels = np.empty((px, px, 3))
    pixels[...] = _SLATE
    if name == "stripes":
        y, x = np.mgrid[0:px, 0:px] / px
        waves = np.sin(math.tau * (rng.integers(2, 5) * x + rng.integers(-3, 4) * y))
        pixels += _LIFT * (waves > 0)[..., None]
    elif name == "marble":
        veins = Image.fromarray(rng.random((6, 6)).astype(np.float32)).resize((px, px), Image.Resampling.BICUBIC)
        tint = rng.uniform(0.2, 1.8, 3)
        pixels += _LIFT * np.asarray(veins).clip(0, 1)[..., None] * tint / (tint @ _LUMA)
    edge = max(1, px // 56)
    pixels[:edge] *= 0.7
    pixels[-edge:] *= 0.7
    pixels[edge:-edge, :edge] *= 0.7
    pixels[edge:-edge, -edge:] *= 0.7
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
