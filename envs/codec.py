"""How a VLM is asked about a board, and how its answer is read.

An answer is `<perception>` the board, cell by cell `</perception>`, `<think>` ... `</think>`, `<answer>` the move
`</answer>`. Reading is total: any text gives an `Answer`, in time linear in its length.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, TypeVar

from envs.answers import ActionFormat, Cause
from envs.core import Board
from envs.described import read_table
from envs.task import Task
from envs.tiles import EMPTY

MAX_CHARS = 1 << 16
"""Longer answers are not read: twice what a model can write in the paper's 8192 tokens."""

TAG = re.compile(r"<\s{0,4}(/?)\s{0,4}(perception|think|answer)\s{0,4}>", re.IGNORECASE)
ORDER = ["perception", "think", "answer"]
THINKING_FIRST = ["think", "perception", "answer"]
"""Of an answer that a chat template begins with `<think>`."""


@dataclass(frozen=True)
class Answer:
    """An answer as read: exactly one of `action` and `cause` is set. Texts are None where their tags are missing."""

    action: int | None
    cause: Cause | None
    perception: str | None = None
    thinking: str | None = None
    body: str | None = None
    well_formed: bool = False
    """Perception, thinking and answer once each, in an order of the codec's, none empty, nothing but white space around
    them."""


class PerceptionScore(NamedTuple):
    """Cells of a described board by what became of them. right + wrong + missing = cells; `extra` come on top."""

    right: int
    wrong: int
    missing: int
    extra: int

    @property
    def share(self) -> float:
        """Share of right cells, 0 to 1; extra cells count against it."""
        return self.right / (self.right + self.wrong + self.missing + self.extra)

    @property
    def exact(self) -> bool:
        """Whether the whole board is right."""
        return not (self.wrong or self.missing or self.extra)


class Codec:
    """Prompts and answers of one task.

    `thinks_first`: whether well-formed answers may begin with the thinking, as they have to where the chat template has
    opened it.
    """

    def __init__(self, task: Task, thinks_first: bool = False) -> None:
        self.orders = [ORDER, THINKING_FIRST] if thinks_first else [ORDER]
        self.names = task.renderer.names
        game = task.new_game()
        self.rows, self.cols = game.rows, game.cols
        self.actions: ActionFormat = game.actions
        self.listed = self.names[1:][: game.num_listed]
        self._rules = game.rules(self.names)

    def prompt(self) -> str:
        """What stands beside the picture. It is the same for every state of the task."""
        return (
            f"{self._rules}\n\n"
            f"First describe the board inside <perception></perception>: {self.rows} lines, one for each row from the "
            f"top, each with {self.cols} cells separated by |. A cell is {EMPTY} where it is empty, else one of: "
            f"{', '.join(self.listed)}.\n"
            "Then think inside <think></think>.\n"
            f"Last, give your move inside <answer></answer>: {self.actions.ask}. "
            "Rows and columns count from 0 at the top left."
        )

    def describe(self, board: Board) -> str:
        """The board [rows, cols] in words, as the prompt asks for it."""
        return "\n".join(" | ".join(self.names[kind] for kind in row) for row in board.tolist())

    def write(self, board: Board, thinking: str, action: int) -> str:
        """A whole answer, well formed: what a teacher's sample looks like."""
        return (
            f"<perception>\n{self.describe(board)}\n</perception>\n"
            f"<think>\n{thinking}\n</think>\n"
            f"<answer>{self.actions.write(action)}</answer>"
        )

    def read(self, text: str) -> Answer:
        """The move that an answer gives, or why it gives none. Tags inside a closed block are part of its text."""
        if len(text) > MAX_CHARS:
            return Answer(None, Cause.OVER_LONG)
        blocks, outside, open_answer = blocks_of(text)
        first: dict[str, str] = {}
        for name, body in blocks:
            first.setdefault(name, body)
        bodies = [body for name, body in blocks if name == "answer"]
        if len(bodies) > 1:
            reading: int | Cause = Cause.SEVERAL_ANSWERS
        elif open_answer or (bodies and TAG.search(bodies[0])):
            reading = Cause.MALFORMED
        else:
            reading = self.actions.read(bodies[0]) if bodies else Cause.NO_ANSWER
        cause = reading if isinstance(reading, Cause) else None
        in_order = [name for name, _ in blocks] in self.orders and all(body.strip() for _, body in blocks)
        return Answer(
            action=None if isinstance(reading, Cause) else reading,
            cause=cause,
            perception=first.get("perception"),
            thinking=first.get("think"),
            body=bodies[0] if bodies else None,
            well_formed=cause is None and in_order and not outside.strip(),
        )

    def table(self, description: str) -> list[list[str]]:
        """The cells of a described board: words in lower case, row by row, as many as there are."""
        return read_table(description, self.names, self.rows, self.cols)

    def score_perception(self, text: str | None, board: Board) -> PerceptionScore:
        """A description, cell by cell against the board [rows, cols].

        Rows and cells are compared by position. Only where their number is off they are aligned first, so that one
        missing or doubled cell is counted as that, and the cells after it are not counted wrong.
        """
        truth = [[self.names[kind].lower() for kind in row] for row in board.tolist()]
        # Four boards' worth are read: what comes after can't be this board, and its extra cells were counted by then.
        described = self.table((text or "")[: 1000 + 4 * len(self.describe(board))])
        total = [0, 0, 0, 0]
        for true_row, row in align_rows(truth, described):
            for i, count in enumerate(_compare_row(true_row, row)):
                total[i] += count
        return PerceptionScore(*total)


@functools.lru_cache(maxsize=64)
def prompt_of(task: Task) -> str:
    """What a model is asked about every board of a task."""
    return Codec(task).prompt()


def blocks_of(text: str) -> tuple[list[tuple[str, str]], str, bool]:
    """The outermost closed blocks in order, the text around them, and whether an answer is opened and never closed."""
    tags = list(TAG.finditer(text))
    closing: list[int | None] = []  # for each tag, the next one that closes a block of its name
    nearest: dict[str, int] = {}
    for i in range(len(tags) - 1, -1, -1):
        name = tags[i][2].lower()
        closing.append(nearest.get(name))
        if tags[i][1]:
            nearest[name] = i
    closing.reverse()
    blocks: list[tuple[str, str]] = []
    outside: list[str] = []
    at, end, open_answer = 0, 0, False
    while at < len(tags):
        tag, name = tags[at], tags[at][2].lower()
        close = closing[at]
        if tag[1] or close is None:
            open_answer |= name == "answer" and not tag[1]
            at += 1
            continue
        outside.append(text[end : tag.start()])
        blocks.append((name, text[tag.end() : tags[close].start()]))
        at, end = close + 1, tags[close].end()
    return blocks, "".join([*outside, text[end:]]), open_answer


Counts = tuple[int, int, int, int]  # right, wrong, missing, extra


def _compare_row(truth: Sequence[str], row: Sequence[str]) -> Counts:
    if len(row) == len(truth):
        right = sum(a == b for a, b in zip(truth, row, strict=True))
        return right, len(truth) - right, 0, 0
    kept = row[: 4 * len(truth)]
    pairs = align(truth, kept, lambda a, b: a != b)
    right = sum(a == b for a, b in pairs)
    missing = sum(b is None for _, b in pairs)
    extra = sum(a is None for a, _ in pairs)
    return right, len(pairs) - right - missing - extra, missing, extra + len(row) - len(kept)


def align_rows(truth: list[list[str]], rows: list[list[str]]) -> list[tuple[list[str], list[str]]]:
    """Rows of the board with the rows that describe them, `[]` where there is no counterpart."""
    if len(rows) == len(truth):
        return list(zip(truth, rows, strict=True))
    kept, rest = rows[: 4 * len(truth)], rows[4 * len(truth) :]

    def unlike(a: list[str], b: list[str]) -> float:
        b = b[: 4 * len(a)]
        return sum(x != y for x, y in zip_longest(a, b)) / max(len(a), len(b))

    return [(a or [], b or []) for a, b in align(truth, kept, unlike)] + [([], row) for row in rest]


_T = TypeVar("_T")


def align(
    truth: Sequence[_T], given: Sequence[_T], unlike: Callable[[_T, _T], float]
) -> list[tuple[_T | None, _T | None]]:
    """Pairs in order, None against what has no counterpart, at the least cost: `unlike` 0..1 a pair, 1 for the others.

    The edit distance of Wagner and Fischer (1974), traced back.
    """
    cost = [[float(j) for j in range(len(given) + 1)]]
    for i, a in enumerate(truth, 1):
        row = [float(i)]
        for j, b in enumerate(given, 1):
            row.append(min(cost[-1][j - 1] + unlike(a, b), cost[-1][j] + 1, row[-1] + 1))
        cost.append(row)
    pairs: list[tuple[_T | None, _T | None]] = []
    i, j = len(truth), len(given)
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + unlike(truth[i - 1], given[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((truth[i], given[j]))
        elif i and cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
            pairs.append((truth[i], None))
        else:
            j -= 1
            pairs.append((None, given[j]))
    return pairs[::-1]
