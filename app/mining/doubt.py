"""Name the clusters that a person should look at first: those that may show several people, and pairs of one person.

Letters: N images mined, n of this process (its contiguous share), D embedding size, k neighbours, C clusters examined.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.config import NO_ID
from app.mining.cluster import first_row, gather
from app.mining.lists import NONE, Neighbours
from app.runtime.dist import World, total

EXAMINED = 4096  # clusters; of more, as many are drawn
LOOSE, ALIKE = 3, 2  # clusters and pairs of clusters that are named
STEPS = 2**20  # of a coordinate: sums of whole numbers do not depend on the number of processes
DIGITS = 4  # of the measures
ROWS_AT_ONCE = 2**12
IdArray = NDArray[np.int64]


@dataclass(frozen=True)
class Doubts:
    """The most doubtful clusters of a labelling, by pseudo-ID."""

    loose: dict[int, float] = field(default_factory=dict)  # mean cosine of two of its images, lowest first
    # for a pair: how many of the second cluster's images those of the first list, as a share; highest first
    alike: dict[tuple[int, int], float] = field(default_factory=dict)


def doubts(found: IdArray, shard: Tensor, listed: Neighbours, here: World) -> Doubts:
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
    own = found[first_row(len(found), here) :][: len(listed.ids)]
    place = np.searchsorted(ids[drawn], own).clip(max=len(drawn) - 1)  # of an image's cluster among those examined
    rows = np.flatnonzero(ids[drawn][place] == own)
    return Doubts(
        _loose(ids[drawn], sizes[drawn], _sums(shard, rows, place[rows], len(drawn), here)),
        _alike(ids, sizes, found, own, rows, listed, here),
    )


def _sums(shard: Tensor, rows: IdArray, place: IdArray, clusters: int, here: World) -> NDArray[np.float64]:
    """Return the sum [C, D] of the embeddings of each examined cluster, over all ranks."""
    sums = torch.zeros(clusters, shard.shape[1], dtype=torch.int64, device=shard.device)
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        at, into = (torch.from_numpy(each[part]).to(shard.device) for each in (rows, place))
        sums.index_add_(0, into, (shard.index_select(0, at).double() * STEPS).round().long())
    return total(sums, here).cpu().numpy() / STEPS


def _loose(ids: IdArray, sizes: IdArray, sums: NDArray[np.float64]) -> dict[int, float]:
    """Return the clusters whose images differ most."""
    cosine = ((sums**2).sum(axis=1) - sizes) / (sizes * (sizes - 1))
    cosine = cosine.round(DIGITS)
    return {int(ids[at]): float(cosine[at]) for at in np.lexsort((ids, cosine))[:LOOSE]}


def _alike(
    ids: IdArray, sizes: IdArray, found: IdArray, own: IdArray, rows: IdArray, listed: Neighbours, here: World
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
    share = (count / (sizes[first] * np.minimum(sizes[second], listed.ids.shape[1]))).round(DIGITS)
    pairs: dict[tuple[int, int], float] = {}
    used: set[int] = set()
    for each in np.lexsort((second, first, -share)):
        pair = int(ids[first[each]]), int(ids[second[each]])
        if len(pairs) == ALIKE:
            break
        if not used & set(pair):
            pairs[pair] = float(share[each])
            used |= set(pair)
    return pairs
