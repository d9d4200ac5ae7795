"""What mining takes besides its search: clusters, shared directions, people who look alike.

Ours is all of mining but the search, the peer is the search of the same run, with the check of its recall. `twins`
search once, and a fifth of their people look like another. `cone` has blurry images, whose direction is removed, so
they search twice. The time of the search grows with the square of the images, that of the rest in proportion.

Last, ours is the rest on all cores, the peer the rest on one.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # must be set before anything starts threads

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import NO_ID, MiningConfig
from app.mining import clustered, pseudo_ids
from app.mining.search import searched
from app.runtime.dist import World
from benchmarks._claims import Claim, in_turn, quick, report
from benchmarks._planted import Floats, make

ALONE = World(0, 1, torch.device("cpu"))
DIM, LEVEL, SEED = 256, "medium", 1
SEARCH = ("searched", "recall")  # functions of clustered.py
# images, kind, rounds, and how often the search should take the time of the rest
RUNS = ((20_000, "twins", 5, 0.9), (20_000, "cone", 5, 2.0), (200_000, "twins", 2, 10.0))
CORES = os.cpu_count() or 1
FASTER = 1.2  # on two cores
Clock = Callable[[], float]  # seconds


@contextmanager
def timed(names: tuple[str, ...], clock: Clock) -> Iterator[list[float]]:
    """Yield a list to which each call of these functions of `clustered.py` adds the seconds that it takes."""
    before, spent = {name: getattr(clustered, name) for name in names}, [0.0]

    def measured(work: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            started = clock()
            found = work(*args, **options)
            spent.append(clock() - started)
            return found

        return call

    try:
        for name, work in before.items():
            setattr(clustered, name, measured(work))
        yield spent
    finally:
        for name, work in before.items():
            setattr(clustered, name, work)


def mine(images: Floats, clock: Clock = time.process_time) -> tuple[float, float]:
    """Mine a copy of the images [n, DIM]; return the seconds besides the search, and of the search."""
    shard, none = torch.from_numpy(images.copy()), np.full(len(images), NO_ID, np.int64)
    with timed(SEARCH, clock) as spent:
        started = clock()
        pseudo_ids.find_pseudo_ids(shard, none, None, MiningConfig(), ALONE, seed=0)
        whole = clock() - started
    return whole - sum(spent), sum(spent)


def compared(images: Floats, kind: str, rounds: int, at_least: float) -> Claim:
    runs: list[tuple[float, float]] = []

    def after() -> float:
        runs.append(mine(images))
        return 1 / runs[-1][0]

    fast, slow, ratio = in_turn(after, lambda: 1 / runs[-1][1], rounds, warm_up=False)
    return Claim(f"{len(images):,} {kind} (peer: their search)", 1 / fast, 1 / slow, "s of a core", ratio, at_least)


def on_all_cores(images: Floats, rounds: int) -> Claim:
    """Compare all cores with one. The images are searched once: each run gets the same lists."""

    def rest(cores: int) -> float:
        torch.set_num_threads(cores)
        return 1 / mine(images, time.perf_counter)[0]

    with patch.object(clustered, "searched", once(searched)):
        rest(CORES)
        fast, slow, ratio = in_turn(lambda: rest(CORES), lambda: rest(1), rounds, warm_up=False)
    return Claim(f"{len(images):,} twins, {CORES} cores (peer: 1)", 1 / fast, 1 / slow, "s", ratio, FASTER)


def once(search: Callable[..., object]) -> Callable[..., object]:
    """Return a search that is made once, and returns the same lists ever after."""
    found: list[object] = []

    def first(*args: object, **options: object) -> object:
        if not found:
            found.append(search(*args, **options))
        return found[0]

    return first


def main() -> int:
    is_quick = quick()
    torch.set_num_threads(1)
    mine(make("twins", 2000, LEVEL, DIM, SEED)[0])  # compiles loops, on a machine where they are new
    claims = []
    for count, kind, rounds, at_least in RUNS:
        images, _ = make(kind, 2000 if is_quick else count, LEVEL, DIM, SEED)
        claims.append(compared(images, kind, 1 if is_quick else rounds, at_least))
        print(claims[-1], flush=True)
    claims.append(on_all_cores(images, 1 if is_quick else 5))
    return report("after_search", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
