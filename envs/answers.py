"""Action formats: how an action is written in an answer, and read back.

A reader accepts what a careful person would read without doubt, and nothing else. What it can't read becomes a `Cause`,
never another move and never an exception; all of it runs in time linear in the text.
"""

import functools
import re
from abc import ABC, abstractmethod
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from envs.wording import (
    CALLS,
    CELL_FILLERS,
    CELL_TAILS,
    CHOICE_FILLERS,
    CONNECTIVES,
    FILLERS,
    POINTERS,
    SAME,
    TAILS,
    Lexicon,
    settled,
    undecorated,
)


class Cause(StrEnum):
    """Why an answer is no move."""

    NO_ANSWER = "no answer"
    SEVERAL_ANSWERS = "several answers"
    OVER_LONG = "over-long"
    MALFORMED = "malformed"
    OUT_OF_BOARD = "out of the board"
    SAME_CELL = "same cell twice"


Reading = int | Cause
"""An action, or why there is none."""

MAX_BODY = 256
"""Characters between <answer> and </answer>, after trimming, beyond which nobody reads on."""


class ActionFormat(ABC):
    """How the `num` actions 0..num-1 of a game are asked for, written and read."""

    num: int
    ask: str
    """What the prompt says goes between <answer> and </answer>."""

    @abstractmethod
    def write(self, action: int) -> str:
        """The action as an answer has it."""

    @abstractmethod
    def _read(self, text: str) -> Reading:
        """The action that a settled body names."""

    def read(self, body: str) -> Reading:
        """The action that the body of an answer names, or why it names none."""
        text = settled(body[: 64 * MAX_BODY])
        if len(body) > 64 * MAX_BODY or len(text) > MAX_BODY:
            return Cause.OVER_LONG
        return self._read(text) if text else Cause.NO_ANSWER


class Choices(ActionFormat):
    """One word out of a few; its number, counted from 0, does as well: `up` or `0`.

    Words around it have to be known (`wording.py`), and what is said twice, as in `0: up (↑)`, has to agree.
    """

    def __init__(self, *words: str) -> None:
        self.words = words
        self.num = len(words)
        self.ask = "one of " + ", ".join(words)
        self._actions = {str(number): number for number in range(self.num)}
        self._actions |= {word: action for action, word in enumerate(words)}

    def write(self, action: int) -> str:
        return self.words[action]

    def _read(self, text: str) -> Reading:
        if text in self._actions:
            return self._actions[text]
        lexicon, meanings = _choice_lexicon(self.words)
        split = lexicon.split(undecorated(text))
        if split is None or split[0].count("(") != split[0].count(")"):
            return Cause.MALFORMED
        # Brackets mean no more here than quotes do.
        words = [word for kind, word in zip(*split, strict=True) if kind not in "()"]
        classes = split[0].translate(_NO_BRACKETS)
        found = _CHOICE.fullmatch(classes)
        if not found:
            return Cause.MALFORMED if classes.strip(".") else Cause.NO_ANSWER
        first, end = found.span("said")
        kinds = re.sub("[^wnah]", "", found["said"])
        said = {
            small_int(word) if kind == "n" else meanings[word]
            for kind, word in zip(found["said"], words[first:end], strict=True)
            if kind in kinds
        }
        terse = kinds[0] == "n" or words[first] in POINTERS
        called = not first or not terse or words[first - 1] in CALLS
        if (
            len(said) > 1
            or len(set(kinds)) < len(kinds)
            or not called
            or " ".join(words[end : found.end("tail")]) not in TAILS
        ):
            return Cause.MALFORMED
        action = said.pop()
        return action if 0 <= action < self.num else Cause.OUT_OF_BOARD


_NO_BRACKETS = str.maketrans("s", "n", "()")
_CHOICE = re.compile(r"(?:f[:,-]?)*(?P<said>[wnah](?:[:,.-]?[wnah]){0,2})(?P<tail>f*)(?:\.|!+)?")


@functools.cache
def _choice_lexicon(words: tuple[str, ...]) -> tuple[Lexicon, dict[str, int]]:
    """How moves are found in a text (w: in letters, h: Chinese, a: arrows, f: words around them), and their actions."""
    meanings = {same: action for action, word in enumerate(words) for same in SAME.get(word, "").split()}
    meanings |= {word: action for action, word in enumerate(words)}
    classes = dict.fromkeys((*FILLERS, *CHOICE_FILLERS), "f")
    classes |= {word: "w" if word.isascii() else "h" if word.isalpha() else "a" for word in meanings}
    return Lexicon(classes), meanings


class CellPairs(ActionFormat):
    """Two different cells in any order, `(0, 1) (2, 3)`: rows and columns count from 0 at the top left.

    Action = the index of the unordered pair a < b of cells (cell = row * cols + column) in lexicographic order.
    """

    def __init__(self, rows: int, cols: int) -> None:
        self.rows, self.cols = rows, cols
        self.first, self.second, self.index = _pair_tables(rows * cols)
        self.num = len(self.first)
        self.ask = "two cells as (row, column) (row, column), for example (0, 1) (2, 3)"

    def action(self, a: int, b: int) -> int:
        """The action of two different cells, in either order."""
        return int(self.index[a, b])

    def cells(self, action: int) -> tuple[int, int]:
        """The two cells of an action, the lower first."""
        return int(self.first[action]), int(self.second[action])

    def write(self, action: int) -> str:
        return " ".join(f"({cell // self.cols}, {cell % self.cols})" for cell in self.cells(action))

    def _read(self, text: str) -> Reading:
        usual = _USUAL.fullmatch(text)
        numbers = [small_int(group) for group in usual.groups()] if usual else _four_numbers(text)
        if isinstance(numbers, Cause):
            return numbers
        row_a, col_a, row_b, col_b = numbers
        if not (
            0 <= row_a < self.rows and 0 <= row_b < self.rows and 0 <= col_a < self.cols and 0 <= col_b < self.cols
        ):
            return Cause.OUT_OF_BOARD
        a, b = row_a * self.cols + col_a, row_b * self.cols + col_b
        return Cause.SAME_CELL if a == b else self.action(a, b)


_USUAL = re.compile(r"\(([0-9]+), ?([0-9]+)\),? ?\(([0-9]+), ?([0-9]+)\)")

# Over the classes n: number, R, C: row, column, D: the sign before a Chinese number, A, B: first, second,
# k: connective, f: other words around the cells.
_BARE = "n,n"
_NAMED = "(?:R:?n,?C:?n|C:?n,?R:?n|D?nR,?D?nC|D?nC,?D?nR)"
_CELL = rf"(?:\([ns][,;]?[ns]\)|\({_NAMED}\)|{_NAMED})"
_LABELS = "(?:[fB]:?)*"
_PAIR = re.compile(
    rf"(?:[fA]:?,?)*(?:\({{0,2}}(?P<a>{_CELL})[,;]?(?:k:?)?{_LABELS}(?P<b>{_CELL})\){{0,2}}"
    rf"|(?P<c>{_BARE})(?:;|,?k)?{_LABELS}(?P<d>{_BARE})"
    r"|(?P<keys>Rn:n,?Cn:n,?Rn:n,?Cn:n))(?P<tail>f*)(?:\.|!+)?"
)
_TILE = re.compile(
    r"(?<![a-z0-9])(?:tile|cell|position|pos|point|coord|coordinate|p)[ _]?([12ab])(?=[^a-z0-9]{0,4}[:=(\[])"
)


@functools.cache
def _cell_lexicon() -> Lexicon:
    """How the words of `_PAIR` are found in a text."""
    classes = dict.fromkeys((*FILLERS, *CELL_FILLERS, *" ".join(CELL_TAILS).split()), "f")
    classes |= dict.fromkeys(CONNECTIVES, "k") | {
        "row": "R",
        "r": "R",
        "行": "R",
        "column": "C",
        "col": "C",
        "c": "C",
        "列": "C",
        "第": "D",
    }
    return Lexicon(classes | {"first": "A", "second": "B"})


def _four_numbers(text: str) -> list[int] | Cause:
    """Row and column of two cells, out of a settled text that names them in any of the ways of `_PAIR`."""
    text = _TILE.sub(lambda tile: " first " if tile[1] in "1a" else " second ", undecorated(text))
    split = _cell_lexicon().split(text)
    if split is None:
        return Cause.MALFORMED
    classes, words = split
    found = _PAIR.fullmatch(classes)
    if (
        not found
        or classes.count("(") != classes.count(")")
        or " ".join(words[slice(*found.span("tail"))]) not in CELL_TAILS
    ):
        return Cause.MALFORMED if classes.strip(".") else Cause.NO_ANSWER

    def numbers(group: str) -> list[int]:
        first, end = found.span(group)
        values = [small_int(words[at]) for at in range(first, end) if classes[at] in "ns"]
        return values[::-1] if group != "keys" and "C" in found[group].partition("R")[0] else values

    if found["keys"]:
        values = numbers("keys")
        return values[1::2] if values[::2] in ([0, 0, 1, 1], [1, 1, 2, 2]) else Cause.MALFORMED
    return [*numbers("a"), *numbers("b")] if found["a"] else [*numbers("c"), *numbers("d")]


def small_int(digits: str) -> int:
    """The number, or a huge one in its place when it has more digits than any board: `int` is slow on those."""
    sign = -1 if digits[0] == "-" else 1
    significant = digits.lstrip("+-").lstrip("0") or "0"
    return sign * (int(significant) if len(significant) < 7 else 10**6)


@functools.cache
def _pair_tables(cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Cells of every pair, [pairs] twice, and the pair of any two cells, [cells, cells] with -1 on the diagonal."""
    first, second = np.triu_indices(cells, 1)
    index = np.full((cells, cells), -1, np.int32)
    index[first, second] = index[second, first] = np.arange(len(first))
    for table in (first, second, index):
        table.flags.writeable = False
    return first, second, index
