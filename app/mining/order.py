"""Bring the images into an order that depends on their embeddings alone, so that the order given changes no cluster.

Random draws, ties and sums depend on the places of the images. So images are mined in the order of a hash of their
embeddings. Images of equal embeddings stay in the order given; they are interchangeable.

Letters: N images, n of this process (its contiguous share), D embedding size.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from app.mining.arrays import Longs
from app.mining.exchange import bounds_of, exchanged
from app.runtime.dist import World, gather_rows

ENTRIES_AT_ONCE = 2**18  # fit the second-level cache
COLUMNS_AT_ONCE = 32  # moved together


def order_of(shard: Tensor, here: World) -> Longs:
    """Return the images [N] of all ranks, ordered by a hash of their fp32 embedding in this rank's `shard` [n, D]."""
    bits = shard.view(torch.int32)
    random = np.random.default_rng(0).integers(2**63, size=shard.shape[1])
    factor = torch.from_numpy(random | 1).to(shard.device)  # odd: each bit of the embedding counts
    hashes = torch.empty(len(shard), dtype=torch.int64, device=shard.device)
    rows = max(1, ENTRIES_AT_ONCE // max(1, shard.shape[1]))
    for part, into in zip(bits.split(rows), hashes.split(rows), strict=True):
        into.copy_((part * factor).sum(1))  # modulo 2**64
    return np.argsort(gather_rows(hashes, here).cpu().numpy(), kind="stable")


def places_in(order: Longs) -> Longs:
    """Return the place [N] of each image in `order` [N]."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def move_rows(shard: Tensor, places: Longs, here: World) -> None:
    """Move the rows of all ranks' shards [n, D], in place, each to its place of `places` [N].

    Some columns are moved at a time, so there is no second copy of the embeddings.
    """
    own = [places[first:end] for first, end in pairwise(bounds_of(len(places), here))]
    ascending = torch.from_numpy(np.argsort(own[here.rank])).to(shard.device)
    sorted_places = [np.sort(each) for each in own]
    for columns in shard.split(COLUMNS_AT_ONCE, dim=1):
        columns.copy_(exchanged(columns.index_select(0, ascending), sorted_places, here))
