"""Search the neighbours of embeddings, and cluster them above two floors.

Letters: N images mined, n of this process (its contiguous share), S sampled ones, D embedding size, k neighbours.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.config import MiningConfig
from app.mining.arrays import Floats, Ints, Mask
from app.mining.cluster import Clusters, by_components, by_overlap, gather, similarity_floors, with_looser
from app.mining.exchange import first_row
from app.mining.knn import SearchInexact
from app.mining.lists import NONE, Neighbours
from app.mining.sample import recall, sample_rows
from app.mining.search import searched, tell
from app.runtime.dist import World, from_main, least
from app.runtime.stop import Poll

FLOOR_SAMPLE, RECALL_SAMPLE = 2048, 256  # images
COPY = 0.96  # share of the way from the similarity floor to 1: cosine .98 for a floor of .5
SAME_DIGITS = 4  # of a coordinate; two embeddings of one image may differ in the last bits
LOOSE_FALSE_EDGES = 10.0  # of an image, above the second floor, for people that the first floor splits
LOOSE_SHARE = 0.005  # of all images: the limit of that number in a small set
SEED = 0  # of all draws: clusters depend on the embeddings alone, so no epoch changes them by its number
MANY_COPIES = 0.01  # share of all images; fewer copies do not fill the lists of others


class Clustered(NamedTuple):
    """Embeddings, their neighbours, and their clusters."""

    rows: Tensor  # [n, D] of this rank
    sample: Floats  # [S, D] of all ranks, without copies
    first: Floats  # [k]
    second: Floats  # [k]
    listed: Neighbours  # of all images
    how: str  # how the neighbours were searched
    recall: float
    original: Ints  # [N]: the image that an image is a near-copy of, else itself
    kept: Neighbours  # the lists to cluster, without near-copies
    strict: Clusters  # above the first floor
    likely: Clusters  # with those above the second floor that the first splits
    near: Mask  # [N]: an image has a neighbour above the first floor


def clustered(rows: Tensor, config: MiningConfig, here: World, *, seed: int, poll: Poll) -> Clustered:
    """Return the neighbours and clusters of this rank's unit `rows` [n, D]; the same clusters on every rank.

    `seed` selects the images on which the search is checked. Raises SearchInexact.
    """
    sample = sample_of(rows, here)
    # All ranks use rank 0's numbers: CPUs of several kinds may round the last bit of a product differently.
    count = len(gather(np.empty((len(rows), 0), np.int32), here))
    first, second = _floors(sample, count, config, here)
    listed, how, share = _checked(rows, config, first, here, seed, poll)
    if config.search == "auto" and how != "exact" and not share >= config.min_recall:
        started, because = time.monotonic(), f"cells have {share:.2%} of the neighbours of another sample"
        listed, how, share = _checked(rows, replace(config, search="exact"), first, here, seed, poll)
        tell(f"search: exact, because {because}", started, here)
    if not share >= config.min_recall:
        exact = "backend=faiss" if how == "exact" else "search=exact"
        raise SearchInexact(
            f"the search found {share:.2%} of the true neighbours in a sample; mining.min_recall is "
            f"{config.min_recall:.2%}: give mining.{exact}, which is exact"
        )
    original, kept = _lists_without_copies(rows, listed, config, here, first, poll)
    strict, likely = _strict_and_likely((first, second), kept, original, config, here, poll)
    near = gather(kept.cosine[:, 0] >= first[0], here)
    return Clustered(rows, sample, first, second, listed, how, share, original, kept, strict, likely, near)


def shortened(of: Clustered, length: int, config: MiningConfig, here: World, poll: Poll) -> Clustered:
    """Return the clusters of lists of `length`, the first entries of those of `of`."""
    kept = replace(of.kept, ids=of.kept.ids[:, :length].copy(), cosine=of.kept.cosine[:, :length].copy())
    floors = of.first[:length], of.second[:length]
    strict, likely = _strict_and_likely(floors, kept, of.original, config, here, poll)
    return of._replace(first=floors[0], second=floors[1], kept=kept, strict=strict, likely=likely)


def _strict_and_likely(
    floors: tuple[Floats, Floats], kept: Neighbours, original: Ints, config: MiningConfig, here: World, poll: Poll
) -> tuple[Clusters, Clusters]:
    """Return the clusters above the first of two `floors` [k], and these with those above the second that it splits."""
    strict = _clusters_above(floors[0], kept, original, config, here, poll)
    if config.method == "parity":
        return strict, strict
    loose = _clusters_above(floors[1], kept, original, config, here, poll, strict=False)
    return strict, with_looser(strict, loose, config.max_cluster)


def _checked(
    rows: Tensor, config: MiningConfig, floors: Floats, here: World, seed: int, poll: Poll
) -> tuple[Neighbours, str, float]:
    """Return the neighbours of `rows` [n, D], how they were searched, and the recall on a sample of `seed`."""
    listed, how = searched(rows, config, floors, here, poll)
    share = recall(listed, rows, here, sample=RECALL_SAMPLE, seed=seed, floors=None if how == "exact" else floors)
    poll()
    return listed, how, share


def sample_of(rows: Tensor, here: World) -> Floats:
    """Return embeddings [S, D] of random images of all ranks, without copies; the same on every rank."""
    return different(sample_rows(rows, here, FLOOR_SAMPLE, SEED))


def _clusters_above(
    floors: Floats,
    listed: Neighbours,
    original: Ints,
    config: MiningConfig,
    here: World,
    poll: Poll,
    *,
    strict: bool = True,
) -> Clusters:
    """Cluster by `config.method`, by overlap above `floors` [k]; `strict`: strangers hardly fill a list above them.

    A near-copy joins the cluster of its `original` [N], unless that is then larger than `max_cluster` or the gate
    allow.
    """
    if config.method == "parity":
        return by_components(listed.ids, listed.cosine, here, config, poll)
    labels, cut = by_overlap(listed.ids, listed.cosine, here, config, floors, strict=strict, poll=poll)
    copy = original != np.arange(len(original))
    together = labels[original]
    most = min(config.max_cluster, config.max_largest_share * len(together))
    full = np.bincount(together)[together] > most
    return Clusters(np.where(copy & full, labels, together), cut)


def without_copies(rows: Tensor, original: Ints, here: World) -> Tensor:
    """Return this rank's `rows` [n, D] with zeros for near-copies of other images (`original` [N]); itself if none."""
    own = first_row(len(original), here) + np.arange(len(rows))
    copies = original[own] != own
    return rows.masked_fill(torch.from_numpy(copies).to(rows.device)[:, None], 0) if copies.any() else rows


def different(sample: Floats) -> Floats:
    """Return the rows of `sample` [S, D] without exact copies, because pairs of copies are no random pairs."""
    first = np.unique(sample.round(SAME_DIGITS), axis=0, return_index=True)[1]
    return sample[np.sort(first)]


def originals(listed: Neighbours, here: World, floor: float) -> Ints:
    """Return for each of N images the first image of its group of near-copies (copies of copies too), else itself.

    A list may hold only later images of a group. So an entry counts for both of its images.
    """
    count = len(gather(listed.ids[:, :0], here))
    row, at = np.nonzero((listed.cosine >= floor + COPY * (1 - floor)) & (listed.ids != NONE))
    one, other = (row + first_row(count, here)).astype(np.int32), listed.ids[row, at]
    original = np.arange(count, dtype=np.int32)
    while True:
        earlier, nearest = original.copy(), np.minimum(original[one], original[other])
        for image in (one, other):
            np.minimum.at(earlier, original[image], nearest)
        earlier = least(torch.from_numpy(earlier), here).numpy()
        while not np.array_equal(earlier, further := earlier[earlier]):
            earlier = further
        if np.array_equal(earlier, original):
            return original
        original = earlier


def _floors(sample: Floats, count: int, config: MiningConfig, here: World) -> tuple[Floats, Floats]:
    """Return the two floors [k] of the lists of `count` images; `sample` [S, D]: random ones, without copies."""
    if config.method == "parity":
        floors = np.full(config.neighbours, config.similarity, np.float32)
        return floors, floors
    more = max(config.false_edges_per_image, min(LOOSE_FALSE_EDGES, LOOSE_SHARE * count))
    both = similarity_floors(sample, count, config.neighbours, (config.false_edges_per_image, more))
    first, second = np.array(from_main(both.tolist(), here), np.float32)
    return first, second


def _lists_without_copies(
    shard: Tensor, listed: Neighbours, config: MiningConfig, here: World, floors: Floats, poll: Poll
) -> tuple[Ints, Neighbours]:
    """Return for each of N images the one it is a near-copy of, else itself, and the lists to cluster.

    Many copies, as in video frames, would fill the lists. Then the search runs again with one image of each group of
    copies. With few, no image counts as a copy.
    """
    everyone = np.arange(len(gather(listed.ids[:, :0], here)), dtype=np.int32)
    if config.method == "parity":
        return everyone, listed
    original = originals(listed, here, float(floors[0]))
    copy = original != everyone
    if not copy.any() or copy.mean() < MANY_COPIES:
        return everyone, listed
    # A row of zeros has no neighbours and is in no list.
    return original, searched(without_copies(shard, original, here), config, floors, here, poll)[0]
