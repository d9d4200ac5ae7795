"""Join clusters that are pieces of one person whose images come in groups, as of several videos.

A list has the nearest images only: those of the image's own group and a few others. So a person with more images than
a list has room for becomes several clusters. Between two of them the mean cosine is that of one person; within one it
is higher, because the images of a group are alike. The mean cosine between two clusters, divided by the geometric mean
of those within them, is the cosine of their centres without the noise of the images (Spearman 1904).

Clusters are joined if their centres have more in common than not, the most alike ones first. Less is enough if both are
surely pieces, with full lists of mostly other clusters: their centres need only be nearer to each other than to
strangers. `look_alikes.py` later separates people who look alike and were joined.

Letters: N images mined, n of this process (its contiguous share), P pairs of clusters, C clusters of pairs, D embedding
size.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from app.mining.arrays import Doubles, Ints, Longs, Mask
from app.mining.cluster import by_smallest_member, gather
from app.mining.curves import touching
from app.mining.exchange import first_row
from app.mining.graph import add_outside
from app.mining.lists import Neighbours
from app.mining.sample import sums_of, usable_of_all
from app.runtime.dist import World, from_main, share, total
from app.runtime.stop import Poll, undisturbed

ONE_PERSON = 0.5**0.5  # cosine of the centres of two clusters; half of the squared length of each is common
NEARER = 0.5  # the same, for pieces


def pieced(
    labels: Longs,
    shard: Tensor,
    listed: Neighbours,
    floor: float,
    original: Ints,
    largest: int,
    here: World,
    poll: Poll = undisturbed,
) -> Longs:
    """Return clusters [N] where pieces of one person are one cluster of up to `largest` images; the same on every rank.

    `labels` [N] are clusters, `shard` [n, D] this rank's unit embeddings and `listed` their lists, where neighbours
    reach `floor`. `original` [N]: the image that an image is a near-copy of, else itself; copies do not count.
    """
    part = usable_of_all(shard, here) & (original == np.arange(len(labels)))
    images = np.bincount(labels[part], minlength=len(labels))
    pairs = touching(labels, images, listed, floor, here)
    piece = _are_pieces(labels, images, listed, floor, here)
    poll()
    # A list has room for all images of two smaller clusters.
    pairs = pairs[(images[pairs].sum(1) > listed.ids.shape[1]) | piece[pairs].all(axis=1)]
    if not len(pairs):
        return labels
    names, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(pairs.shape)
    place = np.full(len(labels), -1)
    place[names] = np.arange(len(names))
    own = share(np.where(part, place[labels], -1), here)
    rows = np.flatnonzero(own >= 0)
    sums = sums_of(torch.from_numpy(rows), torch.from_numpy(own[rows]), len(names), shard, here)
    poll()
    into = np.arange(len(labels))
    into[names] = names[from_main(united(ends, sums, images[names], piece[names], largest), here)]
    return by_smallest_member(into[labels])


def _are_pieces(labels: Longs, images: Longs, listed: Neighbours, floor: float, here: World) -> Mask:
    """Return for each of `labels` [N] whether its images' lists are mostly full, with mostly images of other clusters.

    `images` [N]: how many count in each cluster; a near-copy of another image has no list.
    """
    full: Mask = gather(np.asarray((listed.cosine >= floor).all(axis=1)), here)
    outside = np.zeros(len(labels), np.int64)
    add_outside(listed.ids, first_row(len(labels), here), labels.astype(np.int32), full, outside)
    outside = total(torch.from_numpy(outside), here).numpy()
    return 2 * outside > images * listed.ids.shape[1]


def united(pairs: Longs, sums: Doubles, images: Longs, piece: Mask, largest: int) -> list[int]:
    """Return for each of C clusters the one that it is joined to, or itself; `pairs` [P, 2] may join.

    `sums` [C, D]: the sum of the unit embeddings of a cluster, of `images` [C] images, two or more. `piece` [C]: it is
    surely a piece. Joined clusters have up to `largest` images.
    """
    sums, size, piece = sums.copy(), images.astype(np.float64), piece.copy()
    within = (np.einsum("cd,cd->c", sums, sums) - size) / (size * (size - 1))  # mean cosine of two images
    into, changes = list(range(len(size))), [0] * len(size)
    beside: list[set[int]] = [set() for _ in into]
    waiting: list[tuple[float, int, int, int, int]] = []  # the most alike pair first

    def add_pairs(one: int, others: set[int]) -> None:
        """Let `one` wait with those of the `others` that it may be joined with."""
        other = np.array(sorted(others), np.int64)
        between = sums[other] @ sums[one] / (size[one] * size[other])
        spread = np.sqrt(np.maximum(within[one], 0) * np.maximum(within[other], 0))
        alike = np.divide(between, spread, out=np.zeros(len(other)), where=spread > 0)
        enough = alike > np.where(piece[one] & piece[other], NEARER, ONE_PERSON)
        for at in np.flatnonzero(enough & (size[one] + size[other] <= largest)).tolist():
            first, second = sorted((one, int(other[at])))
            heappush(waiting, (-float(alike[at]), first, second, changes[first], changes[second]))

    for one, other in pairs.tolist():
        beside[one].add(other)
        beside[other].add(one)
    for one, others in enumerate(beside):
        add_pairs(one, {other for other in others if other > one})
    while waiting:
        _, one, other, *known = heappop(waiting)
        if known != [changes[one], changes[other]]:
            continue
        sums[one] += sums[other]
        size[one] += size[other]
        within[one] = (sums[one] @ sums[one] - size[one]) / (size[one] * (size[one] - 1))
        piece[one] &= piece[other]
        into[other] = one
        changes[one] += 1
        changes[other] += 1
        for third in beside[other]:
            beside[third].remove(other)
            beside[third].add(one)
        beside[one] = (beside[one] | beside[other]) - {one}
        add_pairs(one, beside[one])
    for cluster in range(len(into)):
        while into[cluster] != into[into[cluster]]:
            into[cluster] = into[into[cluster]]
    return into


def in_pieces(labels: Longs, pieces: Longs) -> Longs:
    """Return the intersections [N] of the clusters `labels` [N] and `pieces` [N]."""
    return by_smallest_member(np.unique(labels * len(labels) + pieces, return_inverse=True)[1])


def in_either(labels: Longs, others: Longs, largest: int) -> Longs:
    """Return the smallest clusters [N] that hold those of `labels` and `others` [N] whole; `labels` if too large."""
    count = len(labels)
    edge = np.ones(count, np.bool_), (labels, count + others)
    either = connected_components(sparse.coo_array(edge, shape=(2 * count, 2 * count)), directed=False)[1][labels]
    return by_smallest_member(np.where(np.bincount(either)[either] <= largest, count + either, labels))
