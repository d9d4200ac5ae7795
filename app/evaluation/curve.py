"""Draw ROC curves, or the rates of identification: a true rate at each false rate."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from app.errors import visible
from app.evaluation.measures import Numbers, highest_tar
from app.evaluation.protocols import ROC, Axes
from app.files import atomic

if TYPE_CHECKING:
    from matplotlib.text import Text

WIDTH, HEIGHT, PER_INCH = 760, 560, 100  # pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 64, 60  # margins
COLOURS = ("#1f5fa8", "#d65828", "#2e8b57", "#964eaa", "#be9614", "#5a5a60")
POINTS = 600  # drawn per curve
DASH = 12  # points per dash where curves coincide
NAME_WIDTH = WIDTH - LEFT - RIGHT - 60  # pixels of a name or title at most: between the margins, beside its colour
LETTERS_MOST = 200  # of a name, of which as many as fit are drawn
TOGETHER = 2 / (HEIGHT - TOP - BOTTOM)  # curves closer than this, two pixels, coincide


def draw(
    path: Path, title: str, curves: Mapping[str, tuple[Numbers, Numbers]], axes: Axes = ROC, *, left_out: int = 0
) -> None:
    """Write a PNG of the first six curves (far [Q], tar [Q]) by name. The far axis is logarithmic.

    `left_out`: how many more there are.
    """
    # Here: its import takes longer than all others of an evaluation.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # building its cache of fonts is no news
    shown = dict(list(curves.items())[: len(COLOURS)])
    left_out += len(curves) - len(shown)
    lowest = min(float(far[far > 0].min()) for far, _ in shown.values())
    decades = max(1, min(6, math.ceil(-math.log10(lowest))))
    rates = np.geomspace(max(lowest, 10.0**-decades), 1, POINTS)  # nothing is measured below one false accept
    with rc_context({"text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(WIDTH / PER_INCH, HEIGHT / PER_INCH), dpi=PER_INCH)
        size = 1 - (LEFT + RIGHT) / WIDTH, 1 - (TOP + BOTTOM) / HEIGHT
        plot = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, *size))
        for curve, piece, values in _dashes([highest_tar(far, tar, rates) for far, tar in shown.values()]):
            plot.plot(rates[piece], values, color=COLOURS[curve], linewidth=1.5)
        plot.set(xscale="log", xlim=(10.0**-decades, 1), ylim=(0, 1), xlabel=axes.x, ylabel=axes.y)
        _write(plot.set_title("", loc="left"), title)
        plot.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        plot.yaxis.set_major_formatter(PercentFormatter(1))
        plot.grid(color="#dcdde0")
        names = [*shown, *([f"and {left_out} more, not drawn"] if left_out else [])]
        handles = [Line2D([], [], color=colour) for colour in (*COLOURS[: len(shown)], "none")[: len(names)]]
        legend = plot.legend(handles, ["name"] * len(names), loc="lower right", frameon=False)
        for text, name in zip(legend.get_texts(), names, strict=True):
            _write(text, name)  # afterwards: a label that begins with _ is left out
        with atomic(path) as file:
            figure.savefig(file, format="png")


def _write(text: Text, name: str) -> None:
    """Write a name, shortened to fit: mostly its end is kept, by which a path is told from others."""
    from matplotlib.textpath import text_to_path

    def fits(words: str) -> bool:
        points, *_ = text_to_path.get_text_width_height_descent(words, text.get_fontproperties(), ismath=False)
        return float(points) * PER_INCH / 72 <= NAME_WIDTH

    shown = visible(name)
    ends = range(max(10, len(shown) - LETTERS_MOST), len(shown))
    candidates = [shown] * (len(shown) <= LETTERS_MOST) + [f"{shown[:10]} … {shown[end:]}" for end in ends]
    text.set_text(candidates[bisect_left(candidates, True, key=fits)])  # the longest one that fits


def _dashes(curves: Sequence[Numbers]) -> Iterator[tuple[int, slice, Numbers]]:
    """Yield the curve's number, place and values of each piece. Curves that coincide alternate: none hides another."""
    for start in range(0, POINTS - 1, DASH):
        piece = slice(start, start + DASH + 1)
        for together in _groups([curve[piece] for curve in curves]):
            number = together[start // DASH % len(together)]
            yield number, piece, curves[number][piece]


def _groups(pieces: Sequence[Numbers]) -> list[list[int]]:
    """Group the curves that coincide, directly or through others; each curve is in one group."""
    groups: list[list[int]] = []
    for number, piece in enumerate(pieces):
        touched = [group for group in groups if any(np.abs(piece - pieces[each]).max() < TOGETHER for each in group)]
        joined = sorted([number, *(other for group in touched for other in group)])
        groups = [*(group for group in groups if group not in touched), joined]
    return groups
