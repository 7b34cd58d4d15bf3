"""Rows of text as tables: for a terminal, and as markdown."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
"""The header first; all of one length."""


def aligned(rows: Rows) -> str:
    """Rows in columns, for a terminal."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def markdown(rows: Rows) -> str:
    """Rows as a table of markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
