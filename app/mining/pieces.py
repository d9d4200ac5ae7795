"""Join clusters that are pieces of one person whose images come in groups, as of several videos.

The list of an image has the nearest images only: those of its own group, and of a few others. So a person of more
images than a list has falls to pieces that share few neighbours. The mean cosine between two pieces is still that of
one person. Within a piece it is higher, as the images of a group are alike. The cosine between two clusters, divided by
the geometric mean of the cosines within them, is that of their centres without the noise of their images (Spearman
1904). Clusters whose centres have more in common than not are joined, the most alike ones first, and then count as one.
Less is enough for two clusters that are surely pieces: their images have full lists, with mostly others in them. Then
the centres need only be nearer to each other than to those of strangers.

What is joined may show two people who look alike. So this comes before people are separated (`look_alikes.py`).

Letters: N images mined, n of this process (its contiguous share), P pairs of clusters, C clusters of pairs, D embedding
size.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from app.mining.cluster import by_smallest_member, first_row, gather
from app.mining.curves import ROWS_AT_ONCE, STEPS, in_steps, touching
from app.mining.graph import add_outside
from app.mining.lists import Neighbours
from app.mining.sample import usable_of_all
from app.runtime.dist import World, from_main, total
from app.runtime.stop import Poll, undisturbed

ONE_PERSON = 0.5**0.5  # cosine of the centres of two clusters; half of the squared length of each is common
NEARER = 0.5  # the same, for pieces
Ids = NDArray[np.int64]
Rows = NDArray[np.float64]
Mask = NDArray[np.bool_]


def pieced(
    labels: Ids,
    shard: Tensor,
    listed: Neighbours,
    floor: float,
    original: NDArray[np.int32],
    largest: int,
    here: World,
    poll: Poll = undisturbed,
) -> Ids:
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
    own = np.where(part, place[labels], -1)[first_row(len(labels), here) :][: len(shard)]
    added = torch.zeros((len(names), shard.shape[1]), dtype=torch.float64, device=shard.device)
    for rows in torch.from_numpy(np.flatnonzero(own >= 0)).split(ROWS_AT_ONCE):
        into = torch.from_numpy(own[rows.numpy()]).to(shard.device)
        added.index_add_(0, into, in_steps(shard[rows.to(shard.device)]))
    sums = total(added, here).cpu().numpy() / STEPS
    poll()
    into = np.arange(len(labels))
    into[names] = names[from_main(united(ends, sums, images[names], piece[names], largest), here)]
    return by_smallest_member(into[labels])


def _are_pieces(labels: Ids, images: Ids, listed: Neighbours, floor: float, here: World) -> Mask:
    """Return for each of `labels` [N] whether the lists of its images are mostly full, and mostly of other clusters.

    `images` [N] are those that count in each cluster; a near-copy of another image has no list.
    """
    full: Mask = gather(np.asarray((listed.cosine >= floor).all(axis=1)), here)
    outside = np.zeros(len(labels), np.int64)
    add_outside(listed.ids, first_row(len(labels), here), labels.astype(np.int32), full, outside)
    outside = total(torch.from_numpy(outside), here).numpy()
    return 2 * outside > images * listed.ids.shape[1]


def united(pairs: Ids, sums: Rows, images: Ids, piece: Mask, largest: int) -> list[int]:
    """Return for each of C clusters one of those that it is joined with, given the `pairs` [P, 2] that may join.

    `sums` [C, D] are of the unit embeddings of the clusters of `images` [C] images, two or more, and `piece` [C] tells
    which are surely pieces. Joined clusters have up to `largest` images.
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


def in_pieces(labels: Ids, pieces: Ids) -> Ids:
    """Return the parts [N] of the clusters `labels` [N] that are in one of `pieces` [N]."""
    return by_smallest_member(np.unique(labels * len(labels) + pieces, return_inverse=True)[1])


def in_either(labels: Ids, others: Ids, largest: int) -> Ids:
    """Return clusters [N] that hold those of `labels` and `others` [N] whole; instead of too large ones, `labels`."""
    count = len(labels)
    edge = np.ones(count, np.bool_), (labels, count + others)
    either = connected_components(sparse.coo_array(edge, shape=(2 * count, 2 * count)), directed=False)[1][labels]
    return by_smallest_member(np.where(np.bincount(either)[either] <= largest, count + either, labels))
