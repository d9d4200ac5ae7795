"""Leave out images that resemble the others of their cluster no more than strangers do.

A stranger joins a cluster if it is near to one or two of its images by chance; to the others it is not. So an image
stays if its mean cosine with the others is nearer to that of a person, the median over all images in clusters, than to
that of two strangers.

The images of some people scatter more than usual, so even the nearest ones are less alike. In a cluster with enough
images, the limit is lower by as much. If several people are in one cluster, the nearest images show one of them and are
as alike as usual.

Clusters of two images are judged together. If their cosines are clearly lower than those of two images of larger
clusters, all of them are dissolved. Of the next larger clusters, only those of low cosines are (`small_clusters.py`).

Letters: N images, n of this process (its contiguous share), D embedding size, S sampled images, C clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.mining.arrays import Doubles, Floats, Ints, Longs
from app.mining.cluster import by_smallest_member
from app.mining.sample import usable_of_all
from app.mining.small_clusters import BINS as LIKENESS_BINS
from app.mining.small_clusters import LARGE, SMALL, Likeness, counted, likeness, parts, resemble_by_chance
from app.mining.whole_clusters import by_size, whole_clusters
from app.runtime.dist import World, from_main, total
from app.runtime.stop import Poll, undisturbed
from app.runtime.threads import on_cores, small_matrices

STEPS = 2**20  # of a cosine: it does not depend on the last bits
LOOKED_AT = 32  # images of a cluster
BINS = 2**11  # of the cosines from -1 to 0, and from 0 to 1
ENOUGH = 10  # images of a cluster, to tell how much it scatters
LOWEST = 0.02  # share of the clusters of two whose cosines are left out
LOWER, SURE = 0.05, 2.5  # least distance of the mean rank from 1/2, and the same in standard deviations


def without_strangers(
    labels: Longs, shard: Tensor, original: Ints, sample: Floats, largest: int, here: World, poll: Poll = undisturbed
) -> Longs:
    """Return clusters [N] where the strangers in a cluster are alone; the same on every rank.

    `labels` [N] are clusters, those of more than `largest` images stay. `shard` [n, D] are this rank's unit embeddings,
    `original` [N] the image that an image is a near-copy of, else itself; copies follow. `sample` [S, D]: embeddings of
    random images, without copies.
    """
    part = usable_of_all(shard, here) & (original == np.arange(len(labels)))
    names, cluster = np.unique(np.where(part, labels, -1), return_inverse=True)
    size = np.bincount(cluster, minlength=len(names))
    chosen = (size >= 2) & (size <= largest) & (names >= 0)
    if not chosen.any():
        return labels
    cosine, pairs = np.zeros(len(labels), np.int64), np.zeros((2, 2 * BINS + 1), np.int64)
    nearest = np.zeros(len(names), np.int64)
    small, of_parts = np.zeros((2, len(names)), np.int64), np.zeros((len(SMALL), *[LIKENESS_BINS] * 2), np.int64)
    with small_matrices():
        for ids, rows in whole_clusters(cluster, size, chosen, shard, here):
            groups = by_size(cluster[ids], rows.shape[1])
            compared = on_cores(_compared, [(rows, places) for places in groups])
            for places, (others, near, alike, whole, of_larger) in zip(groups, compared, strict=True):
                cosine[ids[places]] = others
                nearest[cluster[ids[places[:, 0]]]] = near
                pairs[int(places.shape[1] > 2)] += alike
                if whole:
                    small[:, cluster[ids[places[:, 0]]]] = whole
                if of_larger:
                    of_parts += [counted(each) for each in of_larger]
            poll()
    cosine, nearest = (total(torch.from_numpy(each), here).numpy() for each in (cosine, nearest))
    joined = chosen[cluster]
    strangers, person = from_main((between_strangers(sample), float(np.median(cosine[joined])) / STEPS), here)
    limit = (strangers + person) / 2
    share = scatters(nearest / STEPS, np.where(chosen, size, 0), strangers)
    low = cosine < (strangers + (limit - strangers) * share)[cluster] * STEPS
    looked_at = int(np.minimum(size[chosen & (size > 2)], LOOKED_AT).sum())
    pairs = total(torch.from_numpy(pairs), here).numpy()
    pairs[:, : round((limit + 1) * BINS)] = 0
    if are_lower(pairs[0], pairs[1], looked_at):
        low |= size[cluster] == 2
    small, of_parts = (total(torch.from_numpy(each), here).numpy() for each in (small, of_parts))
    for few, expected in zip(SMALL, of_parts, strict=True):
        judged = np.flatnonzero(chosen & (size == few))
        by_chance = judged[resemble_by_chance(Likeness(*small[:, judged]), expected)]
        low |= np.isin(cluster, by_chance)
    alone = np.where(joined & low, len(labels) + np.arange(len(labels)), labels)
    return by_smallest_member(np.where(labels == labels[original], alone[original], alone))


def scatters(nearest: Doubles, size: Longs, strangers: float) -> Doubles:
    """Return how alike the nearest images of clusters [C] of `size` images are, from 0 (as strangers) to 1 (as usual).

    `nearest` [C]: the mean cosine of an image and the nearest other one. The usual one is the median over images.
    """
    enough = size >= ENOUGH
    if not enough.any():
        return np.ones(len(size))
    usual = float(np.median(np.repeat(nearest[enough], size[enough])))
    share = (nearest - strangers) / max(usual - strangers, 1 / STEPS)
    return np.where(enough, share.clip(0, 1), 1)


class Compared(NamedTuple):
    """What the cosines within m clusters of s images are."""

    others: Longs  # [m, s]: of an image and the others, on average, in STEPS
    nearest: Longs  # [m]: of an image and the nearest other one, on average, in STEPS
    pairs: Longs  # [2 * BINS + 1]: how many pairs have each
    whole: Likeness | None  # of the clusters, if they are small
    parts: list[Likeness]  # of parts of the clusters, for each of SMALL; none of a small cluster


def _compared(rows: Floats, places: Longs) -> Compared:
    """Compare the images of the clusters at `places` [m, s] of the unit `rows` [e, D]."""
    images = rows[places].astype(np.float64)
    some, size = images[:, :LOOKED_AT], places.shape[1]
    products = np.matmul(some, some.transpose(0, 2, 1))
    one, other = np.triu_indices(some.shape[1], 1)
    alike = products[:, one, other].ravel().clip(-1, 1)
    beside = np.where(np.eye(some.shape[1], dtype=np.bool_), -1.0, products)
    return Compared(
        np.rint(with_others(images) * STEPS).astype(np.int64),
        np.rint(beside.max(axis=2).mean(axis=1) * STEPS).astype(np.int64),
        np.bincount(np.rint((alike + 1) * BINS).astype(np.int64), minlength=2 * BINS + 1),
        likeness(products) if size in SMALL else None,
        [likeness(parts(products, few)) for few in SMALL if size >= LARGE],
    )


def with_others(images: Doubles) -> Doubles:
    """Return the mean cosine [m, s] of each of the unit `images` [m, s, D] with the others of its cluster."""
    others = images.sum(axis=1, keepdims=True) - images
    return (images * others).sum(axis=2) / (images.shape[1] - 1)


def are_lower(pairs: Longs, larger: Longs, images: int) -> bool:
    """Return whether the cosines of clusters of two are lower than those of `images` of larger clusters, both by bin.

    This is the one-sided rank test of Mann and Whitney (1947), with a least size of the effect. Cosines below nearly
    all of those of clusters of two are left out of both. An image is in many cosines of its cluster, so these count as
    no more independent values than there are images.
    """
    counted = np.cumsum(pairs) > LOWEST * pairs.sum()
    pairs, larger = pairs[counted], larger[counted]
    if not pairs.any() or not larger.any():
        return False
    rank = (pairs * (np.cumsum(larger) - larger / 2)).sum() / pairs.sum() / larger.sum()
    independent = min(images, larger.sum())
    return bool(rank < 0.5 - max(LOWER, SURE * ((1 / pairs.sum() + 1 / independent) / 12) ** 0.5))


def between_strangers(sample: Floats) -> float:
    """Return the mean cosine of two images of the `sample` [S, D]; 0 for fewer than two."""
    count = len(sample)
    added = sample.sum(axis=0, dtype=np.float64)
    return float((added @ added - (sample.astype(np.float64) ** 2).sum()) / max(1, count * (count - 1)))
