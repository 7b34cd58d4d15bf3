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

FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
"""For `str.translate`: full-width forms look like the ASCII they stand for. No other Unicode digit is taken for one."""

_FENCE = re.compile(r"```[a-z]*\s*(.*?)\s*```", re.DOTALL)
_WRAPPERS = ("**", "*", "__", "`", '"', "'")
_SPACE = re.compile(r"[ \t\r\n\f\v\u00a0]+")


def tidy(body: str) -> str:
    """The body of an answer without what only decorates it: case, white space, fences, emphasis, full-width forms.

    Longer than `MAX_BODY`, it comes back with white space and case settled only.
    """
    text = _SPACE.sub(" ", body.translate(FULL_WIDTH)).strip().lower()
    if len(text) > MAX_BODY:
        return text
    fenced = _FENCE.fullmatch(text)
    if fenced:
        text = fenced[1]
    for wrapper in _WRAPPERS:
        if len(text) > 2 * len(wrapper) and text.startswith(wrapper) and text.endswith(wrapper):
            text = text[len(wrapper) : -len(wrapper)].strip()
    return text.removesuffix(".").rstrip()


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
        """The action that a tidied body names."""

    def read(self, body: str) -> Reading:
        """The action that the body of an answer names, or why it names none."""
        text = tidy(body[: 64 * MAX_BODY])
        if len(body) > 64 * MAX_BODY or len(text) > MAX_BODY:
            return Cause.OVER_LONG
        return self._read(text) if text else Cause.NO_ANSWER


class Choices(ActionFormat):
    """One word out of a few; its number, counted from 0, does as well: `up` or `0`."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.num = len(words)
        self.ask = "one of " + ", ".join(words)
        self._actions = {word: action for action, word in enumerate(words)}

    def write(self, action: int) -> str:
        return self.words[action]

    def _read(self, text: str) -> Reading:
        if text in self._actions:
            return self._actions[text]
        if re.fullmatch(r"[+-]?[0-9]+", text):
            number = small_int(text)
            return number if 0 <= number < self.num else Cause.OUT_OF_BOARD
        return Cause.MALFORMED


_NUMBER = r"([+-]?[0-9]+)"
_CELL = rf"[(\[] ?{_NUMBER} ?[,;] ?{_NUMBER} ?[)\]]"
_PAIR = re.compile(rf"{_CELL} ?(?:,|;|and|to|with|->|→|<->)? ?{_CELL}")


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
        if text[0] in "[(" and text[-1] in "])" and text[1:2] and text[1:].lstrip()[0] in "[(":
            text = text[1:-1].strip()  # a list of two cells: [(0, 1), (2, 3)]
        match = _PAIR.fullmatch(text)
        if not match:
            return Cause.MALFORMED
        row_a, col_a, row_b, col_b = (small_int(group) for group in match.groups())
        if not (
            0 <= row_a < self.rows and 0 <= row_b < self.rows and 0 <= col_a < self.cols and 0 <= col_b < self.cols
        ):
            return Cause.OUT_OF_BOARD
        a, b = row_a * self.cols + col_a, row_b * self.cols + col_b
        return Cause.SAME_CELL if a == b else self.action(a, b)


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
