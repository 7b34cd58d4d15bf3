"""What a tile would be called: its nearest colour and its nearest shape, numpy only.

Colours are compared in OKLab, where equal distances look equally different (lightness 0 to 1, so 0.02 is just noticed).
Shapes are compared by normalised cross-correlation of masks with those of unperturbed tiles, shifted a little.
"""

import itertools

import numpy as np
from PIL import Image

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(rgb):
    """OKLab [..., 3] of sRGB [..., 3] 0..255."""
    part = np.asarray(rgb, float) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_OKLAB.T


def smooth(picture):
    """The mean of 3x3 pixels around each: [..., height, width], edges repeated."""
    wide = np.pad(picture, [(0, 0)] * (picture.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def mask(tile, fore, back):
    """How far each pixel of a tile [px, px, 3] is on the way from colour `back` to colour `fore`: [px, px], 0..1."""
    way = np.asarray(fore, float) - back
    return np.clip((tile - np.asarray(back, float)) @ way / (way @ way), 0, 1)


def _normed(masks):
    flat = masks.reshape(len(masks), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


class Templates:
    """Masks [px, px] by name, each turned by `turns` degrees, scaled by `scales`, shifted by up to `reach` pixels."""

    def __init__(self, named, reach=1, turns=(0,), scales=(1,)):
        self.names, masks, shifts = [], [], range(-reach, reach + 1)
        for name, plain in named:
            for turn, scale, down, right in itertools.product(turns, scales, shifts, shifts):
                self.names.append(name)
                masks.append(np.roll(_moved(plain, turn, scale), (down, right), (0, 1)))
        self.masks = np.array(masks, np.float32)
        self._rows = _normed(self.masks)

    def nearest(self, masks):
        """The names of the templates that masks [N, px, px] correlate with best."""
        best = (self._rows @ _normed(np.asarray(masks, np.float32)).T).argmax(0)
        return [self.names[i] for i in best]


def _moved(plain, turn, scale):
    image = Image.fromarray(plain.astype(np.float32))
    px = len(plain)
    if scale != 1:
        small = round(px * scale)
        canvas, edge = Image.new("F", (px, px)), (px - small) // 2
        canvas.paste(image.resize((small, small), Image.Resampling.BOX), (edge, edge))
        image = canvas
    return np.asarray(image.rotate(turn, Image.Resampling.BICUBIC))


def counters(ink):
    """Regions of paper that ink [height, width] bool closes in."""
    unseen = np.pad(~ink, 1, constant_values=True)
    found = -1  # the paper around the ink is none
    while unseen.any():
        region = np.zeros_like(unseen)
        region[np.unravel_index(unseen.argmax(), unseen.shape)] = True
        while True:
            grown = region.copy()
            grown[1:] |= region[:-1]
            grown[:-1] |= region[1:]
            grown[:, 1:] |= region[:, :-1]
            grown[:, :-1] |= region[:, 1:]
            grown &= unseen
            if (grown == region).all():
                break
            region = grown
        unseen &= ~region
        found += 1
    return found


def paper_and_ink(tile):
    """The colours of an unperturbed tile of text: what most of its middle has, and what is farthest from that."""
    seen = middle(tile).reshape(-1, 3).astype(float)
    paper = np.median(seen, 0)
    away = np.abs(seen - paper).sum(-1)
    return paper, seen[away >= np.percentile(away, 99.5)].mean(0)


def middle(tile):
    """A tile without its outer tenth, where the cell behind it shows."""
    edge = round(len(tile) / 10)
    return tile[edge:-edge, edge:-edge]
