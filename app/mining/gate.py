"""Decide whether a new labelling may be used, and measure it: stable numbers, metrics, a verdict.

Letters: N images mined.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.arrays import Floats, Ints, Longs

MIN_SPREAD = 1.5  # effective rank; embeddings that are all equal have 0, on one line 1
MIN_DISTINCT = 0.01  # share of images that are no copy of another; 16 different ones among 6,000 are a collapse
EQUAL = 1e-10  # mean squared distance to the mean; less is rounding


@dataclass(frozen=True, kw_only=True)
class Report:
    """Measurements of a refresh. `why` is one sentence when not `accepted`."""

    count: int  # clusters
    coverage: float  # share of images with a pseudo-ID
    largest: int  # images in the largest cluster
    median: float  # images in the median cluster, and in the cluster at the 95 % quantile
    size_95: float
    sizes: dict[str, int]  # clusters of 2-3 images, 4-7, 8-15, …
    churn: float | None  # share of images with a pseudo-ID before that lose or change it; None: none had one
    purity: float | None  # None without labels, as pair_f, and if no labelled image is in a cluster
    pair_f: float | None
    cosine: float | None = None  # mean over pairs of neighbours in one cluster; None: no such pairs
    floor: float  # least cosine of two neighbours
    search: str = "exact"  # or how many cells were read
    recall: float = 1.0  # of the search, on a sample; within cells of the neighbours that clustering reads
    unusable: int = 0  # images whose embedding is zero or not finite
    offset: float = 0.0  # median cosine of strangers, from an offset of all embeddings that was removed; 0: none
    silhouette: float = 0.0  # how far apart the clusters lie: 1 is far, 0 not at all (app/mining/separation.py)
    separated: float = 0.0  # share of the images in clusters that are more like their own cluster than like any other
    shared: int = 0  # directions that images of different people share, and that were removed
    cut: int = 0  # images of clusters over max_cluster that were cut into pieces
    left_out: int = 0  # images of clusters over max_cluster that were too large to cut
    # clusters that may show several people: mean cosine of two images, by pseudo-ID
    loose: dict[str, float] = field(default_factory=dict)
    # pairs of clusters that may show one person: share of images that list the other's
    alike: dict[str, float] = field(default_factory=dict)
    accepted: bool
    why: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    found: Longs,
    previous: Longs,
    labels: Ints | None,
    config: MiningConfig,
    *,
    spread: float = math.inf,
    distinct: float = 1.0,
    sure: float | None = None,
    by_chance: float = 0.0,
    **others: Any,
) -> Report:
    """Measure the labelling `found` [N] and decide whether it may replace `previous` [N].

    Both are NO_ID where an image has no pseudo-ID, and share one numbering (`keep_ids`). Labels [N] affect only
    metrics, those below 0 not even them. `spread` is the effective rank of a sample of the embeddings
    (`effective_rank`), `distinct` the share of images that are no copies, `sure` the share in clusters above the
    first floor (default: the coverage), `by_chance` the share that chance neighbours alone may put there.
    `min_coverage` 0 accepts any coverage. `others` are further fields of the report.
    """
    labelled = found != NO_ID
    sizes = np.unique(found[labelled], return_counts=True)[1]
    known = np.ones(len(found), np.bool_) if labels is None else labels >= 0  # others are not one person
    person = labels if known.any() else None
    judged = labelled & known
    coverage = float(labelled.mean()) if len(found) else 0.0
    sure = coverage if sure is None else sure
    largest, turned = int(sizes.max(initial=0)), churn(previous, found)
    # Each limit is written as "not within", so that NaN fails it.
    why = ""
    if not len(found):
        why = "there are no images to mine"
    elif not spread >= MIN_SPREAD:
        why = f"the embeddings have an effective rank of {spread:.1f}; the minimum is {MIN_SPREAD}"
    elif not distinct >= MIN_DISTINCT:
        why = f"only {distinct:.1%} of the embeddings are no copies of another; the minimum is {MIN_DISTINCT:.0%}"
    elif not coverage >= config.min_coverage:
        why = f"only {coverage:.1%} of the images are in a cluster; the minimum is {config.min_coverage:.1%}"
    elif config.min_coverage and not sure > by_chance:
        why = f"only {sure:.1%} of the images are certainly in a cluster; chance may put {by_chance:.1%} into one"
    elif not largest <= config.max_largest_share * len(found):
        why = f"one cluster holds {largest} of {len(found)} images; the maximum is {config.max_largest_share:.0%}"
    elif turned is not None and not turned <= config.max_churn:
        why = f"{turned:.1%} of the images that had a pseudo-ID would lose it; the maximum is {config.max_churn:.1%}"
    return Report(
        count=len(sizes),
        coverage=coverage,
        largest=largest,
        median=float(np.median(sizes)) if len(sizes) else 0.0,
        size_95=float(np.quantile(sizes, 0.95)) if len(sizes) else 0.0,
        sizes=histogram(sizes),
        churn=turned,
        purity=purity(found[judged], person[judged]) if person is not None and judged.any() else None,
        pair_f=None if person is None else pair_f(found[known], person[known]),
        accepted=not why,
        why=why,
        **others,
    )


def keep_ids(previous: Longs, found: Longs) -> Longs:
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


def effective_rank(sample: Floats) -> float:
    """Return the effective rank of embeddings [S, D]: 0 if all are equal, D if they vary equally in all directions.

    It is the participation ratio of the variances. Rows that are not finite give NaN.
    """
    centred = sample.astype(np.float64) - sample.mean(0, dtype=np.float64) if len(sample) else np.zeros((0, 1))
    gram = centred.T @ centred if len(sample) > sample.shape[1] else centred @ centred.T
    total = float(np.trace(gram))
    return total**2 / float((gram**2).sum()) if not total <= EQUAL * len(sample) else 0.0


def churn(previous: Longs, found: Longs) -> float | None:
    """Return the share of images with a pseudo-ID in `previous` [N] that have another one, or none, in `found` [N]."""
    had = previous != NO_ID
    return float((found[had] != previous[had]).mean()) if had.any() else None


def histogram(sizes: Longs) -> dict[str, int]:
    """Count the clusters of 2-3 images, 4-7, 8-15, …; empty bins are left out."""
    power, count = np.unique(np.floor(np.log2(sizes)).astype(np.int64), return_counts=True)
    return {f"{2**p}-{2 ** (p + 1) - 1}": int(c) for p, c in zip(power, count, strict=True)}


def purity(pseudo_ids: Longs, labels: Ints) -> float:
    """Return the share of labelled images that carry the commonest label of their cluster; 1 if there are none."""
    if not len(pseudo_ids):
        return 1.0
    cluster = np.unique(pseudo_ids, return_inverse=True)[1]
    person = np.unique(labels, return_inverse=True)[1]
    both, count = np.unique(cluster * (person.max() + 1) + person, return_counts=True)
    most = np.zeros(cluster.max() + 1, np.int64)
    np.maximum.at(most, both // (person.max() + 1), count)
    return float(most.sum() / len(pseudo_ids))


def pair_f(pseudo_ids: Longs, labels: Ints) -> float:
    """Return the F score of "these two images show one person" over all N (N - 1) / 2 pairs; 1 if every image is alone.

    An image without a pseudo-ID is in no found pair.
    """
    right, found = _right_and_found(pseudo_ids, labels)
    both = found + _pairs(labels)
    return 2 * right / both if both else 1.0


def pair_precision(pseudo_ids: Longs, labels: Ints) -> float:
    """Return the share of pairs with one pseudo-ID that show one person; 1 if there is no such pair."""
    right, found = _right_and_found(pseudo_ids, labels)
    return right / found if found else 1.0


def bcubed_f(pseudo_ids: Longs, labels: Ints) -> float:
    """Return BCubed F (Bagga and Baldwin 1998); an image without a pseudo-ID is its own cluster. 1 for no images."""
    alone = pseudo_ids == NO_ID
    ids = np.where(alone, pseudo_ids.max(initial=NO_ID) + 1 + np.cumsum(alone), pseudo_ids)
    cluster = np.unique(ids, return_inverse=True)[1]
    person = np.unique(labels, return_inverse=True)[1]
    if not len(ids):
        return 1.0
    both = np.unique(cluster * (person.max() + 1) + person, return_inverse=True)[1]
    common = np.bincount(both)[both]
    precision = (common / np.bincount(cluster)[cluster]).mean()
    recall = (common / np.bincount(person)[person]).mean()
    return float(2 * precision * recall / (precision + recall))


def _right_and_found(pseudo_ids: Longs, labels: Ints) -> tuple[int, int]:
    """Count the pairs with one pseudo-ID: those that show one person, and all."""
    has = pseudo_ids != NO_ID
    cluster = np.unique(pseudo_ids[has], return_inverse=True)[1]
    person = np.unique(labels, return_inverse=True)[1]
    return _pairs(cluster * (person.max(initial=0) + 1) + person[has]), _pairs(cluster)


def _pairs(names: NDArray[np.integer]) -> int:
    """Count the pairs that carry the same name."""
    count = np.unique(names, return_counts=True)[1]
    return int((count * (count - 1) // 2).sum())
