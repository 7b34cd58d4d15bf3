"""Photographs as tiles: procedural ones that need no file, CIFAR-10 in its binary format, a folder of images by class.

Kinds match by class, and every look of a kind is another photo. Train and held-out photos never overlap.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.tiles.base import EMPTY, ROOMY, TileSet

Floats = NDArray[np.float64]
_SIDE = 96  # pixels of a procedural photo before it is scaled to a tile


def _noise(rng: np.random.Generator, wide: float, high: float, octaves: int = 4) -> Floats:
    """Smooth noise [_SIDE, _SIDE] in 0..1; `wide` and `high` count its largest waves across and down the picture."""
    total = np.zeros((_SIDE, _SIDE))
    for octave in range(octaves):
        rows, cols = max(2, round(high * 2**octave) + 1), max(2, round(wide * 2**octave) + 1)
        grid = Image.fromarray(rng.random((rows, cols)).astype(np.float32))
        total += np.asarray(grid.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)) / 2**octave
    total -= total.min()
    return total / total.max()


def _blend(amount: Floats, *colors: tuple[int, int, int]) -> Floats:
    """Colours [_SIDE, _SIDE, 3] along a scale: 0 the first, 1 the last."""
    stops = np.linspace(0, 1, len(colors))
    return np.stack([np.interp(amount, stops, [color[i] for color in colors]) for i in range(3)], axis=-1)


def _grid() -> tuple[Floats, Floats]:
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    return x, y


def _cells(rng: np.random.Generator, num: int) -> tuple[Floats, NDArray[np.intp]]:
    """Distance to the border between the two nearest of `num` scattered points, and the nearest point."""
    x, y = _grid()
    at = rng.random((num, 2)) * 1.3 - 0.15
    distance = np.sqrt((x[..., None] - at[:, 0]) ** 2 + (y[..., None] - at[:, 1]) ** 2)
    two = np.partition(distance, 1, axis=-1)
    return two[..., 1] - two[..., 0], distance.argmin(-1)


def _bricks(rng: np.random.Generator) -> Floats:
    x, y = _grid()
    rows = rng.integers(5, 8)
    down = y * rows + rng.random()
    row = np.floor(down)
    along = x * rows / 2 + 0.5 * (row % 2) + rng.random()
    edge = np.minimum(np.minimum(along % 1, 1 - along % 1) * 2, np.minimum(down % 1, 1 - down % 1))
    shade = (np.sin(row * 12.9 + np.floor(along) * 78.2) * 43758.5) % 1
    brick = _blend(0.5 * shade + 0.5 * _noise(rng, 12, 12), (118, 38, 24), (196, 92, 62))
    return np.where((edge > 0.09)[..., None], brick, _blend(_noise(rng, 20, 20), (176, 170, 160), (214, 208, 198)))


def _wood(rng: np.random.Generator) -> Floats:
    x, y = _grid()
    bend = 0.35 * _noise(rng, 1.5, 1, 2)
    rings = (np.sin((y + bend) * rng.uniform(45, 70)) + 1) / 2
    grain = 0.55 * rings + 0.45 * _noise(rng, 2, 40, 2)
    return _blend(grain, (112, 66, 30), (160, 104, 54), (206, 154, 96))


def _grass(rng: np.random.Generator) -> Floats:
    blades = 0.6 * _noise(rng, 30, 6, 3) + 0.4 * _noise(rng, 3, 3)
    return _blend(blades**1.3, (14, 52, 10), (50, 128, 26), (146, 204, 74))


def _sea(rng: np.random.Generator) -> Floats:
    x, y = _grid()
    waves = (np.sin(y * 46 * (1 + 0.4 * y) + 7 * _noise(rng, 3, 2, 3) + rng.random() * 6) + 1) / 2
    return _blend(0.65 * waves + 0.35 * _noise(rng, 8, 14, 3), (6, 40, 96), (16, 92, 158), (130, 206, 232))


def _sand(rng: np.random.Generator) -> Floats:
    x, y = _grid()
    ripples = (np.sin((y + 0.35 * x) * 30 + 5 * _noise(rng, 2, 2, 2) + rng.random() * 6) + 1) / 2
    return _blend(0.5 * ripples + 0.5 * rng.random((_SIDE, _SIDE)) ** 0.7, (196, 152, 92), (236, 204, 146))


def _clouds(rng: np.random.Generator) -> Floats:
    puffs = np.clip((_noise(rng, 2.5, 3.5, 5) - 0.42) * 3.2, 0, 1)
    return _blend(puffs, (74, 142, 224), (176, 208, 242), (255, 255, 255))


def _pebbles(rng: np.random.Generator) -> Floats:
    border, nearest = _cells(rng, 34)
    tone = rng.random(34)[nearest] * 0.6 + 0.2
    stone = _blend(np.clip(tone + np.clip(border * 4, 0, 0.3), 0, 1), (84, 84, 86), (150, 150, 150), (214, 212, 206))
    return np.where((border > 0.03)[..., None], stone, np.array([26.0, 26.0, 28.0]))


def _fire(rng: np.random.Generator) -> Floats:
    _, y = _grid()
    heat = np.clip(1.25 * y + 0.9 * _noise(rng, 5, 2, 4) - 0.55, 0, 1)
    return _blend(heat, (16, 2, 2), (150, 18, 4), (240, 90, 6), (255, 190, 34), (255, 246, 170))


def _stars(rng: np.random.Generator, smallest: float = 0.006) -> Floats:
    x, y = _grid()
    sky = _blend(_noise(rng, 2, 2, 4), (4, 4, 20), (16, 14, 52), (56, 30, 92))
    for _ in range(26):
        at_x, at_y, size = rng.random(), rng.random(), rng.uniform(smallest, 0.022)
        glow = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / size**2)
        sky = sky + glow[..., None] * (255 - sky)
    return sky


def _zebra(rng: np.random.Generator) -> Floats:
    x, y = _grid()
    turn = rng.uniform(-0.5, 0.5)
    phase = (x * np.cos(turn) + y * np.sin(turn)) * rng.uniform(34, 42) + 9 * _noise(rng, 2, 2, 2)
    return _blend(np.clip(np.sin(phase) * 4 + 0.5, 0, 1), (16, 14, 14), (242, 238, 230))


def _leopard(rng: np.random.Generator) -> Floats:
    border, nearest = _cells(rng, 40)
    fur = _blend(_noise(rng, 10, 10), (196, 130, 50), (236, 184, 98))
    spot = (border > 0.055) & (border < 0.13 + 0.04 * rng.random(40)[nearest])
    return np.where(spot[..., None], np.array([38.0, 22.0, 12.0]), fur)


def _cloth(rng: np.random.Generator) -> Floats:
    x, y = _grid()
    bands = rng.integers(3, 5)
    across, down = (x * bands + rng.random()) % 1 < 0.5, (y * bands + rng.random()) % 1 < 0.5
    weave = 0.85 + 0.15 * ((np.arange(_SIDE)[:, None] + np.arange(_SIDE)) % 3 == 0)
    base = _blend((across.astype(float) + down) / 2, (246, 240, 232), (222, 120, 150), (168, 22, 70))
    return base * weave[..., None]


_TEXTURES: dict[str, Callable[[np.random.Generator], Floats]] = {
    "bricks": _bricks,
    "grass": _grass,
    "sea": _sea,
    "fire": _fire,
    "zebra": _zebra,
    "clouds": _clouds,
    "leopard": _leopard,
    "stars": _stars,
    "wood": _wood,
    "pebbles": _pebbles,
    "cloth": _cloth,
    "sand": _sand,
}
# The smallest stars are less than a pixel, and gone once the tile is perturbed.
_ROOMY_TEXTURES = _TEXTURES | {"stars": functools.partial(_stars, smallest=0.013)}


def _as_tile(pixels: NDArray[np.uint8], px: int) -> Image.Image:
    return Image.fromarray(pixels).resize((px, px), Image.Resampling.BICUBIC).convert("RGBA")


class Textures(TileSet):
    """Photo-like pictures of twelve materials, `PICTURES` of each and as many other ones held out."""

    PICTURES = 64
    photos = True

    def __init__(self, heldout: bool) -> None:
        self.names = (EMPTY, *_TEXTURES)
        self._heldout = heldout

    def num_pictures(self, kind: int) -> int:
        return self.PICTURES

    def draw(self, kind: int, picture: int, px: int) -> Image.Image:
        rng = np.random.default_rng([kind, picture, self._heldout])
        pixels = (_ROOMY_TEXTURES if px >= ROOMY else _TEXTURES)[self.names[kind]](rng)
        light = rng.uniform(0.82, 1.12) + rng.uniform(-0.12, 0.12) * _grid()[0][..., None]
        tint = rng.uniform(0.95, 1.05, 3)
        return _as_tile(np.clip(pixels * light * tint, 0, 255).astype(np.uint8), px)


class Cifar10(TileSet):
    """CIFAR-10 from the files of its binary version: the five training batches, or the test batch held out.

    `path` is the folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`. Files are mapped, not read.
    """

    CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
    photos = True

    def __init__(self, path: str, heldout: bool) -> None:
        folder = Path(path)
        files = [folder / "test_batch.bin"] if heldout else sorted(folder.glob("data_batch_*.bin"))
        if not path or not files or not all(file.is_file() for file in files):
            raise ValueError(
                f"path = {path!r}: no CIFAR-10 {'test_batch.bin' if heldout else 'data_batch_*.bin'} there; give the "
                "folder that the binary version of CIFAR-10 unpacks to"
            )
        for file in files:
            if file.stat().st_size == 0 or file.stat().st_size % self.RECORD:
                raise ValueError(f"{file}: {file.stat().st_size} bytes are not a number of CIFAR-10 records")
        self._records = [np.memmap(file, np.uint8, "r").reshape(-1, self.RECORD) for file in files]
        labels = np.concatenate([records[:, 0] for records in self._records])
        if labels.max() >= len(self.CLASSES):
            raise ValueError(f"{folder}: a record is labelled {labels.max()}; CIFAR-10 has the labels 0 to 9")
        # Shuffled once, so that looks next to each other are unrelated photos.
        order = np.random.default_rng(10).permutation(len(labels))
        self._of_kind = [order[labels[order] == label] for label in range(len(self.CLASSES))]
        for name, photos in zip(self.CLASSES, self._of_kind, strict=True):
            if not len(photos):
                raise ValueError(f"{folder}: no photo of class {name}")
        self.names = (EMPTY, *self.CLASSES)

    def num_pictures(self, kind: int) -> int:
        return len(self._of_kind[kind - 1])

    def draw(self, kind: int, picture: int, px: int) -> Image.Image:
        number = int(self._of_kind[kind - 1][picture])
        for records in self._records:
            if number < len(records):
                break
            number -= len(records)
        return _as_tile(np.ascontiguousarray(records[number, 1:].reshape(3, 32, 32).transpose(1, 2, 0)), px)


class Folder(TileSet):
    """Your own photos: a folder with a folder of images for each class.

    Where `path` has folders `train` and `test`, these are the two variants; otherwise a fifth of each class, chosen by
    the hash of the file's name, is held out.
    """

    ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
    photos = True

    def __init__(self, path: str, heldout: bool) -> None:
        root = Path(path)
        split = (root / "train").is_dir() and (root / "test").is_dir()
        base = root / ("test" if heldout else "train") if split else root
        classes = sorted(entry for entry in base.iterdir() if entry.is_dir()) if path and base.is_dir() else []
        if not classes:
            raise ValueError(f"path = {path!r}: expected a folder with a folder of images for each class")
        if len(classes) > 255:
            raise ValueError(f"path = {path!r}: {len(classes)} classes; at most 255 fit")
        self._files = [self._photos(folder, heldout, split) for folder in classes]
        self.names = (EMPTY, *(folder.name.replace("_", " ").replace("|", " ").strip() for folder in classes))

    def _photos(self, folder: Path, heldout: bool, split: bool) -> list[Path]:
        files = [file for file in folder.iterdir() if file.suffix.lower() in self.ENDINGS]
        files.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
        if not split:
            kept = max(1, len(files) // 5)
            files = files[:kept] if heldout else files[kept:]
        if not files:
            raise ValueError(
                f"{folder}: no {'held-out' if heldout else 'training'} image ({', '.join(self.ENDINGS)}); "
                "a class needs at least one for each of the two"
            )
        return files

    def num_pictures(self, kind: int) -> int:
        return len(self._files[kind - 1])

    def draw(self, kind: int, picture: int, px: int) -> Image.Image:
        with Image.open(self._files[kind - 1][picture]) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
        return square.resize((px, px), Image.Resampling.LANCZOS).convert("RGBA")
