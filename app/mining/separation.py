"""Measure without labels how far apart clusters lie: the silhouette (Rousseeuw 1987) of a sample of images.

Letters: N images, n of this process (its contiguous share), D embedding size, S sampled images, C clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.mining.arrays import Doubles, Floats, Ints, Longs
from app.mining.clustered import SEED, without_copies
from app.mining.sample import draw, sums_of, usable_of_all
from app.runtime.dist import World, from_main, share

SAMPLE = 2048  # images
NUMBERS_AT_ONCE = 2**22  # of means; their cosines take 8 bytes for each image of the sample


class Separation(NamedTuple):
    """How far apart clusters lie; without clusters both are 0."""

    silhouette: float  # mean over images: 1 far from other clusters, below 0 nearer to one; 0 without cluster
    separated: float  # share of the images in clusters that are more like their own cluster than like any other


def separation(labels: Longs, shard: Tensor, original: Ints, here: World) -> Separation:
    """Return how far apart the clusters `labels` [N] lie; the same on every rank.

    `shard` [n, D] are this rank's unit embeddings, `original` [N] the image that an image is a near-copy of, else
    itself. Copies do not count. An image resembles a cluster as much as their mean cosine says.
    """
    rows = without_copies(shard, original, here)
    good = usable_of_all(rows, here)
    names, cluster = np.unique(np.where(good, labels, -1), return_inverse=True)
    size = np.bincount(cluster, minlength=len(names)) * (names >= 0)
    ids, sample = draw(rows, here, SAMPLE, SEED)
    inside, other = _likeness(cluster, size, rows, cluster[ids.cpu().numpy()], sample.cpu().numpy(), here)
    joined = np.isfinite(inside)
    if not joined.any():
        return Separation(0.0, 0.0)
    inside, other = inside[joined], other[joined]
    apart = (inside - other) / np.maximum(1 - np.minimum(inside, other), np.finfo(np.float32).eps)
    silhouette, separated = from_main((float(apart.sum() / len(joined)), float((inside > other).mean())), here)
    return Separation(silhouette, separated)


def _likeness(
    cluster: Longs, size: Longs, rows: Tensor, own: Longs, sample: Floats, here: World
) -> tuple[Doubles, Doubles]:
    """Return the mean cosines [S] of sampled images with the others of their cluster, and with the most similar other.

    `cluster` [N], `size` [C]; `own` [S] are the clusters of the `sample` [S, D]. The first is NaN for an image alone.
    """
    inside, other = np.full(len(own), np.nan), np.full(len(own), -1.0)
    chosen, image = np.flatnonzero(size >= 2), np.arange(len(own))
    place = np.full(len(size), -1)
    mine = share(cluster, here)
    for names in np.split(chosen, range(at := NUMBERS_AT_ONCE // max(rows.shape[1], 1), len(chosen), at)):
        place[:] = -1
        place[names] = np.arange(len(names))
        members = np.flatnonzero(place[mine] >= 0)
        sums = sums_of(torch.from_numpy(members), torch.from_numpy(place[mine[members]]), len(names), rows, here)
        alike = (sample @ (sums / size[names, None]).astype(np.float32).T).astype(np.float64)
        at_home = place[own] >= 0
        number = size[own[at_home]]
        inside[at_home] = (alike[image[at_home], place[own[at_home]]] * number - 1) / (number - 1)
        alike[image[at_home], place[own[at_home]]] = -1
        other = np.maximum(other, alike.max(axis=1, initial=-1))
    return inside, other
