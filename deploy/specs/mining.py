"""PURE: the neighbour search of mining as the plan tells it: which one, how often, and how long one takes.

Times are arithmetic. One core: the rates that benchmarks/search_large.py measured among a million images of 256
numbers, scaled by the numbers of an image and the square of the images. GPUs: the matrix products at half of the rate
that NVIDIA states for an H200 in 16 bits; no GPU was measured. docs/mining.md has a table of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# As in app/mining; tests/test_contracts.py compares them.
EXACT_UP_TO = 5_000_000  # images; above, `auto` searches within cells
ROWS_A_CELL, TRAINED_A_CELL, TRAINING_ROUNDS = 24, 8, 2
# Queries a second of one core, as in benchmarks/results/search_large.json.
QUERIES, AMONG, NUMBERS = {"exact": 310.8, "ivf": 3912.0}, 1_000_000, 256
GPU_OPERATIONS = 395e12  # a second
WORTH_TELLING_S = 60.0  # of one core


@dataclass(frozen=True)
class Search:
    """The search of one refresh of the pseudo-IDs: `how` is exact or ivf; `times` it is due in the run."""

    how: str
    images: int
    times: int
    core_s: float
    gpu_s: float


def search(config: Mapping[str, Any], images: int) -> Search | None:
    """Return the search of a run that trains on `images`; None if it mines nothing, or only few images."""
    mining, epochs = config.get("mining"), int(config["train"]["epochs"])
    if config["recipe"]["name"] != "self_supervised" or not mining:
        return None
    times = len(range(int(mining["start_epoch"]), epochs, int(mining["every_epochs"])))
    how = choose(str(mining["search"]), images)
    numbers = int(config["backbone"].get("embedding_dim") or 512)
    core_s = core_seconds(how, images, numbers)
    if not times or core_s < WORTH_TELLING_S:
        return None
    return Search(how, images, times, core_s, operations(how, images, numbers) / GPU_OPERATIONS)


def choose(search: str, images: int) -> str:
    """Return exact or ivf for `mining.search`, where FAISS is installed."""
    if search != "auto":
        return search
    return "ivf" if images > EXACT_UP_TO else "exact"


def core_seconds(how: str, images: float, numbers: int) -> float:
    """Return the seconds of one core. Within cells it is an upper bound: reading them grows with the images only."""
    return images / QUERIES[how] * (images / AMONG) * (numbers / NUMBERS)


def operations(how: str, images: float, numbers: int) -> float:
    """Return the operations of the matrix products of one search."""
    if how == "exact":
        return 2 * images * images * numbers
    # Each image against all centres, and the sample on which k-means trains them.
    compared = images * (1 + TRAINING_ROUNDS * TRAINED_A_CELL / ROWS_A_CELL)
    return 2 * compared * images / ROWS_A_CELL * numbers
