"""Sum and sample the embeddings of all ranks, and measure a search on a sample against brute force.

Letters: n images of this rank, D size, s images of a sample, k neighbours, R ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from app.mining.arrays import Doubles, Floats, Mask
from app.mining.candidates import FP32_ERROR, full_precision
from app.mining.lists import NONE, Neighbours, nothing, usable
from app.runtime.dist import World, gather_rows, total

SCORES_AT_ONCE, ROWS_AT_ONCE = 2**26, 2**14
STEPS = 2**20  # of a coordinate; sums of whole numbers do not depend on the number of processes


def usable_of_all(shard: Tensor, here: World) -> Mask:
    """Return which images [N] of all ranks have a direction, from each rank's `shard` [n, D]."""
    return gather_rows(usable(shard).to(torch.uint8), here).cpu().numpy() > 0


def in_steps(rows: Tensor) -> Tensor:
    """Return unit `rows` [*, D] in STEPS: whole numbers, of which sums and scalar products in 64 bits are exact."""
    return rows.double().mul(STEPS).round_()


def sums_of(rows: Tensor, into: Tensor, count: int, shard: Tensor, here: World) -> Doubles:
    """Return the sums [count, D] of the unit `rows` [e] of every rank's shard [n, D], each added `into` [e] one sum."""
    sums = torch.zeros((count, shard.shape[1]), dtype=torch.float64, device=shard.device)
    for own, places in zip(rows.split(ROWS_AT_ONCE), into.split(ROWS_AT_ONCE), strict=True):
        sums.index_add_(0, places.to(shard.device), in_steps(shard[own.to(shard.device)]))
    return total(sums, here).cpu().numpy() / STEPS


def sum_before(count: int, here: World) -> int:
    """Return the sum of the counts of the ranks before this one: the id of this rank's first row."""
    counts = gather_rows(torch.tensor([count], device=here.device), here)
    return int(counts[: here.rank].sum())


def sample_rows(shard: Tensor, here: World, count: int, seed: int) -> Floats:
    """Return embeddings [<=count, D] of a random sample of all ranks' usable images, in their order.

    The same on every rank, and for any number of ranks.
    """
    return draw(shard, here, count, seed)[1].cpu().numpy()


def draw(shard: Tensor, here: World, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw up to `count` usable images of all ranks; return ids [s], ascending, and embeddings [s, D]."""
    good = np.flatnonzero(usable_of_all(shard, here))
    drawn = np.random.default_rng(seed).choice(good, min(count, len(good)), replace=False)
    ids = torch.from_numpy(np.sort(drawn)).to(shard.device)
    return ids, gather_rows(shard[owned(ids, shard, here)[1]], here)


def owned(ids: Tensor, shard: Tensor, here: World) -> tuple[Tensor, Tensor]:
    """Return which ids are rows of this rank's shard (bool, of their shape), and the numbers of those rows [*]."""
    first = sum_before(len(shard), here)
    mine = (ids >= first) & (ids < first + len(shard))
    return mine, ids[mine] - first


def true_neighbours(ids: Tensor, rows: Tensor, shard: Tensor, k: int, here: World) -> tuple[Tensor, Tensor]:
    """Return ids and cosines [s, k] of the neighbours of the images `ids` [s] (`rows` [s, D]), by brute force in fp32.

    Every rank compares them with its own shard [n, D]. The same on every rank; NONE and -inf where there are fewer.
    """
    first = sum_before(len(shard), here)
    good = usable(shard)
    names, best = nothing(len(ids), k, shard.device)
    for part in torch.arange(len(ids), device=shard.device).split(max(1, SCORES_AT_ONCE // max(1, len(shard)))):
        scores = (rows[part] @ shard.T).masked_fill(~good, -torch.inf)
        mine = owned(ids[part], shard, here)[0]
        scores[mine, ids[part][mine] - first] = -torch.inf
        top = min(k, len(shard))
        best[part, :top], names[part, :top] = scores.topk(top, dim=1)
    best = over_ranks(best, here).transpose(0, 1).flatten(1)
    best, place = best.topk(k, dim=1)
    names = over_ranks(names + first, here).transpose(0, 1).flatten(1).gather(1, place)
    return names.masked_fill(~best.isfinite(), NONE), best


def counted(cosine: Tensor, floors: Floats | None) -> Tensor:
    """Return which entries [s, k] of lists the clustering reads: up to the last that reaches its floor.

    Lists are given by their cosines, most similar first. `floors` [k]; None: every entry that exists.
    """
    if floors is None:
        return cosine.isfinite()
    reached = cosine >= torch.from_numpy(floors).to(cosine.device)
    return reached.flip(1).cummax(1).values.flip(1) & cosine.isfinite()


def recall(
    found: Neighbours, shard: Tensor, here: World, *, sample: int, seed: int, floors: Floats | None = None
) -> float:
    """Return the share of the true neighbours of a sample that are in their lists; brute force in fp32 gives the true.

    An entry is correct if it is as near as the last true neighbour, so ties count. The image itself and repeated
    entries do not count. With `floors` [k] only the neighbours that the clustering reads count (`counted`). The same on
    every rank; NaN if a floor is NaN.
    """
    if floors is not None and np.isnan(floors).any():
        return float("nan")
    k = found.ids.shape[1]
    with full_precision(shard.device):
        ids, rows = draw(shard, here, sample, seed)
        places = owned(ids, shard, here)[1]
        lists = gather_rows(torch.from_numpy(found.ids).to(shard.device)[places].long(), here)  # [s, k]
        in_shard, rows_named = owned(lists, shard, here)
        named = torch.full(lists.shape, -torch.inf, device=shard.device)  # cosines of the listed neighbours
        named[in_shard] = (rows.repeat_interleave(in_shard.sum(1), 0) * shard[rows_named]).sum(1)
        named = over_ranks(named, here).amax(0)
        best = true_neighbours(ids, rows, shard, k, here)[1]
    exists = counted(best, floors)
    last = best.masked_fill(~exists, torch.inf).amin(1, keepdim=True)
    repeated = torch.zeros_like(exists)
    in_order, order = lists.sort(dim=1)
    repeated.scatter_(1, order[:, 1:], in_order[:, 1:] == in_order[:, :-1])
    right = (named >= last - 2 * FP32_ERROR) & (lists != ids[:, None]) & ~repeated
    hits = torch.minimum(right.sum(1), exists.sum(1))  # with floors, a list may name more ties than count
    return float(hits.sum() / exists.sum()) if exists.any() else 1.0


def over_ranks(values: Tensor, here: World) -> Tensor:
    """Stack every rank's tensor of one shape [s, k] into [R, s, k]."""
    return gather_rows(values[None], here)
