"""Exponents of growth, their plot and their table: what benchmarks/growth.py makes of its measurements."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._claims import RESULTS, machine
from benchmarks._pages import DOCS, as_table, write_table

PICTURE, HEAD = "pictures/growth.svg", ("growth of",)
SECONDS = RESULTS / "growth_seconds.json"  # the measurements; growth.json has the claims
Series = dict[str, list[float]]


def fitted(sizes: list[int], seconds: list[float]) -> tuple[float, list[float]]:
    """Return the exponent of growth by least squares on logarithms, and those between neighbouring sizes."""
    x, y = np.log(sizes), np.log(seconds)
    between = [float((d - b) / (c - a)) for (a, b), (c, d) in itertools.pairwise(zip(x, y, strict=True))]
    return float(np.polyfit(x, y, 1)[0]), between


def draw(sizes: list[int], series: Series, machine: str, into: Path) -> None:
    """Draw the seconds against the images, both axes logarithmic, with the fitted lines."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "growth", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for name, seconds in series.items():
            exponent, _ = fitted(sizes, seconds)
            middle = math.exp(np.mean(np.log(seconds)) - exponent * np.mean(np.log(sizes)))
            points = axes.plot(sizes, seconds, "o", markersize=5)[0]
            line = [middle * n**exponent for n in sizes]
            axes.plot(sizes, line, color=points.get_color(), label=f"{name}: N^{exponent:.2f}")
        axes.set(
            xscale="log", yscale="log", xlabel="images N", ylabel="seconds of one core", title=f"{machine}, no GPU"
        )
        axes.title.set_fontsize(10)
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(into, format="svg", metadata={"Date": None}, facecolor="white")


def table(known: dict[str, Any]) -> str:
    """Return the table of docs/mining.md: seconds at the ends, the exponent, and its spread."""
    sizes, rows = known["images"], []
    for name, seconds in known["core_seconds"].items():
        exponent, between = fitted(sizes, seconds)
        spread = f"{min(between):.2f} to {max(between):.2f}"
        rows.append([name, f"{seconds[0]:.2g} s", f"{float(f'{seconds[-1]:.3g}'):g} s", f"{exponent:.2f}", spread])
    return as_table([*HEAD, *(f"{n:,} images" for n in (sizes[0], sizes[-1])), "exponent", "between sizes"], rows)


def record(sizes: list[int], series: Series) -> None:
    """Write the measurements."""
    content = {"machine": machine(), "images": sizes, "core_seconds": rounded(series)}
    SECONDS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def publish() -> None:
    """Draw the plot and write the table, from the committed results."""
    known = json.loads(SECONDS.read_text(encoding="utf-8"))
    draw(known["images"], known["core_seconds"], f"one core of {known['machine']['cpu']}", DOCS / PICTURE)
    write_table(DOCS / "mining.md", HEAD, table(known))


def rounded(series: Series) -> Series:
    return {name: [float(f"{each:.4g}") for each in seconds] for name, seconds in series.items()}
