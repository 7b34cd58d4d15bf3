"""Tile sets: how the kinds of a game look and what they are called."""

from envs.tiles.base import EMPTY, TileSet
from envs.tiles.drawn import Colors, Glyphs, Numbers, Shapes
from envs.tiles.photos import Cifar10, Folder, Textures

__all__ = ["EMPTY", "Cifar10", "Colors", "Folder", "Glyphs", "Numbers", "Shapes", "Textures", "TileSet"]
