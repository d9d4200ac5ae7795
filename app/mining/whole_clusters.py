"""Deal the images of clusters to processes: each cluster is whole on one process, some clusters at a time.

Letters: n images of this process (its contiguous share), D embedding size, C clusters, m clusters of s images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from app.mining.arrays import Floats, Longs, Mask
from app.mining.exchange import first_row
from app.mining.partition import dealt
from app.runtime.dist import World, share

ROWS_AT_ONCE = 2**15  # of a process
ENTRIES_AT_ONCE = 2**17  # of matrices, and twice as many of rows; more do not stay in a cache


def whole_clusters(
    cluster: Longs, size: Longs, chosen: Mask, shard: Tensor, here: World
) -> Iterator[tuple[Longs, Floats]]:
    """Yield ids [e], ascending, and embeddings [e, D] of whole `chosen` clusters, each cluster on one process.

    All processes yield equally often. A process holds about ROWS_AT_ONCE rows at a time, of clusters of similar sizes.
    """
    images = np.where(chosen, size, 0)
    piece, order = np.empty_like(images), np.argsort(images, kind="stable")
    piece[order] = (np.cumsum(images[order]) - images[order]) // ROWS_AT_ONCE
    first = first_row(len(cluster), here)
    own = first + np.flatnonzero(chosen[share(cluster, here)])
    for number in range(-(-(int(piece[chosen].max(initial=-1)) + 1) // here.size)):
        ids = own[piece[cluster[own]] // here.size == number]
        rows = shard.index_select(0, torch.from_numpy(ids - first).to(shard.device)).cpu().numpy()
        owner = piece[cluster[ids]] % here.size
        yield dealt(ids, owner, here), dealt(rows, owner, here)


def by_size(cluster: Longs, width: int) -> list[Longs]:
    """Return the rows [m, s] of the clusters of each size, of which `cluster` [e] is that of each row.

    A row has `width` numbers. Of clusters of one size there are several such groups, each small enough for a cache.
    """
    order = np.argsort(cluster, kind="stable")
    _, first, count = np.unique(cluster[order], return_index=True, return_counts=True)
    groups = []
    for size in np.unique(count):
        begins = first[count == size]
        at_once = max(1, ENTRIES_AT_ONCE // int(size * max(size, width // 2)))
        for some in np.split(begins, range(at_once, len(begins), at_once)):
            groups.append(order[some[:, None] + np.arange(size)])
    return groups
