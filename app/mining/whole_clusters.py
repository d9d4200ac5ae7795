"""Deal the images of clusters to processes, each cluster whole on one process, a part of all images at a time.

Letters: n images of this process (its contiguous share), D embedding size, C clusters, m clusters of s images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.mining.cluster import first_row
from app.mining.partition import dealt
from app.runtime.dist import World

ROWS_AT_ONCE = 2**15  # of a process
ENTRIES_AT_ONCE = 2**17  # of matrices, and twice as many of rows; more do not stay in a cache
Rows = NDArray[np.float64]
Singles = NDArray[np.float32]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


def whole_clusters(cluster: Ids, size: Ids, chosen: Mask, shard: Tensor, here: World) -> Iterator[tuple[Ids, Singles]]:
    """Yield ids [e], ascending, and embeddings [e, D] of whole `chosen` clusters, each cluster on one process.

    All processes yield equally often. A process holds about ROWS_AT_ONCE rows at a time, of clusters of like sizes.
    """
    images = np.where(chosen, size, 0)
    piece, order = np.empty_like(images), np.argsort(images, kind="stable")
    piece[order] = (np.cumsum(images[order]) - images[order]) // ROWS_AT_ONCE
    first = first_row(len(cluster), here)
    own = first + np.flatnonzero(chosen[cluster[first : first + len(shard)]])
    for number in range(-(-(int(piece[chosen].max(initial=-1)) + 1) // here.size)):
        ids = own[piece[cluster[own]] // here.size == number]
        rows = shard.index_select(0, torch.from_numpy(ids - first).to(shard.device)).cpu().numpy()
        owner = piece[cluster[ids]] % here.size
        yield dealt(ids, owner, here), dealt(rows, owner, here)


def by_size(cluster: Ids, width: int) -> list[Ids]:
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


def in_64_bits(rows: Singles, places: Ids) -> Rows:
    """Return the `rows` [e, D] at `places` [m, s]: [m, s, D]."""
    return rows[places].astype(np.float64)
