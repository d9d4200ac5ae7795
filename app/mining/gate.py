"""Decide whether a new labelling may be used, and measure it: stable numbers, metrics, a verdict.

Letters: N images mined.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig

IdArray = NDArray[np.int64]


@dataclass(frozen=True)
class Report:
    """Measurements of a refresh. `why` is one sentence when not `accepted`."""

    count: int  # clusters
    coverage: float  # share of images with a pseudo-ID
    largest: int  # images in the largest cluster
    median: float  # images in the median cluster, and in the cluster at the 95 % quantile
    size_95: float
    sizes: dict[str, int]  # clusters of 2-3 images, 4-7, 8-15, …
    churn: float | None  # share of images with a pseudo-ID before that lose or change it; None: none had one
    purity: float | None  # None without labels, as pair_f
    pair_f: float | None
    cosine: float | None  # mean over pairs of neighbours in one cluster; None: no such pairs
    floor: float  # least cosine of two neighbours
    recall: float  # of the search, on a sample
    unusable: int  # images whose embedding is zero or not finite
    accepted: bool
    why: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    found: IdArray,
    previous: IdArray,
    labels: NDArray[np.int32] | None,
    config: MiningConfig,
    *,
    floor: float,
    recall: float = 1.0,
    unusable: int = 0,
    cosine: float | None = None,
) -> Report:
    """Measure the labelling `found` [N] and decide whether it may replace `previous` [N].

    Both are NO_ID where an image has no pseudo-ID, and share one numbering (`keep_ids`). Labels [N] affect only
    metrics.
    """
    labelled = found != NO_ID
    sizes = np.unique(found[labelled], return_counts=True)[1]
    coverage, largest, turned = float(labelled.mean()), int(sizes.max(initial=0)), churn(previous, found)
    why = ""
    if coverage < config.min_coverage:
        why = f"only {coverage:.1%} of the images are in a cluster; the minimum is {config.min_coverage:.1%}"
    elif largest > config.max_largest_share * len(found):
        why = f"one cluster holds {largest} of {len(found)} images; the maximum is {config.max_largest_share:.0%}"
    elif turned is not None and turned > config.max_churn:
        why = f"{turned:.1%} of the images that had a pseudo-ID would lose it; the maximum is {config.max_churn:.1%}"
    return Report(
        count=len(sizes),
        coverage=coverage,
        largest=largest,
        median=float(np.median(sizes)) if len(sizes) else 0.0,
        size_95=float(np.quantile(sizes, 0.95)) if len(sizes) else 0.0,
        sizes=histogram(sizes),
        churn=turned,
        purity=None if labels is None else purity(found[labelled], labels[labelled]),
        pair_f=None if labels is None else pair_f(found, labels),
        cosine=cosine,
        floor=floor,
        recall=recall,
        unusable=unusable,
        accepted=not why,
        why=why,
    )


def keep_ids(previous: IdArray, found: IdArray) -> IdArray:
    """Renumber `found` [N] so that a cluster keeps its number while most of it stays.

    A new cluster that holds more than half of an old cluster's images takes the old number. If it holds more than half
    of several, it takes the number of the one with the largest overlap, then the smallest number. Other clusters get
    the next unused numbers, ordered by their first image.
    """
    new, first, index = np.unique(found, return_index=True, return_inverse=True)
    old, old_index = np.unique(previous, return_inverse=True)
    old_size = np.bincount(old_index)
    pairs, overlap = np.unique(old_index * len(new) + index, return_counts=True)
    before, after = pairs // len(new), pairs % len(new)
    stays = (2 * overlap > old_size[before]) & (old[before] != NO_ID) & (new[after] != NO_ID)
    before, after, overlap = before[stays], after[stays], overlap[stays]

    name = np.full(len(new), NO_ID, np.int64)
    best_last = np.lexsort((-before, overlap, after))
    name[after[best_last]] = old[before[best_last]]  # where several compete, the last write wins
    unnamed = np.flatnonzero((name == NO_ID) & (new != NO_ID))
    unnamed = unnamed[np.argsort(first[unnamed])]
    name[unnamed] = previous.max(initial=NO_ID) + 1 + np.arange(len(unnamed))
    return name[index]


def churn(previous: IdArray, found: IdArray) -> float | None:
    """Return the share of images with a pseudo-ID in `previous` [N] that have another one, or none, in `found` [N]."""
    had = previous != NO_ID
    return float((found[had] != previous[had]).mean()) if had.any() else None


def histogram(sizes: IdArray) -> dict[str, int]:
    """Count the clusters of 2-3 images, 4-7, 8-15, …; empty bins are left out."""
    power, count = np.unique(np.floor(np.log2(sizes)).astype(np.int64), return_counts=True)
    return {f"{2**p}-{2 ** (p + 1) - 1}": int(c) for p, c in zip(power, count, strict=True)}


def purity(pseudo_ids: IdArray, labels: NDArray[np.int32]) -> float:
    """Return the share of labelled images that carry the commonest label of their cluster; 1 if there are none."""
    if not len(pseudo_ids):
        return 1.0
    cluster = np.unique(pseudo_ids, return_inverse=True)[1]
    person = np.unique(labels, return_inverse=True)[1]
    both, count = np.unique(cluster * (person.max() + 1) + person, return_counts=True)
    most = np.zeros(cluster.max() + 1, np.int64)
    np.maximum.at(most, both // (person.max() + 1), count)
    return float(most.sum() / len(pseudo_ids))


def pair_f(pseudo_ids: IdArray, labels: NDArray[np.int32]) -> float:
    """Return the F score of "these two images show one person" over all N (N - 1) / 2 pairs; 1 if every image is alone.

    An image without a pseudo-ID is in no found pair.
    """
    has = pseudo_ids != NO_ID
    cluster = np.unique(pseudo_ids[has], return_inverse=True)[1]
    person = np.unique(labels, return_inverse=True)[1]
    right = _pairs(cluster * (person.max(initial=0) + 1) + person[has])
    wanted_and_found = _pairs(cluster) + _pairs(person)
    return 2 * right / wanted_and_found if wanted_and_found else 1.0


def _pairs(names: IdArray) -> int:
    """Count the pairs that carry the same name."""
    count = np.unique(names, return_counts=True)[1]
    return int((count * (count - 1) // 2).sum())
