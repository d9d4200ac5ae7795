"""Exchange embeddings between machines that each embed their own images, so that images need not move.

Letters: N images, n of this process, D embedding size, W processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.runtime.dist import World, swap_rows

EXCHANGE_BYTES = 2**26  # that a process sends, and receives, at once
Places = NDArray[np.int64]


@torch.no_grad()
def exchanged(z: Tensor, places: Sequence[Places], here: World) -> Tensor:
    """Return this process's contiguous share [n', D] of all embeddings, from the scattered ones of all processes.

    `places` [W]: the positions among N of each process's embeddings, ascending; each position is in one of them. `z`
    [n, D] are those of this process. Besides the result a process holds pieces of about EXCHANGE_BYTES.
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


def bounds_of(count: int, here: World) -> Places:
    """Return where the share of each process begins [W + 1], as `dist.share` deals the rows; the last is `count`."""
    least, more = divmod(count, here.size)
    ranks = np.arange(here.size + 1)
    return ranks * least + np.minimum(ranks, more)
