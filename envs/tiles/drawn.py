"""Tiles drawn with Pillow: flat colours, coloured shapes, number tiles, letters. No font has to be installed.

The held-out variant of each keeps the names and changes shade, size, weight or tilt, so that a model that has learned
what the tiles are, and not only their pixels, still reads it.
"""

import colorsys
import math
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

from envs.tiles.base import EMPTY, ROOMY, TileSet

Color = tuple[int, int, int]
Points = list[tuple[float, float]]

# Twelve colours that a person names without doubt, alone and side by side; train shade, held-out shade.
PALETTE: dict[str, tuple[Color, Color]] = {
    "red": ((226, 32, 40), (178, 16, 28)),
    "blue": ((38, 84, 232), (66, 110, 255)),
    "yellow": ((255, 222, 24), (255, 236, 104)),
    "green": ((34, 158, 58), (22, 124, 42)),
    "purple": ((136, 50, 190), (112, 36, 160)),
    "orange": ((255, 132, 0), (255, 152, 48)),
    "white": ((255, 255, 255), (236, 236, 240)),
    "cyan": ((40, 216, 232), (92, 232, 240)),
    "pink": ((255, 130, 196), (255, 164, 212)),
    "brown": ((124, 76, 36), (102, 60, 28)),
    "gray": ((140, 144, 150), (122, 126, 132)),
    "black": ((12, 12, 14), (26, 26, 28)),
}

_SMOOTH = 4  # pictures are drawn this many times larger and reduced


def _canvas(px: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (px * _SMOOTH, px * _SMOOTH))
    return image, ImageDraw.Draw(image)


def _reduce(image: Image.Image) -> Image.Image:
    return image.reduce(_SMOOTH)


def _rounded(draw: ImageDraw.ImageDraw, px: int, fill: Color, margin: float = 0.05) -> None:
    side, inset = px * _SMOOTH, px * _SMOOTH * margin
    draw.rounded_rectangle((inset, inset, side - 1 - inset, side - 1 - inset), radius=side * 0.1, fill=fill)


class Colors(TileSet):
    """Plain squares in up to twelve colours."""

    def __init__(self, colors: int, heldout: bool) -> None:
        self.names = (EMPTY, *list(PALETTE)[:colors])
        self._heldout = heldout

    def draw(self, kind: int, picture: int, px: int) -> Image.Image:
        image, draw = _canvas(px)
        _rounded(draw, px, PALETTE[self.names[kind]][self._heldout], 0.11 if self._heldout else 0.05)
        return _reduce(image)


def _regular(corners: int, turn: float) -> Points:
    return [(math.cos(math.tau * i / corners + turn), math.sin(math.tau * i / corners + turn)) for i in range(corners)]


def _star() -> Points:
    up = -math.pi / 2
    radius = (1.08, 0.45)
    return [
        (radius[i % 2] * math.cos(up + math.pi * i / 5), 0.06 + radius[i % 2] * math.sin(up + math.pi * i / 5))
        for i in range(10)
    ]


def _heart() -> Points:
    turns = [math.tau * i / 60 for i in range(60)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5)
        for t in turns
    ]


def _cross() -> Points:
    a, b = 0.34, 0.98
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


# Outlines in a box from -1 to 1, y downwards. The ring and the moon have a second outline that is cut out.
_SHAPES: dict[str, Callable[[], tuple[Points, Points | None]]] = {
    "circle": lambda: (_regular(72, 0), None),
    "square": lambda: ([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)], None),
    "triangle": lambda: ([(0, -0.95), (1.02, 0.84), (-1.02, 0.84)], None),
    "star": lambda: (_star(), None),
    "cross": lambda: (_cross(), None),
    "diamond": lambda: ([(0, -1.08), (0.72, 0), (0, 1.08), (-0.72, 0)], None),
    "heart": lambda: (_heart(), None),
    "ring": lambda: (_regular(72, 0), [(0.5 * x, 0.5 * y) for x, y in _regular(72, 0)]),
}
SHAPE_NAMES = tuple(_SHAPES)


class Shapes(TileSet):
    """Shapes in colours, `colors` x `shapes` kinds. Neighbouring kinds differ in both, so that few kinds are varied."""

    HELDOUT_TILT = 14.0  # degrees

    def __init__(self, colors: int, shapes: int, heldout: bool) -> None:
        rounds = math.lcm(colors, shapes)
        pairs = [
            ((i + i // rounds) % colors, i % shapes) for i in range(colors * shapes)
        ]  # each colour with each shape once: the colour is moved on by one whenever the pairs would repeat
        palette = list(PALETTE)
        self._parts = [(palette[color], SHAPE_NAMES[shape]) for color, shape in pairs]
        self.names = (EMPTY, *(f"{color} {shape}" for color, shape in self._parts))
        self._heldout = heldout
        # A square turned by 45 degrees is a diamond, a cross an X: with their own tilt they stay on the near side.
        self.max_turn = 22.0 - (self.HELDOUT_TILT if heldout else 0.0)

    def draw(self, kind: int, picture: int, px: int) -> Image.Image:
        color, shape = self._parts[kind - 1]
        outline, hole = _SHAPES[shape]()
        size, tilt = (0.31, math.radians(self.HELDOUT_TILT)) if self._heldout else (0.38, 0.0)
        image, draw = _canvas(px)

        def place(points: Points) -> Points:
            side = px * _SMOOTH
            cos, sin = math.cos(tilt), math.sin(tilt)
            return [
                (side * (0.5 + size * (x * cos - y * sin)), side * (0.5 + size * (x * sin + y * cos)))
                for x, y in points
            ]

        draw.polygon(place(outline), fill=PALETTE[color][self._heldout])
        if hole:
            draw.polygon(place(hole), fill=(0, 0, 0, 0))
        return _reduce(image)


def _text(draw: ImageDraw.ImageDraw, px: int, text: str, height: float, fill: Color, stroke: float) -> None:
    """Text in the middle, `height` of the tile high, smaller where it would be wider than the tile."""
    side = px * _SMOOTH
    size = side * height
    width = draw.textlength(text, font=ImageFont.load_default(size))
    size *= min(1.0, 0.8 * side / width)
    font = ImageFont.load_default(size)
    draw.text((side / 2, side / 2), text, fill, font, anchor="mm", stroke_width=round(size * stroke), stroke_fill=fill)


class Numbers(TileSet):
    """The tiles of 2048: kind k is 2**k, each with a colour of its own."""

    KINDS = 18

    def __init__(self, heldout: bool) -> None:
        self.names = (EMPTY, *(str(2**k) for k in range(1, self.KINDS + 1)))
        self._heldout = heldout

    def draw(self, kind: int, picture: int, px: int) -> Image.Image:
        # Hues run round the circle by a step that keeps neighbours apart; brightness falls as the numbers rise.
        hue = (0.13 + 0.61 * (kind - 1)) % 1 if self._heldout else (0.14 - 0.075 * (kind - 1)) % 1
        strength = 0.12 if kind == 1 else min(0.85, 0.3 + 0.07 * kind)
        value = 0.97 if kind < 9 else 0.75
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, strength, value))
        bright = 0.3 * red + 0.59 * green + 0.11 * blue > 150
        image, draw = _canvas(px)
        _rounded(draw, px, (red, green, blue))
        ink = (34, 30, 28) if bright else (255, 255, 255)
        # Held-out strokes are heavier, but no more than leaves the counters of 4, 6, 8 and 9 open.
        height, stroke = (0.4, 0.03 if px >= ROOMY else 0.05) if self._heldout else (0.5, 0.02)
        _text(draw, px, self.names[kind], height, ink, stroke)
        return _reduce(image)


class Glyphs(TileSet):
    """Letters and digits, white on black; those that are easily taken for one another are left out."""

    GLYPHS = "ABCDEFGHJKLMNPRSTUVWXYZ34679"

    def __init__(self, heldout: bool) -> None:
        self.names = (EMPTY, *self.GLYPHS)
        self._heldout = heldout

    def draw(self, kind: int, picture: int, px: int) -> Image.Image:
        image, draw = _canvas(px)
        paper, ink = ((238, 236, 228), (24, 24, 30)) if self._heldout else ((24, 26, 32), (250, 250, 250))
        _rounded(draw, px, paper)
        height, stroke = (0.58, 0.035 if px >= ROOMY else 0.07) if self._heldout else (0.72, 0.02)
        _text(draw, px, self.names[kind], height, ink, stroke)
        return _reduce(image)
