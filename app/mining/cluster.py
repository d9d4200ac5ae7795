"""Cluster a nearest-neighbour graph into groups of images that likely show one person.

To connect all pairs above a threshold fails on faces: blurry images, or one wrong edge, join thousands of people. The
default method, `by_overlap`, is label propagation (Raghavan et al. 2007, arXiv:0709.2938). Its edges are weighted by
similarity times shared-neighbour overlap (Jarvis and Patrick 1973). `by_components` is the older method, kept for
comparison: it connects mutual neighbours above a fixed similarity.

Each process keeps the lists of its own rows and requests those of their neighbours piece by piece, so none holds all
lists. Labels are the same for any number of processes: sums are of integers, and coin flips are hashes of the image.

Letters: N images, n of this process (its contiguous share), k neighbours, E edges.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import brentq
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaincinv, stdtrit

from app.config import NO_ID, MiningConfig
from app.mining.arrays import Doubles, Floats, Ints, Longs, Mask
from app.mining.exchange import bounds_of, first_row
from app.mining.graph import add_outside, join, sweep, weigh
from app.mining.partition import Lists, dealt
from app.runtime.dist import World, any_rank, gather_rows, least, share, total
from app.runtime.stop import Poll, undisturbed
from app.runtime.threads import on_cores, shares

SWEEPS = 50
TIGHTER = [(0.08, 0.05), (0.16, 0.1)]  # for oversize clusters: share of the way from the floor to 1, added overlap
ROWS_A_ROUND = 2**16  # rows of a rank between two polls: less than a second
RARER = 7  # r neighbours at the floor of rank r are r**RARER times less probable by chance than one at the first floor
CUT = 4  # times the limit; a larger cluster that does not split is no person
RESOLVED = 2e-6  # least distance of a cosine from 1; fp32 rounds one by less
EVIDENCE = 8  # images of a cluster that strangers hardly form
WHOLE = 0.75  # share of a loose cluster; a strict one that holds as much of it has found it
STEP = 0.05  # added to the similarity by by_components, as CDP does (Zhan et al. 2018)
NONE_KNOWN = np.zeros(0, np.int32)  # instead of lengths of lists; of their type, so that `weigh` is compiled once


class Clusters(NamedTuple):
    """A cluster of each image, equal on all ranks."""

    labels: Longs  # [N]
    cut: Mask  # [N]: images of clusters over the limit, which were cut into pieces


def similarity_floors(sample: Floats, count: int, k: int, false_edges_per_image: float | tuple[float, ...]) -> Floats:
    """Return the floors [k]: the least cosine of the neighbour at each rank of a list, for an image among `count`.

    An image has `false_edges_per_image` neighbours by chance above the first floor; f numbers give floors [f, k]. Later
    floors are lower, because several chance neighbours at once are rarer (RARER). So a list with many near images keeps
    some of a moderate cosine, and a list without any keeps none.

    `sample` [S, D]: unit embeddings of random images, without copies. With fewer than two images the floors are 1.
    """
    cosine, rank = (sample @ sample.T)[~np.tri(len(sample), dtype=np.bool_)], np.arange(1, k + 1)
    # The expected number of neighbours with which a Poisson variable reaches `rank` with the wanted probability.
    wanted = -np.expm1(-np.asarray(false_edges_per_image)[..., None]) / rank ** float(RARER)
    tail = np.minimum(0.5, np.maximum.accumulate(gammaincinv(rank, wanted), axis=-1) / max(count - 1, 1))
    # Below a cosine of 0 two images have nothing in common, however few images there are.
    return np.maximum(0, upper_quantile(cosine, tail) if len(cosine) else np.ones(tail.shape)).astype(np.float32)


def upper_quantile(cosine: Floats, tail: Doubles) -> Doubles:
    """Return the cosines that random pairs exceed with the probabilities `tail` (at most 0.5), from sampled cosines.

    The upper end of the sample contains pairs of one person. So the tail is extrapolated from the median and the lower
    quartile, for a uniform distribution on a sphere of unknown dimension, shifted on the scale of artanh. Its limit in
    many dimensions is a normal distribution; in few, its tail is heavier.
    """
    at = np.array([0.25, 0.5]) * (len(cosine) - 1)
    places = np.stack([np.floor(at), np.ceil(at)]).astype(np.int64)
    # Several times faster than numpy's quantile.
    below, above = np.partition(cosine, np.unique(places))[places].astype(np.float64)
    lower, median = np.arctanh(np.clip(below + (above - below) * (at % 1), RESOLVED - 1, 1 - RESOLVED))
    width = np.sinh(median - lower)

    def excess(freedom: float) -> float:
        return float(stdtrit(freedom, 0.75) / np.sqrt(freedom) - width)

    freedom = brentq(excess, 1, 1e12) if excess(1) > 0 > excess(1e12) else (1.0 if excess(1) <= 0 else 1e12)
    return np.tanh(median - np.arcsinh(stdtrit(freedom, tail) / np.sqrt(freedom)))


def by_overlap(
    ids: Ints,
    cosine: Floats,
    here: World,
    config: MiningConfig,
    floor: float | Floats,
    *,
    strict: bool = True,
    poll: Poll = undisturbed,
) -> Clusters:
    """Cluster all images from each process's lists [n, k]; an image without edges keeps its own label.

    `floor`: one number, or one for each rank [k], falling. Entries above the first floor are edges. Mutual edges weigh
    double. One-way edges count too, because lists are too short for a person with more than k images: mutual edges
    alone split such people (benchmarks/clusters.py).

    A list also has later entries, up to the last one that reaches the floor of its own rank. These are edges only if
    they are mutual and the two lists share `min_overlap` of a full list. Otherwise a small person joins a large one
    with a near centre: its images are near to many of the large one's by chance.

    If all entries of a list reach the first floor, the person likely has more than k images. Then `weigh` accepts less
    overlap, and `with_pieces` adds images and pieces that have no edge to the person. If the floor is not `strict`,
    strangers may fill a list above it, and scattered pieces do not join.

    A cluster larger than `max_cluster` is clustered again with a higher floor and overlap, to separate people joined by
    mistake. What stays together is cut into pieces (`_cut`). A cluster too large for that stays whole: `number` drops
    it.
    """
    n, k = len(gather(ids[:, :0], here)), ids.shape[1]
    lists, first = Lists(ids, n, here), first_row(n, here)
    labels, oversize = np.zeros(n, np.int32), np.ones(n, np.bool_)
    weight = np.empty(ids.shape, np.uint16)
    for attempt, (higher, more) in enumerate([(0.0, 0.0), *TIGHTER]):
        least = np.asarray(floor + (1 - np.asarray(floor)) * higher, np.float32)
        sure, longer = (gather(list_lengths(cosine, each), here) for each in (least.max(), least))
        full = gather((cosine >= least.max()).all(axis=1).astype(np.uint8), here) > 0
        group = np.where(oversize, labels, np.int32(-1))
        overlap = config.min_overlap + more
        passes = [(sure, 0, NONE_KNOWN), (longer, math.ceil(overlap * (k + 1)), sure)][: 1 + (longer > sure).any()]
        weight[:] = 0
        for part in pieces_of(n, here):
            near = lists.near(part, longer, group)
            some = [slice(part.start + each.start, part.start + each.stop) for each in shares(part.stop - part.start)]
            for degree, common, before in passes:
                rule = degree, full, group, overlap, common
                own = [
                    (ids[each], cosine[each], first + each.start, *near, *rule, weight[each], before) for each in some
                ]
                on_cores(weigh, own)
            poll()
        again = with_pieces(propagate(ids, longer, weight, attempt, here, poll), ids, full, here, strict=strict)
        labels = by_smallest_member(np.where(oversize, again, labels))
        sizes = np.bincount(labels, minlength=n)[labels]
        oversize = sizes > config.max_cluster
        if not oversize.any():
            return Clusters(labels.astype(np.int64), np.zeros(n, np.bool_))
    chosen = oversize & (sizes <= CUT * config.max_cluster)
    pieces = _cut(ids, weight, labels, chosen, config.max_cluster, here)
    return Clusters(pieces.astype(np.int64), chosen)


def list_lengths(cosine: Floats, floor: float | Floats) -> Ints:
    """Return how many entries each list [n, k] has, up to the last one that reaches `floor` (a number or [k])."""
    reached = cosine >= floor
    k = cosine.shape[1]
    return np.where(reached.any(axis=1), k - np.argmax(reached[:, ::-1], axis=1), 0).astype(np.int32)


def _cut(ids: Ints, weight: NDArray[np.uint16], labels: Ints, chosen: Mask, limit: int, here: World) -> Ints:
    """Return labels [N] with the clusters of the `chosen` images [N] cut into pieces of at most `limit`.

    The strongest edges join first, as far as the limit allows. This keeps nearly all images in a piece; a higher floor
    would leave most of them alone.
    """
    first = first_row(len(labels), here)
    rows = np.flatnonzero(share(chosen, here))
    row, at = np.nonzero(weight[rows])
    row = rows[row]
    one, other = (row + first).astype(np.int32), ids[row, at]
    inside = labels[one] == labels[other]
    edges = np.stack([one, other, weight[row, at].astype(np.int32)], axis=1)[inside]
    # Each cluster is cut by one process.
    edges = dealt(edges, labels[edges[:, 0]] % here.size, here)
    edges = np.ascontiguousarray(edges[np.argsort(-edges[:, 2], kind="stable"), :2])
    pieces = join(edges, len(labels), limit)
    pieces = least(torch.from_numpy(pieces), here).numpy()  # an image's number, or a smaller one of its piece
    return by_smallest_member(np.where(chosen, pieces, labels))


def pieces_of(count: int, here: World) -> list[slice]:
    """Split this rank's share of `count` rows into pieces of about `ROWS_A_ROUND`, equally many on each rank."""
    own = int(np.diff(bounds_of(count, here))[here.rank])
    rounds = max(1, -(-count // (here.size * ROWS_A_ROUND)))
    ends = [own * number // rounds for number in range(rounds + 1)]
    return [slice(*ends[number : number + 2]) for number in range(rounds)]


def propagate(
    ids: Ints, degree: Ints, weight: NDArray[np.uint16], seed: int, here: World, poll: Poll = undisturbed
) -> Ints:
    """Propagate labels over the first `degree` [N] entries of the own lists [n, k]; return labels [N] of all ranks."""
    first = first_row(len(degree), here)
    labels = np.arange(len(degree), dtype=np.int32)
    changed = np.zeros(len(degree), np.bool_)
    pending = np.any(weight, axis=1)
    new, some = np.empty(len(weight), np.int32), shares(len(weight))
    for number in range(SWEEPS):
        poll()
        own = [
            (ids[i], degree, weight[i], first + i.start, labels, changed, pending[i], seed, number, new[i])
            for i in some
        ]
        waiting = sum(on_cores(sweep, own))
        after = gather(new, here)
        np.not_equal(after, labels, out=changed)
        labels = after.copy()
        if not any_rank(waiting > 0, here) and not changed.any():
            break
    return labels


def with_pieces(labels: Ints, ids: Ints, full: Mask, here: World, *, strict: bool = True) -> Ints:
    """Return labels [N] where a cluster joins a larger one that has most entries of its images' lists [n, k].

    Images of a person with more than k images may be in no other list, or form a small cluster of their own; but their
    own lists name the person. Only the lists of `full` [N] images count, those of likely such a person. An image that
    is alone is a cluster, too.

    A person of a hundred times k images may be in so many pieces that none has most entries of another. A cluster is
    such a piece if its lists hold less than half of the own images that they have room for. Above a `strict` floor it
    joins the larger cluster that has the most of its entries.
    """
    n, k = len(labels), ids.shape[1]
    first = first_row(n, here)
    rows = np.flatnonzero(share(full, here))
    own = rows + first
    while True:
        size, filled = np.bincount(labels, minlength=n), np.bincount(labels[full], minlength=n)
        outside = np.zeros(n, np.int64)
        add_outside(ids, first, labels, full, outside)
        outside = total(torch.from_numpy(outside), here).numpy()
        piece = 2 * outside > size * k
        scattered = strict & piece & (2 * (filled * k - outside) < filled * np.minimum(size - 1, k))
        row = piece[labels[own]]
        entries = np.stack([np.repeat(labels[own[row]], k), labels[ids[rows[row]]].ravel()], axis=1)
        entries = dealt(entries, entries[:, 0] % here.size, here)  # each cluster is judged by one process
        pairs, count = np.unique(entries[:, 0].astype(np.int64) * n + entries[:, 1], return_counts=True)
        one, other = pairs // max(n, 1), pairs % max(n, 1)
        larger = (size[other] > size[one]) | ((size[other] == size[one]) & (other < one))
        one, other, count = one[larger], other[larger], count[larger]
        most = np.zeros(n, np.int64)
        np.maximum.at(most, one, count)
        joins = (count == most[one]) & (scattered[one] | (2 * count > size[one] * k))
        joined = gather(np.stack([one[joins], other[joins]], axis=1), here)
        if not len(joined):
            return labels
        into = np.arange(n, dtype=np.int32)
        into[joined[::-1, 0]] = joined[::-1, 1]  # of several that have most, the first
        labels = into[labels]


def by_components(ids: Ints, cosine: Floats, here: World, config: MiningConfig, poll: Poll = undisturbed) -> Clusters:
    """Return the connected components of similar images that are in each other's first `mutual_top`.

    In a component larger than CUT times `max_cluster`, a chain of people, the similarity rises step by step. Components
    still larger than `max_cluster` are cut; the most similar images stay together.
    """
    n, similarity = len(gather(ids[:, :0], here)), config.similarity
    top, alike = ids[:, : config.mutual_top], cosine[:, : config.mutual_top]
    row, place = np.nonzero(alike >= similarity)
    one, other = (row + first_row(n, here)).astype(np.int32), top[row, place]
    entries = np.stack([np.minimum(one, other), np.maximum(one, other), alike[row, place].view(np.int32)], axis=1)
    entries = dealt(entries, entries[:, 0] % here.size, here)  # the two entries of a mutual pair meet
    entries = entries[_order(entries, n)]
    twice = np.flatnonzero((entries[1:, :2] == entries[:-1, :2]).all(axis=1))
    pairs, alike = entries[twice, :2], entries[:, 2].copy().view(np.float32)
    pairs, alike = gather(pairs, here), gather(np.minimum(alike[twice], alike[twice + 1]), here)  # [E, 2], [E]
    order = _order(pairs, n)
    pairs, alike = pairs[order], alike[order]

    labels = _components(pairs, n)
    poll()
    while (oversize := np.bincount(labels, minlength=n)[labels] > CUT * config.max_cluster).any():
        similarity += STEP
        kept = ~oversize[pairs[:, 0]] | (alike >= similarity)
        pairs, alike = pairs[kept], alike[kept]
        labels = _components(pairs, n)
        poll()
    # A component within the limit comes out unchanged.
    pieces = join(pairs[np.argsort(-alike, kind="stable")], n, config.max_cluster)
    return Clusters(pieces.astype(np.int64), np.bincount(labels, minlength=n)[labels] > config.max_cluster)


def with_looser(strict: Clusters, loose: Clusters, max_size: int) -> Clusters:
    """Return `strict` with those clusters of a lower floor, `loose`, that it fails to find.

    A loose cluster counts if it has EVIDENCE images, of which no strict cluster holds the share WHOLE. Where people
    differ in few directions, the strict floor leaves their images alone or in pieces. Above the loose floor strangers
    form pairs, but rarely a large group whose images share their neighbours.
    """
    n = len(strict.labels)
    size = np.bincount(loose.labels, minlength=n)
    pairs, count = np.unique(loose.labels * n + strict.labels, return_counts=True)
    largest = np.zeros(n, np.int64)
    np.maximum.at(largest, pairs // max(n, 1), count)
    taken = ((size >= EVIDENCE) & (size <= max_size) & (largest < WHOLE * size))[loose.labels]
    return Clusters(
        by_smallest_member(np.where(taken, n + loose.labels, strict.labels)), np.where(taken, loose.cut, strict.cut)
    )


def number(labels: Longs, min_size: int, max_size: int) -> Longs:
    """Return pseudo-IDs [N]: clusters within the size limits are numbered 0, 1, … by first image; the rest is NO_ID."""
    sizes = np.bincount(labels)[labels]
    good = (sizes >= min_size) & (sizes <= max_size)
    _, first, inverse = np.unique(labels[good], return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered = np.full(len(labels), NO_ID, np.int64)
    numbered[good] = rank[inverse]
    return numbered


def gather(local: NDArray, here: World) -> NDArray:
    """Return the rows of all ranks, in rank order."""
    return gather_rows(torch.from_numpy(np.ascontiguousarray(local)), here).numpy()


def _order(pairs: Ints, n: int) -> Longs:
    """Return the order of pairs [E, 2 or more] of images by the first, then the second."""
    return np.argsort(pairs[:, 0].astype(np.int64) * n + pairs[:, 1], kind="stable")


def _components(pairs: Ints, n: int) -> Ints:
    graph = sparse.coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def by_smallest_member(labels: NDArray[Any]) -> NDArray[Any]:
    """Rename each label to the smallest image that carries it, so that no label names an image of another cluster."""
    smallest = np.full(labels.max(initial=-1) + 1, len(labels), labels.dtype)
    np.minimum.at(smallest, labels, np.arange(len(labels), dtype=labels.dtype))
    return smallest[labels]
