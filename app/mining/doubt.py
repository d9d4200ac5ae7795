"""Name the clusters to look at first: those that may show several people, and pairs that may show one person.

Letters: N images mined, n of this process (its contiguous share), D embedding size, k neighbours, C clusters examined.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from app.config import NO_ID
from app.mining.arrays import Longs
from app.mining.cluster import gather
from app.mining.lists import NONE, Neighbours
from app.mining.sample import sums_of
from app.runtime.dist import World, share

EXAMINED = 4096  # clusters; of more, a random choice
LOOSE, ALIKE = 3, 2  # clusters and pairs of clusters that are named
DIGITS = 4  # of the measures
ROWS_AT_ONCE = 2**12


@dataclass(frozen=True)
class Doubts:
    """The most doubtful clusters of a labelling, by pseudo-ID."""

    loose: dict[int, float] = field(default_factory=dict)  # mean cosine of two of its images, lowest first
    # for a pair: how many of the second cluster's images those of the first list, as a share; highest first
    alike: dict[tuple[int, int], float] = field(default_factory=dict)


def doubts(found: Longs, shard: Tensor, listed: Neighbours, here: World) -> Doubts:
    """Return the doubtful clusters among the pseudo-IDs `found` [N], equal on all ranks.

    `shard` [n, D] are this rank's unit embeddings, `listed` its neighbour lists [n, k].
    """
    ids, sizes = np.unique(found[found != NO_ID], return_counts=True)
    if len(ids) > EXAMINED:
        drawn = np.sort(np.random.default_rng(0).choice(len(ids), EXAMINED, replace=False))
    else:
        drawn = np.arange(len(ids))
    if not len(drawn):
        return Doubts()
    own = share(found, here)
    place = np.searchsorted(ids[drawn], own).clip(max=len(drawn) - 1)  # of an image's cluster among those examined
    rows = np.flatnonzero(ids[drawn][place] == own)
    sums = sums_of(torch.from_numpy(rows), torch.from_numpy(place[rows]), len(drawn), shard, here)
    cosine = ((sums**2).sum(axis=1) - sizes[drawn]) / (sizes[drawn] * (sizes[drawn] - 1))
    cosine = cosine.round(DIGITS)
    loosest = np.lexsort((ids[drawn], cosine))[:LOOSE]
    loose = {int(ids[drawn[at]]): float(cosine[at]) for at in loosest}
    return Doubts(loose, _alike(ids, sizes, found, own, rows, listed, here))


def _alike(
    ids: Longs, sizes: Longs, found: Longs, own: Longs, rows: Longs, listed: Neighbours, here: World
) -> dict[tuple[int, int], float]:
    """Return the pairs of clusters whose images list each other's most; a cluster is in one pair at most."""
    pairs_of = [np.zeros(0, np.int64)]
    for part in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
        entries = listed.ids[part]
        other = np.where(entries == NONE, NO_ID, found[entries])
        row, at = np.nonzero((other != NO_ID) & (other != own[part, None]))
        first, second = np.searchsorted(ids, own[part[row]]), np.searchsorted(ids, other[row, at])
        # The images of one person fill the first places of each other's lists.
        near = at < sizes[first] + sizes[second] - 1
        pairs_of.append(first[near] * len(ids) + second[near])
    keys, count = np.unique(np.concatenate(pairs_of), return_counts=True)
    gathered = gather(np.stack([keys, count], axis=1), here)
    keys, index = np.unique(gathered[:, 0], return_inverse=True)
    count = np.zeros(len(keys), np.int64)
    np.add.at(count, index, gathered[:, 1])
    first, second = keys // len(ids), keys % len(ids)
    part = (count / (sizes[first] * np.minimum(sizes[second], listed.ids.shape[1]))).round(DIGITS)
    pairs: dict[tuple[int, int], float] = {}
    used: set[int] = set()
    for each in np.lexsort((second, first, -part)):
        pair = int(ids[first[each]]), int(ids[second[each]])
        if len(pairs) == ALIKE:
            break
        if not used & set(pair):
            pairs[pair] = float(part[each])
            used |= set(pair)
    return pairs
