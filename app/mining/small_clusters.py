"""Leave out clusters of three to five images that resemble each other by chance.

Images that are each near to one other image by chance form a small cluster, but their other cosines are low. So the
mean cosine of a small cluster is compared with that of as many images of large clusters that are as near to one of
them. The lowest small clusters are left out, as long as at most half of them may be people (after Benjamini and
Hochberg 1995).

Letters: m clusters of s images, B = BINS.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from app.mining.arrays import Doubles, Longs, Mask

SMALL = (3, 4, 5)  # images of a cluster that is judged; fewer have one cosine
LARGE = 8  # images of a cluster that strangers hardly form
BINS = 2**8  # of a cosine from 0 to 1
NEAREST = 0.02  # share of the small clusters in which some image is farther from its nearest one than in all others
OF_PEOPLE = 0.5  # of the clusters left out, at most, as estimated from the large clusters
LOWEST = 0.16  # share of the clusters of a person that may be left out: below one standard deviation


class Likeness(NamedTuple):
    """How alike the images of m clusters are, in bins."""

    mean: Longs  # [m]: the mean cosine of two images
    nearest: Longs  # [m]: the lowest cosine of an image with its nearest one


def likeness(cosine: Doubles) -> Likeness:
    """Return how alike the images of clusters are, given their cosines [m, s, s]."""
    size = cosine.shape[1]
    other = ~np.eye(size, dtype=np.bool_)
    return Likeness(
        _bin(cosine.mean(axis=(1, 2), where=other)),
        _bin(cosine.max(axis=2, where=other, initial=-1.0).min(axis=1)),
    )


def parts(cosine: Doubles, images: int) -> Doubles:
    """Return the cosines [m * s, images, images] of each image of large clusters [m, s, s] and the ones after it."""
    size = cosine.shape[1]
    chosen = (np.arange(size)[:, None] + np.arange(images)) % size
    return cosine[:, chosen[:, :, None], chosen[:, None, :]].reshape(-1, images, images)


def counted(of_parts: Likeness) -> Longs:
    """Return how many parts have each likeness [B, B]: the mean, and the nearest."""
    pairs = of_parts.mean * BINS + of_parts.nearest
    return np.bincount(pairs, minlength=BINS * BINS).reshape(BINS, BINS).astype(np.int64)


def resemble_by_chance(clusters: Likeness, of_parts: Longs) -> Mask:
    """Return which small clusters [m] are left out, given the likeness [B, B] of parts of large clusters."""
    count = len(clusters.mean)
    if not count or not of_parts.any():
        return np.zeros(count, np.bool_)
    nearest = np.sort(clusters.nearest)[int(NEAREST * (count - 1))]
    below = np.cumsum(of_parts[:, nearest:].sum(axis=1))
    share = (below[clusters.mean] + 1) / (below[-1] + 1)  # of the clusters of a person that are as low
    ordered = np.sort(share)
    # One more is added, for data sets with few small clusters.
    low = (ordered * count + 1 <= OF_PEOPLE * np.arange(1, count + 1)) & (ordered <= LOWEST)
    return share <= ordered[low].max(initial=-1.0)


def _bin(cosine: Doubles) -> Longs:
    return (cosine * BINS).clip(0, BINS - 1).astype(np.int64)
