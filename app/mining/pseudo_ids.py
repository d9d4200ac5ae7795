"""Compute pseudo-IDs from embeddings: search, cluster, keep old numbers, judge.

Letters: N images mined, n of this process (its contiguous share), D embedding size, k neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.config import NO_ID, MiningConfig
from app.mining.cluster import (
    RESOLVED,
    Clusters,
    by_components,
    by_overlap,
    first_row,
    gather,
    number,
    similarity_floors,
    with_looser,
)
from app.mining.doubt import doubts
from app.mining.gate import Report, effective_rank, judge, keep_ids
from app.mining.knn import SearchInexact
from app.mining.lists import NONE, Neighbours, usable
from app.mining.look_alikes import apart
from app.mining.order import move_rows, order_of, places_in
from app.mining.sample import recall, sample_rows
from app.mining.search import searched
from app.mining.shared_direction import shared_direction, without
from app.mining.strangers import without_strangers
from app.runtime.dist import World, any_rank, from_main, least
from app.runtime.stop import Poll, undisturbed

FLOOR_SAMPLE, RECALL_SAMPLE = 2048, 256  # images
COPY = 0.96  # share of the way from the similarity floor to 1: cosine .98 where the floor is .5
SAME_DIGITS = 4  # of a coordinate; two embeddings of one image may differ in the last bits
UNIT = 0.01  # largest difference of an embedding's length from 1: 16 bits round by less
LOOSE_FALSE_EDGES = 10.0  # of an image, at the second floor, for people that the first floor splits
LOOSE_SHARE = 0.005  # of all images; fewer false edges in a small set
SEED = 0  # of all draws: clusters depend on the embeddings alone, so no epoch changes them by its number
MOST_SHARED = 4  # directions; each costs another search
ROWS_AT_ONCE = 2**12
MANY_COPIES = 0.01  # share of all images; fewer copies do not fill the lists of others


def find_pseudo_ids(
    shard: Tensor,
    previous: NDArray[np.int64],
    labels: NDArray[np.int32] | None,
    config: MiningConfig,
    here: World,
    *,
    seed: int,
    poll: Poll = undisturbed,
) -> tuple[NDArray[np.int64], Report]:
    """Return pseudo-IDs [N] (NO_ID: none) of all ranks' images and a report, from this rank's `shard` [n, D].

    `shard` holds unit embeddings; a row without a direction (zero, NaN) gets no pseudo-ID. The results are the same on
    every rank, and for every number of ranks. The order of the images changes the numbers of clusters only. `previous`
    [N] are the current ones; a cluster that mostly stays keeps its number. The report decides whether the new ones may
    be used; labels [N] affect only metrics. `seed` selects the images on which the search is checked, and changes no
    pseudo-ID. The rows of `shard` are moved meanwhile, and stay moved after an exception. Raises SearchInexact,
    ValueError for rows of another length than 1, and Interrupted through `poll`.
    """
    length = torch.linalg.vector_norm(shard, dim=1)
    wrong = usable(shard) & ((length - 1).abs() > UNIT)
    if any_rank(bool(wrong.any()), here):
        raise ValueError("embeddings must have length 1; scale each row, as torch.nn.functional.normalize does")
    order = order_of(shard, here)
    move_rows(shard, places_in(order), here)
    rows = shard
    sample = different(sample_rows(rows, here, FLOOR_SAMPLE, SEED))
    spread = from_main(effective_rank(sample), here)
    for removed in range(MOST_SHARED + 1):
        # All ranks use rank 0's numbers: CPUs of several kinds may round the last bit of a product differently.
        first, second = _floors(sample, len(previous), config, here)
        listed, how = searched(rows, config, first, here, poll)
        found_share = recall(
            listed, rows, here, sample=RECALL_SAMPLE, seed=seed, floors=None if how == "exact" else first
        )
        poll()
        _refuse_below(config.min_recall, found_share, how)
        original, kept = _without_copies(rows, listed, config, here, first, poll)
        strict = _clusters(kept, first, original, config, here, poll)
        if config.method == "parity" or removed == MOST_SHARED:
            break
        near = gather(kept.cosine[:, 0] >= first[0], here)
        direction = shared_direction(
            strict.labels,
            _only_originals(original, rows, here),
            near,
            sample,
            config.false_edges_per_image,
            here,
        )
        poll()
        if direction is None:
            break
        rows = without(rows, direction)
        sample = different(sample_rows(rows, here, FLOOR_SAMPLE, SEED))
    clusters = strict
    if config.method == "overlap":
        loose = _clusters(kept, second, original, config, here, poll)
        clusters = with_looser(strict, loose, config.max_cluster)
        people = apart(clusters.labels, rows, original, here, poll)
        people = without_strangers(people, rows, original, sample, config.max_cluster, here, poll)
        clusters = clusters._replace(labels=people)
    floor = config.similarity if config.method == "parity" else float(first[0])
    copies = np.count_nonzero(originals(listed, here, floor=1 - RESOLVED) != np.arange(len(previous)))
    distinct = 1 - copies / max(len(previous), 1)
    sure = number(strict.labels, config.min_cluster, config.max_cluster) != NO_ID
    numbered = number(clusters.labels[places_in(order)], config.min_cluster, config.max_cluster)
    found = keep_ids(previous, numbered)
    doubtful = doubts(found[order], rows, listed, here)
    report = judge(
        found,
        previous,
        labels,
        config,
        floor=floor,
        recall=found_share,
        search=how,
        unusable=listed.unusable,
        cosine=mean_cosine(found[order], listed, here),
        spread=spread,
        distinct=distinct,
        sure=float(sure.mean()) if len(sure) else 0.0,
        by_chance=chance_coverage(config),
        shared=removed,
        cut=int(np.count_nonzero(clusters.cut)),
        left_out=int((np.bincount(clusters.labels)[clusters.labels] > config.max_cluster).sum()),
        loose={str(name): cosine for name, cosine in doubtful.loose.items()},
        alike={f"{one} {other}": share for (one, other), share in doubtful.alike.items()},
    )
    move_rows(shard, order, here)
    return found, report


def _floors(
    sample: NDArray[np.float32], count: int, config: MiningConfig, here: World
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the two floors [k] of the lists of `count` images; `sample` [S, D]: random ones, without copies."""
    if config.method == "parity":
        floors = np.full(config.neighbours, config.similarity, np.float32)
        return floors, floors
    more = max(config.false_edges_per_image, min(LOOSE_FALSE_EDGES, LOOSE_SHARE * count))
    both = similarity_floors(sample, count, config.neighbours, (config.false_edges_per_image, more))
    first, second = np.array(from_main(both.tolist(), here), np.float32)
    return first, second


def _refuse_below(least: float, share: float, how: str) -> None:
    """Raise SearchInexact if the `share` of true neighbours that the search found is below `least`."""
    if not share >= least:
        raise SearchInexact(
            f"the search found {share:.2%} of the true neighbours in a sample; mining.min_recall is "
            f"{least:.2%}: give mining.{'backend=faiss' if how == 'exact' else 'search=exact'}, which is exact"
        )


def _without_copies(
    shard: Tensor, listed: Neighbours, config: MiningConfig, here: World, floors: NDArray[np.float32], poll: Poll
) -> tuple[NDArray[np.int32], Neighbours]:
    """Return for each of N images the one it is a near-copy of, else itself, and the lists to cluster.

    Where copies are many, as in video frames, they would fill an image's list. Then the search runs again with one
    image of each group of copies. Otherwise no image counts as a copy.
    """
    everyone = np.arange(len(gather(listed.ids[:, :0], here)), dtype=np.int32)
    if config.method == "parity":
        return everyone, listed
    original = originals(listed, here, float(floors[0]))
    copy = original != everyone
    if not copy.any() or copy.mean() < MANY_COPIES:
        return everyone, listed
    # A row of zeros has no neighbours and is in no list.
    return original, searched(_only_originals(original, shard, here), config, floors, here, poll)[0]


def _only_originals(original: NDArray[np.int32], shard: Tensor, here: World) -> Tensor:
    """Return this rank's `shard` [n, D] with zeros in the rows of near-copies of another image; itself without any."""
    own = first_row(len(original), here) + np.arange(len(shard))
    copies = original[own] != own
    return shard.masked_fill(torch.from_numpy(copies).to(shard.device)[:, None], 0) if copies.any() else shard


def _clusters(
    listed: Neighbours,
    floors: NDArray[np.float32],
    original: NDArray[np.int32],
    config: MiningConfig,
    here: World,
    poll: Poll,
) -> Clusters:
    """Cluster by `config.method`, by overlap above `floors` [k].

    A near-copy of an image (`original` [N]) joins its cluster if neither `max_cluster` nor the gate forbids its size.
    """
    if config.method == "parity":
        return by_components(
            listed.ids,
            listed.cosine,
            here,
            mutual_top=config.mutual_top,
            similarity=config.similarity,
            max_size=config.max_cluster,
            poll=poll,
        )
    labels, cut = by_overlap(
        listed.ids,
        listed.cosine,
        here,
        floor=floors,
        min_overlap=config.min_overlap,
        max_size=config.max_cluster,
        poll=poll,
    )
    copy = original != np.arange(len(original))
    together = labels[original]
    most = min(config.max_cluster, config.max_largest_share * len(together))
    full = np.bincount(together)[together] > most
    return Clusters(np.where(copy & full, labels, together), cut)


def chance_coverage(config: MiningConfig) -> float:
    """Return the share of images that chance neighbours may cover; each false edge covers two. 0 if it could be all."""
    share = 2 * config.false_edges_per_image if config.method == "overlap" else 1.0
    return share if share < 1 else 0.0


def different(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of `sample` [S, D] without exact copies, because pairs of copies are no random pairs."""
    first = np.unique(sample.round(SAME_DIGITS), axis=0, return_index=True)[1]
    return sample[np.sort(first)]


def originals(listed: Neighbours, here: World, floor: float) -> NDArray[np.int32]:
    """Return for each of N images the first image of its group of near-copies (copies of copies too), else itself.

    A list holds k of a group's images, which are often all later ones. So an entry counts for both of its images.
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


def mean_cosine(found: NDArray[np.int64], listed: Neighbours, here: World) -> float | None:
    """Return the mean cosine of an image and the listed images that share its pseudo-ID; None if there are none."""
    own = found[first_row(len(found), here) :][: len(listed.ids)]
    total = np.zeros((1, 2), np.int64)  # in millionths: integer sums do not depend on the order of the ranks
    rows = np.flatnonzero(own != NO_ID)
    for part in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
        ids, cosine = listed.ids[part], listed.cosine[part]
        inside = (ids != NONE) & (found[ids] == own[part, None])
        total += [np.rint(cosine[inside] * 1e6).astype(np.int64).sum(), np.count_nonzero(inside)]
    of_all, count = gather(total, here).sum(axis=0)
    return float(of_all / count / 1e6) if count else None
