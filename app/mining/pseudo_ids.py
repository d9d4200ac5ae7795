"""Compute pseudo-IDs from embeddings: search, cluster, keep old numbers, judge.

Letters: N images mined, n of this process (its contiguous share), D embedding size, k neighbours.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.config import NO_ID, MiningConfig
from app.mining.arrays import Ints, Longs
from app.mining.cluster import RESOLVED, gather, number
from app.mining.clustered import Clustered, clustered, originals, sample_of, without_copies
from app.mining.curves import joined
from app.mining.doubt import doubts
from app.mining.gate import Report, effective_rank, judge, keep_ids, pair_precision
from app.mining.lists import NONE, Neighbours, usable
from app.mining.look_alikes import apart
from app.mining.offset import without_offset
from app.mining.order import move_rows, order_of, places_in
from app.mining.pieces import in_either, in_pieces, pieced
from app.mining.separation import Separation, separation
from app.mining.shared_direction import Shared, shared_direction, without
from app.mining.shorter_lists import CLEAR, split_by_shorter_lists
from app.mining.strangers import without_strangers
from app.mining.wide_directions import without_wide_directions
from app.runtime.dist import World, any_rank, from_main, share
from app.runtime.stop import Poll, undisturbed

UNIT = 0.01  # largest difference of an embedding's length from 1: 16 bits round by less
IN_HALVES = 2 / 3  # of the pairs of a person; in two equal halves half of them stay, in more pieces fewer
MOST_SHARED = 4  # directions; each costs another search
GAIN = 0.015  # of the silhouette, for wide directions to come back; what less is worth varies from set to set
ROWS_AT_ONCE = 2**12


def find_pseudo_ids(
    shard: Tensor,
    previous: Longs,
    labels: Ints | None,
    config: MiningConfig,
    here: World,
    *,
    seed: int,
    poll: Poll = undisturbed,
) -> tuple[Longs, Report]:
    """Return pseudo-IDs [N] (NO_ID: none) of all ranks' images and a report, from this rank's `shard` [n, D].

    `shard` holds unit embeddings; a row without a direction (zero, NaN) gets no pseudo-ID. The results are the same on
    every rank, and for every number of ranks. Another order of the images changes only the numbers of the clusters.
    `previous` [N]: the current pseudo-IDs; a cluster that mostly stays keeps its number. Labels [N] affect only the
    metrics of the report. `seed` selects the images on which the search is checked. The rows of `shard` are moved
    meanwhile, and stay moved after an exception. Raises SearchInexact, ValueError for rows of another length than 1,
    and Interrupted through `poll`.
    """
    length = torch.linalg.vector_norm(shard, dim=1)
    wrong = usable(shard) & ((length - 1).abs() > UNIT)
    if any_rank(bool(wrong.any()), here):
        raise ValueError("embeddings must have length 1; scale each row, as torch.nn.functional.normalize does")
    order = order_of(shard, here)
    move_rows(shard, places_in(order), here)
    rows, offset = shard, 0.0
    sample = sample_of(rows, here)
    spread = from_main(effective_rank(sample), here)
    if config.method == "overlap":
        rows, offset = without_offset(shard, sample, here)
    of, clusters, apart_by, shared = best_mined(rows, config, here, seed=seed, poll=poll)
    floor = config.similarity if config.method == "parity" else float(of.first[0])
    copies = np.count_nonzero(originals(of.listed, here, floor=1 - RESOLVED) != np.arange(len(previous)))
    distinct = 1 - copies / max(len(previous), 1)
    sure = number(of.strict.labels, config.min_cluster, config.max_cluster) != NO_ID
    numbered = number(clusters[places_in(order)], config.min_cluster, config.max_cluster)
    found = keep_ids(previous, numbered)
    doubtful = doubts(found[order], of.rows, of.listed, here)
    report = judge(
        found,
        previous,
        labels,
        config,
        floor=floor,
        recall=of.recall,
        search=of.how,
        unusable=of.listed.unusable,
        cosine=mean_cosine(found[order], of.listed, here),
        spread=spread,
        distinct=distinct,
        sure=float(sure.mean()) if len(sure) else 0.0,
        by_chance=chance_coverage(config),
        offset=offset,
        shared=shared,
        silhouette=apart_by.silhouette,
        separated=apart_by.separated,
        cut=int(np.count_nonzero(of.likely.cut)),
        left_out=int((np.bincount(clusters)[clusters] > config.max_cluster).sum()),
        loose={str(name): cosine for name, cosine in doubtful.loose.items()},
        alike={f"{one} {other}": part for (one, other), part in doubtful.alike.items()},
    )
    move_rows(shard, order, here)
    return found, report


class Mined(NamedTuple):
    """The clusters of embeddings, after the directions that people share were removed."""

    of: Clustered
    people: Longs  # [N]: clusters that likely show one person each
    apart: Separation
    shared: int  # directions that were removed


def best_mined(rows: Tensor, config: MiningConfig, here: World, *, seed: int, poll: Poll) -> Mined:
    """Return the clusters of this rank's unit `rows` [n, D], without wide directions unless they tell people apart.

    In the embeddings of a weak network they may: without them, clusters lie nearer to each other. So do whole people,
    compared with their pieces of one camera each, which the removal joins.
    """
    if config.method == "parity":
        of = clustered(rows, config, here, seed=seed, poll=poll)
        return Mined(of, of.strict.labels, separation(of.strict.labels, of.rows, of.original, here), 0)
    count = len(gather(np.empty((len(rows), 0), np.int32), here))
    without_wide, wide = without_wide_directions(
        rows, sample_of(rows, here), count, config.false_edges_per_image, here, poll
    )
    found = _mined(without_wide, config, here, seed, poll)
    if wide and not found.apart.separated >= CLEAR:
        other = _mined(rows, config, here, seed, poll)
        farther = other.apart.silhouette > found.apart.silhouette + GAIN
        if farther and pairs_kept(found.people, other.people) > IN_HALVES:
            return other
    return found._replace(shared=found.shared + wide)


def pairs_kept(labels: Longs, others: Longs) -> float:
    """Return the share of the pairs of images in one of the clusters `labels` [N] that are in one of `others` [N] too.

    Only images in clusters of both count.
    """
    one, other = (number(each, 2, len(each)) for each in (labels, others))
    both = (one != NO_ID) & (other != NO_ID)
    return pair_precision(np.where(both, one, NO_ID), np.where(both, other, NO_ID).astype(np.int32))


def _mined(rows: Tensor, config: MiningConfig, here: World, seed: int, poll: Poll) -> Mined:
    """Return the clusters of this rank's unit `rows` [n, D]; `shared` are the directions of blurry images."""
    of = clustered(rows, config, here, seed=seed, poll=poll)
    of, removed = without_shared_directions(of, config, here, seed, poll)
    steps = partial(_people, config=config, here=here, poll=poll)
    people, apart = split_by_shorter_lists(of, steps(of), steps, config, here, poll)
    return Mined(of, people, apart, removed)


def without_shared_directions(
    of: Clustered, config: MiningConfig, here: World, seed: int, poll: Poll
) -> tuple[Clustered, int]:
    """Remove directions that images of different people share; return the new clusters, and the number of directions.

    A direction that may also tell people apart is removed only if its cluster then spreads over other clusters.
    """
    for removed in range(MOST_SHARED):
        shared = common_direction(of, config, here, poll)
        if shared is None:
            return of, removed
        further = clustered(without(of.rows, shared.direction), config, here, seed=seed, poll=poll)
        if not shared.sure and not shared.went_to_others(further.strict.labels):
            return of, removed
        of = further
    return of, MOST_SHARED


def common_direction(of: Clustered, config: MiningConfig, here: World, poll: Poll) -> Shared | None:
    """Return a direction that the images of a strict cluster share, else of a likely one; None if there is none.

    In a large data set the first floor is high, and may split the images that share a direction. Above the second floor
    they are one cluster, but strangers may be one there too. So the removal must pay (`Facts.pays`).
    """
    rows, chance = without_copies(of.rows, of.original, here), config.false_edges_per_image
    shared = shared_direction(of.strict.labels, rows, of.near, of.sample, chance, here)
    poll()
    if shared is None and not np.array_equal(of.strict.labels, of.likely.labels):
        shared = shared_direction(of.likely.labels, rows, of.near, of.sample, chance, here, must_pay=True)
        poll()
    return shared


def _people(of: Clustered, config: MiningConfig, here: World, poll: Poll) -> Longs:
    """Return the clusters that likely show one person each."""
    pieces, floor, largest = of.likely.labels, float(of.first[0]), config.max_cluster
    people = pieced(pieces, of.rows, of.kept, floor, of.original, largest, here, poll)
    people = apart(people, of.rows, of.original, here, poll)
    people = without_strangers(people, of.rows, of.original, of.sample, largest, here, poll)
    # `joined` needs the clusters before `pieced`: a larger share of their images is at the border to the next piece.
    curves = joined(in_pieces(people, pieces), of.rows, of.kept, floor, of.original, largest, here, poll)
    return in_either(people, curves, largest)


def chance_coverage(config: MiningConfig) -> float:
    """Return the share of images that false edges may cover, two each; 0 if they could cover all."""
    share = 2 * config.false_edges_per_image if config.method == "overlap" else 1.0
    return share if share < 1 else 0.0


def mean_cosine(found: Longs, listed: Neighbours, here: World) -> float | None:
    """Return the mean cosine of an image and the listed images that share its pseudo-ID; None if there are none."""
    own = share(found, here)
    total = np.zeros((1, 2), np.int64)  # in millionths: integer sums do not depend on the order of the ranks
    rows = np.flatnonzero(own != NO_ID)
    for part in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
        ids, cosine = listed.ids[part], listed.cosine[part]
        inside = (ids != NONE) & (found[ids] == own[part, None])
        total += [np.rint(cosine[inside] * 1e6).astype(np.int64).sum(), np.count_nonzero(inside)]
    of_all, count = gather(total, here).sum(axis=0)
    return float(of_all / count / 1e6) if count else None
