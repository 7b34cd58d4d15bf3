"""Descriptions of boards as tables of words: what a careful reader takes for a cell, and for an empty one.

A description says nothing of what is in doubt: a word that names a tile is that tile, and a column or row is taken for
labels, and a line for a frame, only where what remains fits the board and was not told otherwise.
"""

import functools
import re
from collections.abc import Sequence, Set

from envs.tiles import EMPTY
from envs.wording import FULL_WIDTH

EMPTY_WORDS = frozenset(["", EMPTY, *"empty blank none null nil nothing 0 . _ · – — − -- --- __ ___".split()])
"""What an empty cell is called, unless a tile is called so."""
_AROUND = "*`\"'[]() "  # emphasis, code, quotes and brackets around a cell
_RULER = re.compile(r":?-{2,}:?")
_ROW = re.compile(r"[*_]{0,2}(?:(?:row|line|r) ?#?([0-9]{1,2})[*_]{0,2} ?[:.)|-]|([0-9]{1,2}) ?:)[*_]{0,2}")
_ROW_LABEL = re.compile(r"(?:row|line|r)? ?#?([0-9]{1,2})[:.)]?")
_COLUMN = re.compile(r"(?:column|col|c) ?#?[0-9]{1,2}:?")


def read_table(text: str, names: Sequence[str], rows: int, cols: int) -> list[list[str]]:
    """The cells of a description of a board [rows, cols] of tiles with these names, in lower case; `EMPTY` where empty.

    Blank lines, code fences, the ruler and the header of a table and labels of rows are passed over. Rows come as they
    are told, with too few cells or too many.
    """
    tiles, empty = _vocabulary(tuple(names))
    lines = _lines(text)
    asked = [[cell.strip() for cell in line.split("|")] for line in lines]
    if len(asked) == rows and all(len(row) == cols and tiles.issuperset(row) for row in asked):
        return asked  # as the prompt asks for it, and nothing to think about
    lines = _unlabelled(lines)
    rulers = [at for at, line in enumerate(lines) if all(map(_RULER.fullmatch, _trimmed(line.strip("|").split("|"))))]
    if rulers and not len(lines) - len(rulers) < rows == len(lines):  # then those are rows of empty cells
        lines = [line for at, line in enumerate(lines) if at not in rulers]
    table = _split(lines, cols, empty)
    if any(len(row) != cols for row in table):
        labelled = _split(lines, cols + 1, empty)
        start = int(len(labelled) == rows + 1)
        labels = [row[0].strip(_AROUND) for row in labelled[start:]]
        if all(len(row) == cols + 1 for row in labelled[start:]) and _counted(labels, _ROW_LABEL, tiles | empty):
            table = [row[1:] for row in labelled]
    if len(table) > 1 and _is_header(table[0], tiles | empty - {""}, len(table) == rows + 1, rulers[:1] == [1]):
        table = table[1:]
    return [[_word(cell, tiles, empty) for cell in row] for row in table]


@functools.lru_cache(maxsize=64)
def _vocabulary(names: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """What the tiles are called and what an empty cell is, in lower case; `EMPTY` is in both."""
    tiles = frozenset(name.lower() for name in names)
    empty = EMPTY_WORDS - (tiles - {EMPTY})
    # Among letters and digits a 0 may be one of them, misread.
    return tiles | {EMPTY}, empty - {"0"} if all(len(name) == 1 for name in tiles) else empty


def _trimmed(cells: list[str]) -> list[str]:
    return [" ".join(cell.split()) for cell in cells]


def _lines(text: str) -> list[str]:
    """The lines that are not blank and not a fence's own."""
    lines = []
    for line in text.translate(FULL_WIDTH).lower().splitlines():
        line = line.strip()
        if line.startswith("```"):
            line = line.strip("`").strip()
            line = line if "|" in line else ""
        if line:
            lines.append(line)
    return lines


def _unlabelled(lines: list[str]) -> list[str]:
    """Without `Row 0:` and the like before each line, where they count up; a first line may have none."""
    found = [_ROW.match(line) for line in lines]
    labelled = [label for label in found if label]
    numbers = [int(label[1] or label[2]) for label in labelled]
    first = numbers[0] if numbers else 2
    if first > 1 or numbers != list(range(first, first + len(numbers))) or not all(found[1:]):
        return lines
    return [line[label.end() :].strip() or "|" if label else line for line, label in zip(lines, found, strict=True)]


def _split(lines: list[str], width: int, empty: Set[str]) -> list[list[str]]:
    """The cells of lines. A | at the edges is a frame where every line has it, else it has a blank cell beside it."""
    framed = [len(line) > 1 and line[0] == line[-1] == "|" for line in lines]
    table = [line.split("|") for line in lines]
    inner = [cells[1:-1] for cells, frame in zip(table, framed, strict=True) if frame]
    frames = any(len(cells) == width for cells in inner) or (
        all(framed)
        and (
            any(len(cells) != width for cells in table)
            or any(cell.strip() and cell.strip(_AROUND) in empty for cells in inner for cell in cells)
        )
    )
    for at, (line, frame) in enumerate(zip(lines, framed, strict=True)):
        if frame and frames:
            table[at] = table[at][1:-1]
        elif len(table[at]) != width:
            table[at] = line.strip("|").split("|")
    return [_trimmed(cells) for cells in table]


def _counted(labels: list[str], pattern: re.Pattern[str], words: Set[str]) -> bool:
    """Whether labels count up from 0 or 1, and are not all words that a cell may be told in."""
    found = [pattern.fullmatch(label) for label in labels]
    numbers = [int(label[1]) for label in found if label]
    return (
        len(numbers) == len(labels) > 0
        and numbers[0] < 2
        and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        and not all(label in words for label in labels)
    )


def _is_header(row: list[str], words: Set[str], one_more: bool, ruled: bool) -> bool:
    """Whether the first row names columns; `one_more`: without it there are as many as the board has."""
    cells = [cell.strip(_AROUND) for cell in row]
    named = [cell for cell in cells if cell and cell not in ("row", "r", "row\\col", "row/col")]
    if named and all(map(_COLUMN.fullmatch, named)) and not all(cell in words for cell in named):
        return True
    return one_more and (
        (ruled and not (named and all(cell in words for cell in named))) or _counted(named, _ROW_LABEL, words)
    )


def _word(cell: str, tiles: Set[str], empty: Set[str]) -> str:
    """What a cell says: a tile, empty, or words that are no tile's name."""
    if cell in tiles:
        return cell
    bare = cell.strip(_AROUND)
    if bare in empty:
        return EMPTY
    if bare in tiles:
        return bare
    plain = bare.strip("_")
    return plain if plain in tiles else cell
