"""Exchange embeddings between machines that each embed their own images, so that images need not move.

Letters: N images, n of this process, D embedding size, W processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from app.mining.arrays import Longs
from app.runtime.dist import World, swap_rows

EXCHANGE_BYTES = 2**26  # sent by a process, and received, at once


@torch.no_grad()
def exchanged(z: Tensor, places: Sequence[Longs], here: World) -> Tensor:
    """Return this process's contiguous share [n', D] of all embeddings, from the scattered ones of all processes.

    `places` [W]: the ascending positions among N of each process's embeddings; together, each position once. `z` [n,
    D]: the embeddings of this process. Besides the result a process holds pieces of about EXCHANGE_BYTES.
    """
    if here.size == 1:
        return z  # all positions, ascending
    count = sum(map(len, places))
    bounds = bounds_of(count, here)
    # [W, W + 1] where the part of each sender for each receiver begins
    cuts = np.array([np.searchsorted(each, bounds) for each in places])
    first, end = bounds[here.rank], bounds[here.rank + 1]
    result = z.new_empty(int(end - first), z.shape[1])
    rows = max(1, EXCHANGE_BYTES // (here.size * z.shape[1] * z.element_size()))  # to each process
    for start in range(0, int(np.diff(cuts).max(initial=0)), rows):
        low = np.minimum(cuts[:, :-1] + start, cuts[:, 1:])
        high = np.minimum(low + rows, cuts[:, 1:])
        outgoing = [z[a:b] for a, b in zip(low[here.rank], high[here.rank], strict=True)]
        sizes = (high - low)[:, here.rank]
        incoming = swap_rows(outgoing, [int(size) for size in sizes], here)
        into = [each[a:b] for each, a, b in zip(places, low[:, here.rank], high[:, here.rank], strict=True)]
        result[torch.from_numpy(np.concatenate(into) - first).to(z.device)] = incoming
    return result


def bounds_of(count: int, here: World) -> Longs:
    """Return where the share of each process begins [W + 1], as `dist.share` deals the rows; the last is `count`."""
    least, more = divmod(count, here.size)
    ranks = np.arange(here.size + 1)
    return ranks * least + np.minimum(ranks, more)


def first_row(count: int, here: World) -> int:
    """Return where this rank's share of `count` rows begins."""
    return int(bounds_of(count, here)[here.rank])
