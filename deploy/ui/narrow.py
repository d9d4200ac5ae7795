"""PURE: a table that is too wide for a terminal, as a paragraph for each row."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

TEXT_CHARACTERS = 24  # a wider column is text, which may be folded
LEAST_CHARACTERS = 16  # of a folded column
GAP = 3
KEPT = "\u00a0"  # a space at which no line ends


def texts(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """For each column, whether it may be folded. People copy the first one, so it may not."""
    return [place > 0 and _width(name, place, rows) > TEXT_CHARACTERS for place, name in enumerate(columns)]


def fits(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether a table of this width is readable: only text is folded, into columns that are not too narrow."""
    folded = texts(columns, rows)
    widths = [
        LEAST_CHARACTERS if fold else _width(name, place, rows)
        for place, (name, fold) in enumerate(zip(columns, folded, strict=True))
    ]
    return sum(widths) + GAP * len(columns) <= width


def paragraphs(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines: the first cell of a row alone, then the others with their columns' names, and each text below."""
    folded = texts(columns, rows)
    lines = []
    for first, *others in rows:
        told = [
            (f"{name}: {cell}" if fold else f"{name} {cell}".replace(" ", KEPT), fold)
            for name, cell, fold in zip(columns[1:], others, folded[1:], strict=True)
            if cell not in ("", "-")
        ]
        lines.append(f" {first}")
        short = ", ".join(each for each, fold in told if not fold)
        for text in [short, *(each for each, fold in told if fold)]:
            wrapped = textwrap.wrap(
                text,
                max(width - 1, LEAST_CHARACTERS),
                initial_indent="   ",
                subsequent_indent="   ",
                break_on_hyphens=False,  # a path or a name is copied whole
            )
            lines += [line.replace(KEPT, " ") for line in wrapped]
    return lines


def _width(name: str, place: int, rows: Sequence[Sequence[str]]) -> int:
    return max([len(name), *(len(row[place]) for row in rows)])
