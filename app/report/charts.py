"""Draw the plots of a report as SVG that takes its colours from the page.

A plot contains no text of the run: names are in the page, where they are escaped.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # building its cache of fonts is no news of a run

WIDTH, HEIGHT = 340, 216  # units of the drawing, about pixels on a phone
POINTS_MOST = 400  # drawn per line
# Stand-ins that the page replaces; each is a colour that no plot uses otherwise.
INK, FAINT, BAD = "#010203", "#010204", "#010205"
TRAINED, UNTRAINED, PIXELS, OTHER = "#010206", "#010207", "#010208", "#010209"
VARIABLES = {
    INK: "ink", FAINT: "line", BAD: "bad", TRAINED: "trained", UNTRAINED: "untrained", PIXELS: "pixels", OTHER: "other",
}  # fmt: skip
NO_METADATA: dict[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
STYLE = {
    "svg.fonttype": "none",
    "font.size": 11,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_joinstyle": "round",
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Line:
    """A line of points, None where there is a gap; `dashed` for what does not change, `dots` to mark the points."""

    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = TRAINED
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    label: str = ""
    pct: bool = False  # values are shares
    whole: bool = False  # only whole numbers
    log: bool = False
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over one axis; `marks` are vertical lines."""

    label: str  # for readers that see no picture
    x: Axis
    y: Axis
    lines: Sequence[Line] = field(default_factory=tuple)
    marks: Sequence[float] = field(default_factory=tuple)


def draw(chart: Chart) -> str:
    """Draw lines as SVG."""

    def fill(axes: Axes) -> None:
        for place in chart.marks[:POINTS_MOST]:
            axes.axvline(place, color=OTHER, linewidth=1.2, linestyle=(0, (2, 2)))
        for line in chart.lines:
            x, y = _thinned(line.x, line.y)
            axes.plot(
                x,
                y,
                color=line.colour,
                linestyle=(0, (5, 3)) if line.dashed else "-",
                marker="o" if line.dots or len(x) == 1 else "",
                markersize=3.5,
            )
        _set(axes.xaxis, axes.set_xscale, axes.set_xlim, chart.x)
        _set(axes.yaxis, axes.set_yscale, axes.set_ylim, chart.y)

    return _svg(fill, chart.label)


def histogram(
    label: str, edges: Sequence[float], same: Sequence[float], other: Sequence[float], at: float | None
) -> str:
    """Draw the shares of two kinds of pairs by score, and the threshold `at`."""

    def fill(axes: Axes) -> None:
        for shares, colour in ((other, OTHER), (same, TRAINED)):
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.5)
        if at is not None and edges[0] <= at <= edges[-1]:
            axes.axvline(at, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("cosine of the pair")
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(_percent())

    return _svg(fill, label, height=HEIGHT * 0.76)


def cluster_sizes(names: Sequence[str], heights: Sequence[float]) -> str:
    """Draw how many clusters have each size, as bars."""

    def fill(axes: Axes) -> None:
        axes.bar(range(len(names)), heights, color=TRAINED, width=0.75)
        axes.set_xticks(range(len(names)), names)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("images in a cluster")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))

    return _svg(fill, "Clusters by size")


def _set(axis: Any, scale: Callable[[str], Any], limit: Callable[..., Any], wanted: Axis) -> None:
    if wanted.log:
        scale("log")
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(6, integer=wanted.whole, steps=[1, 2, 5, 10]))
        if wanted.pct:
            axis.set_major_formatter(_percent())
    axis.set_label_text(wanted.label)
    if wanted.least is not None or wanted.most is not None:
        limit(wanted.least, wanted.most)


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{100 * value:.6g}%")


def _thinned(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Means of groups of neighbours, so that a long run makes no large page; a gap is NaN."""
    size = -(-len(x) // POINTS_MOST) or 1
    means_x, means_y = [], []
    for start in range(0, len(x), size):
        known = [each for each in y[start : start + size] if each is not None]
        part = x[start : start + size]
        means_x.append(sum(part) / len(part))
        means_y.append(sum(known) / len(known) if known else float("nan"))
    return means_x, means_y


def _svg(fill: Callable[[Axes], None], label: str, height: float = HEIGHT) -> str:
    file = io.StringIO()
    style: Any = {**STYLE, "svg.hashsalt": label}
    with matplotlib.rc_context(style):  # a salt of its own: ids of two plots differ
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=0)
        fill(axes)
        figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    return _for_page(file.getvalue(), label)


def _for_page(svg: str, label: str) -> str:
    """The drawing without what only a file needs, with the page's colours. `label` is plain text of ours."""
    body = svg[svg.index("<svg ") :]
    box = re.search(r'viewBox="[\d. ]+"', body)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body[body.index(">") + 1 :], flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    used = {*re.findall(r'href="#([^"]+)"', body), *re.findall(r"url\(#([^)]+)\)", body)}
    body = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", body)
    for colour, name in VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    return f'<svg class="chart" {box[0]} role="img" aria-label="{label}">' + re.sub(r"\n\s*", "\n", body).rstrip()
