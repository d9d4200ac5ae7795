"""Draw ROC curves, or the rates of identification: a true rate at each false rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.evaluation.measures import Numbers
from app.evaluation.protocols import ROC, Axes
from app.files import atomic

WIDTH, HEIGHT = 760, 560  # pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 64, 60
FINE = 3  # supersampling factor, for smooth lines
PAPER, INK, FAINT = (250, 250, 248), (32, 33, 36), (220, 221, 224)
COLOURS = ((31, 95, 168), (214, 88, 40), (46, 139, 87), (150, 78, 170), (190, 150, 20), (90, 90, 96))
POINTS = 600  # drawn per curve
DASH = 12  # points per dash where curves coincide
TOGETHER = 2  # curves closer than this many pixels coincide


def draw(
    path: Path, title: str, curves: Mapping[str, tuple[Numbers, Numbers]], axes: Axes = ROC, *, left_out: int = 0
) -> None:
    """Write a PNG of the first six curves (far [Q], tar [Q]) by name. The far axis is logarithmic.

    `left_out`: how many more there are.
    """
    shown = dict(list(curves.items())[: len(COLOURS)])
    lowest = min(float(far[far > 0].min()) for far, _ in shown.values())
    decades = max(1, min(6, math.ceil(-math.log10(lowest))))
    picture = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
    pen = ImageDraw.Draw(picture)
    _axes(pen, decades)
    _lines(pen, [_places(far, tar, decades, lowest) for far, tar in shown.values()])
    picture = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    _words(ImageDraw.Draw(picture), title, list(shown), decades, len(curves) - len(shown) + left_out, axes)
    with atomic(path) as file:
        picture.save(file, "PNG")


def _x(far: float, decades: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (1 + math.log10(far) / decades)


def _y(tar: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - tar)


def _axes(pen: ImageDraw.ImageDraw, decades: int) -> None:
    for power in range(decades + 1):
        x = _x(10.0**-power, decades) * FINE
        pen.line([(x, _y(1) * FINE), (x, _y(0) * FINE)], FAINT, FINE)
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10) * FINE
        pen.line([(LEFT * FINE, y), ((WIDTH - RIGHT) * FINE, y)], FAINT, FINE)


def _places(far: Numbers, tar: Numbers, decades: int, lowest: float) -> list[tuple[float, float]]:
    """Points of a step function: at each FAR from `lowest` on, the highest TAR at this FAR or below.

    `lowest` is that of one false accept: nothing is measured below it.
    """
    rates = np.geomspace(max(lowest, 10.0**-decades), 1, POINTS)
    accepted = tar[np.maximum(np.searchsorted(far, rates * (1 + 1e-9), side="right") - 1, 0)]
    return [(_x(rate, decades) * FINE, _y(share) * FINE) for rate, share in zip(rates, accepted, strict=True)]


def _lines(pen: ImageDraw.ImageDraw, curves: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Draw each curve in its colour; coinciding curves alternate as dashes, so that none hides another."""
    for start in range(0, POINTS - 1, DASH):
        pieces = [curve[start : start + DASH + 1] for curve in curves]
        for together in _groups(pieces):
            number = together[start // DASH % len(together)]
            pen.line(pieces[number], COLOURS[number], 2 * FINE, joint="curve")


def _groups(pieces: Sequence[Sequence[tuple[float, float]]]) -> list[list[int]]:
    """Group the curves that coincide, directly or through others; each curve is in one group."""
    groups: list[list[int]] = []
    for number, piece in enumerate(pieces):
        touched = [group for group in groups if any(_coincide(piece, pieces[other]) for other in group)]
        joined = sorted([number, *(other for group in touched for other in group)])
        groups = [*(group for group in groups if group not in touched), joined]
    return groups


def _coincide(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> bool:
    return all(abs(a[1] - b[1]) < TOGETHER * FINE for a, b in zip(one, other, strict=True))


def _words(pen: ImageDraw.ImageDraw, title: str, names: list[str], decades: int, left_out: int, axes: Axes) -> None:
    plain, small = ImageFont.load_default(15), ImageFont.load_default(12)
    pen.text((LEFT, 22), title, INK, plain, anchor="lm")
    for power in range(decades + 1):
        label = f"1e-{power}" if power else "1"
        pen.text((_x(10.0**-power, decades), _y(0) + 8), label, INK, small, anchor="mt")
    for tenth in range(0, 11, 2):
        pen.text((LEFT - 8, _y(tenth / 10)), f"{tenth * 10} %", INK, small, anchor="rm")
    pen.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16), axes.x, INK, small, anchor="mm")
    pen.text((LEFT, TOP - 8), axes.y, INK, small, anchor="ls")
    lines = [*names, *([f"and {left_out} more, not drawn"] if left_out else [])]
    for number, line in enumerate(lines):
        y = _y(0) - 16 - 18 * (len(lines) - 1 - number)
        if number < len(names):
            pen.line([(WIDTH - RIGHT - 34, y), (WIDTH - RIGHT - 12, y)], COLOURS[number], 3)
        pen.text((WIDTH - RIGHT - 42, y), line, INK, small, anchor="rm")
