"""What a terminal is shown: words of others, with what would steer it made visible; rows as tables, and as markdown."""

import re
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
"""The header first; all of one length."""
_STEERING = re.compile(r"[^\n\t -~]")


def visible(text: str) -> str:
    """Text of a file, a model or an endpoint, as a terminal may have it.

    Signs that would move its cursor, set its title or turn the direction of writing stand as Python writes them, such
    as \\x1b, and so do those that can't be written. Lines stay lines.
    """
    return _STEERING.sub(lambda sign: sign[0] if sign[0].isprintable() else repr(sign[0])[1:-1], text)


def aligned(rows: Rows) -> str:
    """Rows in columns, for a terminal."""
    rows = [[visible(cell).replace("\n", "\\n") for cell in cells] for cells in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def markdown(rows: Rows) -> str:
    """Rows as a table of markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
