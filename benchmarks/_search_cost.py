"""The table of docs/trainer.md: how long the search of one mining takes, by arithmetic.

    python benchmarks/_search_cost.py           print the table
    python benchmarks/_search_cost.py --write   write it into docs/trainer.md

GPUs: the matrix products, 512 numbers an image, at half of the rate that NVIDIA states for an H200 in 16 bits without
sparsity. No GPU was measured, and reading the images of the cells is not included.

One core: the rates in results/search_large.json, measured at a million images of 256 numbers. Both are scaled to 512
numbers and by the square of the images. For cells that is an upper bound, because reading them grows with the images.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.mining.ivf import ROWS_A_CELL, TRAINED_A_CELL, TRAINING_ROUNDS
from benchmarks._pages import DOCS, as_table, write_table

PAGE, HEAD = DOCS / "trainer.md", ("images", "search")
RATES = Path(__file__).parent / "results" / "search_large.json"
DIM, FLOPS = 512, 395e12  # numbers an image; operations a second of one GPU
IMAGES, GPUS = {"1.2 million": 1.2e6, "10 million": 10e6, "42.5 million": 42.5e6}, (1, 3, 8, 16)
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}
MOST = {"s": 60, "min": 90, "h": 48}  # of a unit, before the next one is used


def operations(images: float, search: str) -> float:
    """Return the operations of the matrix products of one search."""
    if search == "all pairs":
        return 2 * images * images * DIM
    # Each image against all centres, and the sample on which k-means trains them.
    compared = images * (1 + TRAINING_ROUNDS * TRAINED_A_CELL / ROWS_A_CELL)
    return 2 * compared * images / ROWS_A_CELL * DIM


def core_seconds(images: float, search: str) -> float:
    """Return the seconds of one core, from the measured queries a second."""
    rate = json.loads(RATES.read_text(encoding="utf-8"))["claims"][0]
    found = re.search(r"N=([\d,]+), D=(\d+)", rate["name"])
    assert found is not None
    measured, dim = int(found[1].replace(",", "")), int(found[2])
    return images / rate["peer" if search == "all pairs" else "ours"] * (images / measured) * (DIM / dim)


def spoken(seconds: float) -> str:
    """Return a duration with two digits, in the unit that suits it."""
    unit = next((unit for unit, most in MOST.items() if seconds / UNITS[unit] < most), "days")
    value = float(f"{seconds / UNITS[unit]:.2g}")
    return f"{value:g} {unit}"


def table() -> str:
    head = [*HEAD, "1 core", *(f"{count} GPU{'s' * (count > 1)}" for count in GPUS)]
    rows = [
        [name, search, spoken(core_seconds(images, search))]
        + [spoken(operations(images, search) / FLOPS / count) for count in GPUS]
        for name, images in IMAGES.items()
        for search in ("all pairs", "cells")
    ]
    return as_table(head, rows)


def main() -> int:
    if sys.argv[1:] == ["--write"]:
        write_table(PAGE, HEAD, table())
    else:
        print(table())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
