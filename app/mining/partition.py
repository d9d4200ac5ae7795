"""Divide the neighbour lists among processes: each holds those of its own images, and requests others piece by piece.

All processes must call each function equally often.

Letters: N images, n of this process (its contiguous share), k neighbours, m lists at hand, E edges, W processes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.mining.arrays import Ints, Longs
from app.mining.exchange import bounds_of, first_row
from app.mining.graph import mark_near
from app.runtime.dist import World, gather_rows, swap_rows


class Lists:
    """The lists of `count` images, of which this process holds its own: `ids` [n, k], those of the images from `first`.

    With one process nothing is copied.
    """

    def __init__(self, ids: Ints, count: int, here: World) -> None:
        self.ids, self.count, self.here = ids, count, here
        self.first = first_row(count, here)
        self.place = np.zeros(count if here.size > 1 else 0, np.int32)

    def near(self, part: slice, degree: Ints, group: Ints) -> tuple[Ints, Ints]:
        """Return lists [m, k] that include those near the own images `part`, and the row [N] there of an image's list.

        With one process that row is the image's number, and the second array is empty.

        Near are the images of the same `group` [N] among the first `degree` [N] entries; a negative group has none. The
        row of an image whose list is absent has no meaning. Both arrays are valid until the next call.
        """
        if self.here.size == 1:
            return self.ids, self.place
        marked = np.zeros(self.count, np.bool_)
        mark_near(self.ids[part], self.first + part.start, degree, group, marked)
        wanted = np.flatnonzero(marked).astype(np.int32)
        self.place[wanted] = np.arange(len(wanted), dtype=np.int32)
        return requested(wanted, self.ids, self.count, self.here), self.place


def requested(wanted: Ints, rows: Ints, count: int, here: World) -> Ints:
    """Return the rows [m, k] of the images `wanted` [m], ascending, of `count`, from the processes that hold them.

    `rows` [n, k] are those of this process.
    """
    bounds = bounds_of(count, here)
    cuts = np.searchsorted(wanted, bounds)
    sizes = np.diff(cuts)
    others = sizes_for(sizes, here)
    named = swap_rows([torch.from_numpy(wanted[a:b]) for a, b in pairwise(cuts)], others, here).numpy()
    answers = np.split(named - bounds[here.rank], np.cumsum(others)[:-1])
    return swap_rows([torch.from_numpy(rows[each]) for each in answers], sizes.tolist(), here).numpy()


def dealt(rows: NDArray[Any], owner: NDArray[np.integer], here: World) -> NDArray[Any]:
    """Send each of the rows [E, *] to the process `owner` [E]; return those for this one, by rank, then in order."""
    if here.size == 1:
        return rows
    outgoing = [torch.from_numpy(rows[owner == rank]) for rank in range(here.size)]
    sizes = np.array([len(each) for each in outgoing])
    return swap_rows(outgoing, sizes_for(sizes, here), here).numpy()


def sizes_for(sizes: Longs, here: World) -> list[int]:
    """Return how many rows each process sends to this one; `sizes` [W]: how many this one sends to each."""
    whole = gather_rows(torch.from_numpy(sizes[None]), here)  # [W, W]
    return [int(size) for size in whole[:, here.rank]]
