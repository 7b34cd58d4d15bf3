"""How models put a move into words: what only decorates it, what may stand around it, and what means the same.

Every word that may stand in an answer is in a table here. The grammars of `answers.py` are written over classes of
words, a letter each. What is in no table makes an answer unreadable: negations, doubts, alternatives need no rules.
"""

import html
import itertools
import re
from collections.abc import Mapping

FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
"""For `str.translate`: full-width forms look like the ASCII they stand for. No other Unicode digit is taken for one."""

_ALIKE = {'"': "“”„«»「」『』", "'": "‘’‚‹›", "[": "【〔", "]": "】〕", ".": "。", ",": "、", "-": "‐‑‒–—―−"}
_TYPES = FULL_WIDTH | {ord(other): plain for plain, others in _ALIKE.items() for other in others}
_SPACE = re.compile(r"[ \t\r\n\f\v\u00a0\u2000-\u200a\u202f]+")

DECORATION = "*_`\"'$✅✔✓{}"
"""Characters that may stand around words: emphasis, code, quotes, mathematics, ticks, braces."""
LANGUAGES = (
    "text",
    "txt",
    "plaintext",
    "plain",
    "markdown",
    "md",
    "json",
    "python",
    "py",
    "latex",
    "tex",
    "bash",
    "html",
)
"""Words that a fence's first line may consist of. No other word is ever passed over."""
TAGS = (
    "b",
    "strong",
    "i",
    "em",
    "u",
    "code",
    "span",
    "p",
    "div",
    "mark",
    "kbd",
    "pre",
    "br",
    "center",
    "action",
    "move",
)
"""HTML tags that leave what they mark as it is: not <s> nor <del>."""
COMMENTS = ("reason", "reasoning", "explanation", "thought", "thoughts", "thinking", "rationale", "comment")
"""Keys of a JSON object whose text is not read."""
_TEX = {
    **dict.fromkeys(
        ("boxed", "fbox", "text", "textbf", "textit", "texttt", "textrm", "textsf", "mathbf", "mathit"), ""
    ),
    **dict.fromkeys(("mathrm", "mathtt", "mathsf", "operatorname", "emph", "bm", "bf", "rm", "left", "right"), ""),
    **dict.fromkeys(("displaystyle", "big", "bigl", "bigr", "quad", "qquad", "n", "t"), " "),
    **dict.fromkeys("()[],;:!\\ *_`'\"$", " "),
    **dict.fromkeys(("rightarrow", "longrightarrow", "to", "mapsto"), "→"),
    **dict.fromkeys(("leftrightarrow", "longleftrightarrow", "rightleftarrows", "rightleftharpoons", "iff"), "↔"),
    **{"leftarrow": "←", "uparrow": "↑", "downarrow": "↓", "&": "&", "{": "{", "}": "}", "-": "-"},
}
"""LaTeX commands without backslash, lower-case, and what they show. Others, as \\cancel or \\neg, are unreadable."""

FILLERS = (
    "i i'll i'm am we we'll will shall let let's us my our the so therefore thus hence now ok okay here here's final "
    "best optimal chosen selected next answer action move choice decision output result solution is to be going go "
    "choose select pick take make play perform execute for "
    "我 我们 的 选择 選擇 选 决定 最终 最佳 最好 最优 答案 动作 動作 行动 操作 移动 移動 是 为 要 将 會 会"
).split()
"""What may stand before a move in any game."""

CHOICE_FILLERS = (
    "with slide swipe shift push press direction key button arrow tile tiles all everything board moving sliding "
    "toward towards in 向 往 朝 方向 滑动 滑動 移 滑 方 边"
).split()
"""What else may stand before a word that is chosen, or after it."""
CALLS = frozenset(": = is be choose select pick press take play 是 为 选择 選擇 选".split())
"""What has to come before a number, or one of `POINTERS`, that doesn't stand first: `move 1` may be the first."""
POINTERS = frozenset("→➡⇨⇒▶")
"""Arrows to the right that may as well lead up to something else."""
SAME = {
    "up": "upward upwards arrowup ↑ ⬆ ⇧ ⇑ ▲ 🔼 上",
    "right": "rightward rightwards arrowright → ➡ ⇨ ⇒ ▶ 右",
    "down": "downward downwards arrowdown ↓ ⬇ ⇩ ⇓ ▼ 🔽 下",
    "left": "leftward leftwards arrowleft ← ⬅ ⇦ ⇐ ◀ 左",
}
"""What means the same as a word of a game."""
TAILS = frozenset(
    [
        "",
        *"arrow|key|arrow key|button|direction|移动|移動|移|滑动|滑動|滑|方|方向|边".split("|"),
        "is best",
        "is optimal",
    ]
    + [
        " ".join(("is", *words)).replace("  ", " ")
        for words in itertools.product(
            ("my", "the"),
            ("", "final", "best", "optimal", "chosen", "next"),
            ("answer", "move", "action", "choice", "decision"),
        )
    ]
)
"""What may come after a word that is chosen, as a whole."""

CELL_FILLERS = (
    "swap swapping exchange switch match matching connect join link remove eliminate clear pair of tile tiles cell "
    "cells position positions pos point points coordinate coordinates location locations at from between two both "
    "source target start end in 把 交换 交換 互换 消除 配对 连接 匹配 位置 坐标 方块 图块 单元格 格子 两个 在 从"
).split()
CELL_FILLERS += [f"to {verb}" for verb in ("swap", "exchange", "switch", "match", "connect", "join", "remove")]
"""What else may stand before a cell."""
CONNECTIVES = (
    "and with to then & + - -> --> => <-> <--> <=> <-- <- → ➡ ⇒ ⟶ ↔ ⇄ ⇆ ⇔ ⟷ ← 和 与 與 跟 到 及 以及 并 同"
).split()
"""What may stand between two cells, after a comma or without."""
CELL_TAILS = frozenset(
    ["", *"swap|交换|交換|互换|对调|消除|配对|连接|相连|匹配|方块|的 方块|的 图块|的 位置|位置".split("|")]
)
"""What may come after two cells."""

_PUNCTUATION = {mark: mark for mark in ":,;.!-()"} | {"=": ":", "[": "(", "]": ")"}
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_GAP = r"([ \n]+|(?<=[a-z])_+(?=[a-z0-9]))"
_NUMBER = r"((?:(?<![a-z0-9)\]])[+-])?[0-9]+)"
_WITHIN = r"((?<=[a-z0-9])[*_`\"'$]+(?=[a-z0-9]))"  # 2*3, 0_0: no decoration


def settled(body: str) -> str:
    """The text in lower case, one space or line feed for any white space, full-width and typographic forms as ASCII."""
    text = body.translate(_TYPES).strip().lower()
    if "\n" in text:
        return _SPACE.sub(lambda space: "\n" if "\n" in space[0] else " ", text)
    return _SPACE.sub(" ", text)


_FENCE = re.compile(rf"([^`]*)```(?:(?:{'|'.join(LANGUAGES)})\n)?([^`]*)```([^`]*)")
_COMMAND = re.compile(r"\\([a-z]+|.)", re.DOTALL)
_TAG = re.compile(rf"</?(?:{'|'.join(TAGS)}) ?/?>")
_REMARK = rf'"(?:{"|".join(COMMENTS)})" ?: ?"(?:[^"\\]|\\.)*"'
_COMMENT = re.compile(rf"{_REMARK} ?, ?|, ?{_REMARK}")
_MARKER = re.compile(r"^(?:[#>•*-]{1,6} )+(?![\d+-])(?!.*[^*]\*$)", re.MULTILINE)  # no bullet: * up*


def undecorated(text: str) -> str:
    """A settled text without the decoration that is longer than a character: fences, LaTeX, HTML, comments, bullets."""
    if "&" in text:
        text = html.unescape(text)
    if "`" in text and (fenced := _FENCE.fullmatch(text)):
        text = " ".join(fenced.groups())
    if '"' in text:
        text = _COMMENT.sub("", text)
    if "\\" in text:
        text = _COMMAND.sub(lambda command: _TEX.get(command[1], command[0]), text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    return _MARKER.sub("", text)


class Lexicon:
    """Splits texts into the words of a table, numbers and punctuation.

    `classes` maps each word, of letters or any others, to a letter that is its class. A number is of class n, with a
    sign s. The characters : , ; . ! - are classes of their own, = counts as :, and ( and ) stand for [ and ] as well.
    """

    def __init__(self, classes: Mapping[str, str]) -> None:
        self._classes = {**_PUNCTUATION, **classes}
        phrases = sorted((word for word in classes if not _WORD.fullmatch(word)), key=len, reverse=True)
        alternatives = [_GAP, _NUMBER, _WITHIN, *map(_bounded, phrases), _WORD.pattern, "."]
        self._tokens = re.compile("|".join(alternatives), re.DOTALL)

    def split(self, text: str) -> tuple[str, list[str]] | None:
        """The classes of an undecorated text's words, a letter each, and the words; None where one is unknown."""
        classes, words, marks = "", [], ""
        for found in self._tokens.finditer(text):
            word = found[0].rstrip("\ufe0f")
            if found.lastindex == 1:
                continue
            kind = self._classes.get(word) or ("" if found.lastindex != 2 else "n" if word[0].isdigit() else "s")
            if kind:
                classes += kind
                words.append(word)
            elif found.lastindex is None and word in DECORATION:
                marks += word
            else:
                return None
        paired = marks.count("{") == marks.count("}") and not any(marks.count(mark) % 2 for mark in "*_`\"'$")
        return (classes, words) if paired else None


def _bounded(phrase: str) -> str:
    """A pattern for a phrase as a word by itself; symbols and Chinese need no spaces around them."""
    if not phrase.isascii():
        return re.escape(phrase) + "\ufe0f?"
    before, after = ("(?<![a-z0-9])" * phrase[0].isalnum(), "(?![a-z0-9])" * phrase[-1].isalnum())
    return before + re.escape(phrase) + after
