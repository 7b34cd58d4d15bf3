"""Patterns in what a model thinks, told by their form: whether a run learns to look and to reason is a curve then.

Localisation and enumeration are those that the paper saw emerge (G1, arXiv 2505.13426, in G0 on Shisen-Sho); a text
may have several patterns. They say how a text is written, not whether it is true: that is P_acc and R_acc.
"""

import functools
import re
from collections.abc import Sequence

from envs.codec import blocks_of

_PLACE = re.compile(r"\(\s*\d+\s*,\s*\d+\s*\)|\brow\s+\d+\s*,?\s*(?:and\s+)?col(?:umn)?\s+\d+", re.I)
_NUMBER = r"(?:\d+|two|three|four|five|six|seven|eight)"
_TILE = r"[^P\n.;]{0,20}"
"""What may stand between a tile and its place: a few words of the same sentence."""
_LOCALISATION = re.compile(rf"K{_TILE}P|P{_TILE}K")
_PLACES = re.compile(rf"K{_TILE}P(?:\s*(?:,|and|&|;)?\s*P)+")
_COUNT = re.compile(rf"\b{_NUMBER}\s+K", re.I)
_LINE = re.compile(r"^\W*(?:(?:row|column|col|line)s?|left|right|up|down|top|bottom)\b[^\n]*(?:K|- \|)", re.I | re.M)
_CHECK = re.compile(
    r"\b(?:check\w*|verif\w+|confirm\w*|indeed|wait|same|match(?:es)?|(?:is|are) (?:legal|valid|possible))\b[^\n]*\Z",
    re.I,
)


def patterns_of(thinking: str, names: Sequence[str]) -> set[str]:
    """The patterns of a text; "none" alone where it has no other. `names`: of the game's kinds, the empty one first."""
    plain = _PLACE.sub("\0", thinking[:4000]).replace("P", "p").replace("K", "k")
    plain = _kinds(tuple(names[1:])).sub("K", plain).replace("\0", "P")
    found = {
        "localisation": _LOCALISATION.search(plain),
        "enumeration": _PLACES.search(plain) or len(_COUNT.findall(plain)) > 1,
        "line_by_line": len(_LINE.findall(plain)) > 1,
        "check": _CHECK.search(plain.strip()),
    }
    return {name for name, there in found.items() if there} or {"none"}


def thinking_of(answer: str) -> str:
    """What stands inside of an answer's first <think>; '' where there is none."""
    return next((body for name, body in blocks_of(answer)[0] if name == "think"), "")


@functools.cache
def _kinds(names: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})s?(?!\w)", re.I)
