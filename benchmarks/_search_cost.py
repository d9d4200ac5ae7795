"""The table of docs/mining.md: how long the search of one mining takes, by arithmetic.

    python benchmarks/_search_cost.py           print the table
    python benchmarks/_search_cost.py --write   write it into docs/mining.md

GPUs: the matrix products, 512 numbers an image, at half of the rate that NVIDIA states for an H200 in 16 bits without
sparsity. No GPU was measured, and reading the images of the cells is not included.

One core: the rates in results/search_large.json, measured at a million images of 256 numbers. Both are scaled to 512
numbers and by the square of the images. For cells that is an upper bound, because reading them grows with the images.
The arithmetic is that of a plan: deploy/specs/mining.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._pages import DOCS, as_table, write_table
from deploy.specs.estimate import rough
from deploy.specs.mining import GPU_OPERATIONS, core_seconds, operations

PAGE, HEAD = DOCS / "mining.md", ("images", "search")
DIM, SEARCHES = 512, {"all pairs": "exact", "cells": "ivf"}  # numbers an image; names in the table
IMAGES, GPUS = {"1.2 million": 1.2e6, "10 million": 10e6, "42.5 million": 42.5e6}, (1, 3, 8, 16)


def table() -> str:
    head = [*HEAD, "1 core", *(f"{count} GPU{'s' * (count > 1)}" for count in GPUS)]
    rows = [
        [name, words, rough(core_seconds(how, images, DIM))]
        + [rough(operations(how, images, DIM) / GPU_OPERATIONS / count) for count in GPUS]
        for name, images in IMAGES.items()
        for words, how in SEARCHES.items()
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
