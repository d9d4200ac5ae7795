"""Whether the tests for people who look alike could reach a precision of 95 % where all difficulties meet.

The kind is `everything` of `kinds.py`. Each cluster of several people is divided as the true labels do. Chance is read
from groups mixed from the images of true people, without the true direction of blurry images. A cluster counts as
separable if the division, or the one that mining finds, measures more than mining wants where nobody has halves. The
claims say what precision is, and what it would be if mining separated all separable clusters and no other one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import NO_ID, MiningConfig
from app.mining.gate import pair_precision
from app.mining.halves import HALF, LARGER, Null, beside, by_chance, directions, products_beside, widest_direction
from app.mining.look_alikes import ABOVE, widest
from app.mining.pseudo_ids import find_pseudo_ids
from app.mining.shared_axes import Axes, shared_axes
from benchmarks._claims import Claim, quick, report
from benchmarks._oracle import PRECISION
from benchmarks._planted import NOISE, Planted, plant
from benchmarks.clusters import ALONE

DIM, SEED, IMAGES = 256, 11, 2000
Rows = NDArray[np.float64]
Ids = NDArray[np.int64]


def separated(truth: Planted, found: Ids) -> Ids:
    """Return pseudo-IDs [n] where each cluster of several people that is separable is divided into its people."""
    rows = truth.images.astype(np.float64)
    if truth.blur is not None:
        rows -= np.outer(rows @ truth.blur, truth.blur)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    single = np.zeros(len(rows), np.bool_)  # one image of each group of near-copies
    single[np.unique(truth.source, return_index=True)[1]] = True
    axes, null = chance(rows[single], truth.labels[single])
    result: Ids = found.copy()
    for name in np.unique(found[found != NO_ID]):
        inside = np.flatnonzero(found == name)
        looked_at = inside[single[inside]]
        if len(looked_at) >= 2 * HALF and is_separable(axes.shrunk(rows[looked_at]), truth.labels[looked_at], null):
            first = int(found.max()) + 1 + int(name) * (int(truth.labels.max()) + 1)
            result[inside] = first + truth.labels[inside]
    return result


def chance(rows: Rows, labels: NDArray[np.int32]) -> tuple[Axes, Null]:
    """Return the shared axes of unit `rows` [n, D] of people `labels` [n], and what groups of no two people measure."""
    differences, owner = [], []
    for person in np.flatnonzero(np.bincount(labels) >= 2 * HALF):
        group = rows[None, labels == person]
        rest = beside(group, group.mean(axis=1, keepdims=True))[0]
        differences.append(rest * (len(rest) / (len(rest) - 1)) ** 0.5)
        owner.append(np.full(len(rest), person))
    pool = np.concatenate(differences)
    axes = shared_axes(pool, np.concatenate(owner).astype(np.int64))
    null = by_chance(axes.shrunk(pool), max(len(each) for each in differences))
    if null is None:
        raise ValueError("too few images to know what chance gives")
    return axes, null


def is_separable(images: Rows, people: NDArray[np.int32], null: Null) -> bool:
    """Return whether the images [s, D] of a cluster measure as several people, given the person of each [s]."""
    size = len(images)
    names, count = np.unique(people, return_counts=True)
    alike = directions(products_beside(images[None]))
    width, whole = widest_direction(alike)[0][0], np.trace(alike[0])
    above = [float(widest(images[None], null)[0][0])]
    for name in names[(count >= HALF) & (count <= size - HALF)]:
        one = (people == name).astype(np.float64)
        images_of_one = one.sum()
        share = one @ alike[0] @ one * size / (images_of_one * (size - images_of_one)) / whole
        measure = np.log(np.maximum(share, 1e-12)) + np.log(np.maximum(width / whole, 1e-12))
        above.append(float(null.deviations(null.deviations(measure, size, 0), size, LARGER)))
    return len(names) > 1 and max(above) > ABOVE


def main() -> int:
    is_quick = quick()
    n = IMAGES // 2 if is_quick else IMAGES
    now, told = [], []
    for level in NOISE:
        truth = plant("everything", n, level, DIM, SEED)
        nothing = np.full(n, NO_ID, np.int64)
        found, _ = find_pseudo_ids(torch.from_numpy(truth.images.copy()), nothing, None, MiningConfig(), ALONE, seed=0)
        now.append(100 * pair_precision(found, truth.labels))
        told.append(100 * pair_precision(separated(truth, found), truth.labels))
        print(f"{level}: {now[-1]:.2f} %, {told[-1]:.2f} % if all separable clusters were separated", flush=True)
    claims = [
        Claim(name, float(np.mean(each)), 100.0, "%", float(np.mean(each)) / 100, PRECISION)
        for name, each in (("precision of everything", now), ("precision, all separable clusters separated", told))
    ]
    return report("divisions", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
