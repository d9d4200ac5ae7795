"""Turn curves into the numbers of an SVG: lines, ticks and labels in the units of its viewBox."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

WIDTH, HEIGHT = 420, 210  # small, so that labels stay readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 24
POINTS_MOST = 300  # drawn of one line
KINDS = 8  # colours of static/page.css: c0 to c7
TICKS = 4
DIGITS_MOST = 15  # a float has no more
MARKS_MOST = 100

Point = Sequence[float]
Form = Callable[[float, Sequence[float]], str]  # a value as text, with digits enough to tell several values apart


def chart(
    title: str,
    lines: Sequence[tuple[str, Sequence[Point]]],
    *,
    form: Form,
    across: str,
    note: str = "",
    marks: Sequence[float] = (),
) -> dict[str, Any] | None:
    """A chart of labelled lines; None if there is no point. `across`: what is counted from left to right.

    `marks`: vertical lines, in the same unit. Each axis covers what there is.
    """
    every = [point for _, points in lines for point in points]
    if not every:
        return None
    left, right = min(point[0] for point in every), max(point[0] for point in every)
    low, high = min(point[1] for point in every), max(point[1] for point in every)
    most = max(abs(low), abs(high))
    room = max((high - low) * 0.06, 1e-6) if high - low > most * 1e-4 else most * 0.01 or 0.5
    low, high = low - room, high + room
    wide = (right - left) or 1.0

    def x(value: float) -> float:
        return round(LEFT + (value - left) / wide * (WIDTH - LEFT - RIGHT), 1) if right > left else LEFT + 40.0

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    drawn, rows = [], ticks(low, high)
    for place, (label, points) in enumerate(lines):
        few = thinned(points)
        drawn.append(
            {
                "kind": f"c{place % KINDS}",
                "label": label,
                "path": " ".join(f"{x(point[0])},{y(point[1])}" for point in few) if len(few) > 1 else "",
                "dots": [(x(point[0]), y(point[1])) for point in few] if len(few) <= 30 else [],
                "last": form(points[-1][1], ()) if points else "-",
            }
        )
    return {
        "title": title,
        "note": note,
        "lines": drawn,
        "rows": [(y(value), form(value, rows)) for value in rows],
        "columns": [(x(value), f"{value:,.0f}") for value in ticks(left, right) if value == int(value)],
        "marks": [x(value) for value in marks[-MARKS_MOST:] if left < value < right],
        "across": across,
        "size": (WIDTH, HEIGHT),
        "frame": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
    }


def number(value: float, among: Sequence[float]) -> str:
    """A number with at least three digits, and those that tell it from the others."""
    return _told_apart("{:.{}g}", value, among, least=3)


def share(value: float, among: Sequence[float]) -> str:
    """A share in percent with at least one decimal, and those that tell it from the others."""
    return _told_apart("{:.{}%}", value, among, least=1)


def _told_apart(form: str, value: float, among: Sequence[float], least: int) -> str:
    digits = next(
        (
            each
            for each in range(least, DIGITS_MOST)
            if len({form.format(other, each) for other in among}) == len(among)
        ),
        DIGITS_MOST,
    )
    return form.format(value, digits)


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most about POINTS_MOST of the points: the means of equal groups, then the last one itself."""
    size = math.ceil(len(points) / POINTS_MOST)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [[sum(point[axis] for point in group) / len(group) for axis in (0, 1)] for group in groups[:-1]]
    return [*means, points[-1]]


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers in a range."""
    if not high > low:
        return [low]
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
