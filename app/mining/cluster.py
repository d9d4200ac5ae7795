"""Cluster a nearest-neighbour graph into groups of images that likely show one person.

Connecting all pairs above a threshold fails on faces: a cone of blurry images, or one wrong edge, joins thousands of
people. The default method, `by_overlap`, is label propagation (Raghavan et al. 2007, arXiv:0709.2938). Its edges are
weighted by similarity times shared-neighbour overlap (Jarvis and Patrick 1973). `by_components` is the older method,
kept for comparison: it connects mutual neighbours above a fixed similarity.

Each process keeps the lists of its own rows, and requests those of their neighbours piece by piece. A process holds
arrays [N] of all images, but never all lists. Labels are the same on every rank and for any number of processes: sums
are of integers, and coin flips are hashes of the image.

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

from app.config import NO_ID
from app.mining.graph import add_outside, join, sweep, weigh
from app.mining.partition import Lists, dealt
from app.runtime.dist import World, any_rank, gather_rows, least, total
from app.runtime.stop import Poll, undisturbed
from app.runtime.threads import on_cores, shares

SWEEPS = 50
TIGHTER = [(0.08, 0.05), (0.16, 0.1)]  # for oversize clusters: share of the way from the floor to 1, added overlap
ROWS_A_ROUND = 2**16  # rows of a rank between two polls: less than a second
RARER = 7  # r neighbours at the floor of rank r are r**RARER times less probable by chance than one at the first floor
CUT = 4  # times the limit; a larger cluster that does not split is no person
RESOLVED = 2e-6  # least distance of a cosine from 1; fp32 rounds one by less
EVIDENCE = 8  # images of a cluster that strangers hardly form
WHOLE = 0.75  # share of a cluster; one that holds as much of another finds it
STEP = 0.05  # added to the similarity by by_components, as CDP does (Zhan et al. 2018)
NONE_KNOWN = np.zeros(0, np.int32)  # lengths of lists; of one type, so that one loop is compiled
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
IdArray = NDArray[np.int64]


class Clusters(NamedTuple):
    """A cluster of each image, equal on all ranks."""

    labels: IdArray  # [N]
    cut: NDArray[np.bool_]  # [N]: images of clusters over the limit, which were cut into pieces


def similarity_floors(
    sample: FloatArray, count: int, k: int, false_edges_per_image: float | tuple[float, ...]
) -> FloatArray:
    """Return for each rank of a list the cosine [k] that its neighbour needs, for an image among `count`.

    An image has `false_edges_per_image` chance neighbours above the first floor; f numbers give floors [f, k]. Later
    floors are lower, because many chance neighbours at once are rarer (RARER). So an image with many neighbours above
    chance keeps those of a moderate cosine, and an image without any keeps none. A single floor fails one of the two.

    `sample` [S, D] are unit embeddings of randomly chosen images, without copies. Returns 1 for fewer than two images,
    which have no pair.
    """
    cosine, rank = (sample @ sample.T)[~np.tri(len(sample), dtype=np.bool_)], np.arange(1, k + 1)
    # The expected number of neighbours with which a Poisson variable reaches `rank` with the wanted probability.
    wanted = -np.expm1(-np.asarray(false_edges_per_image)[..., None]) / rank ** float(RARER)
    tail = np.minimum(0.5, np.maximum.accumulate(gammaincinv(rank, wanted), axis=-1) / max(count - 1, 1))
    # Below a cosine of 0 two images have nothing in common, however few images there are.
    return np.maximum(0, upper_quantile(cosine, tail) if len(cosine) else np.ones(tail.shape)).astype(np.float32)


def upper_quantile(cosine: FloatArray, tail: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosines that random pairs exceed with the probabilities `tail` (at most 0.5), from sampled cosines.

    The upper end of the sample contains true pairs, so the tail is extrapolated from the median and the lower quartile.
    The model is a uniform distribution on a sphere of unknown dimension, shifted on the scale of artanh. In few
    dimensions its tail is heavier than that of a normal distribution, which is its limit in many dimensions.
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
    ids: IntArray,
    cosine: FloatArray,
    here: World,
    *,
    floor: float | FloatArray,
    min_overlap: float,
    max_size: int,
    strict: bool = True,
    poll: Poll = undisturbed,
) -> Clusters:
    """Cluster all images from each process's lists [n, k]; an image without edges keeps its own label.

    `floor` is one number, or [k]: falling, one for each rank. Entries above its first number count at once. Mutual
    edges weigh double. One-way edges count too: a full list may have no room for an image, which happens to most images
    of a person with more than k. Counting only mutual edges splits such people (benchmarks/clusters.py measures both).

    The longer lists, up to the last entry that reaches the floor of its rank, add edges on more evidence. The edge must
    be mutual, and the images it shares must be a share of `min_overlap` of a full list. Otherwise a small person whose
    centre is close to that of a large one joins it: an image is then close by chance to many images of the large one.

    If all entries of a list reach the first floor, the person likely has more than k images. `weigh` then accepts
    less overlap, and `with_pieces` adds the images and pieces of such a person that have no edge to it. Above a floor
    that is not `strict`, strangers may fill a list, so scattered pieces of a person do not join.

    A cluster larger than `max_size` is clustered again, a few times, with a higher floor and overlap; this separates
    people joined by mistake. What stays together is cut into pieces (`_cut`). If it is too large to be one person it is
    left whole, and `number` drops it.
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
        overlap = min_overlap + more
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
        oversize = sizes > max_size
        if not oversize.any():
            return Clusters(labels.astype(np.int64), np.zeros(n, np.bool_))
    chosen = oversize & (sizes <= CUT * max_size)
    pieces = _cut(ids, weight, labels, chosen, max_size, here)
    return Clusters(pieces.astype(np.int64), chosen)


def list_lengths(cosine: FloatArray, floor: float | FloatArray) -> IntArray:
    """Return how many entries of each list [n, k] count: up to the last one that reaches `floor` (a number or [k])."""
    reached = cosine >= floor
    k = cosine.shape[1]
    return np.where(reached.any(axis=1), k - np.argmax(reached[:, ::-1], axis=1), 0).astype(np.int32)


def _cut(
    ids: IntArray, weight: NDArray[np.uint16], labels: IntArray, chosen: NDArray[np.bool_], limit: int, here: World
) -> IntArray:
    """Return labels [N] with the clusters of the `chosen` images [N] cut into pieces of at most `limit`.

    The strongest edges join first, as far as the limit allows. This loses hardly any image; raising the floor until a
    person of 72 images falls apart loses most of them.
    """
    first = first_row(len(labels), here)
    rows = np.flatnonzero(chosen[first : first + len(ids)])
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
    own = len(np.array_split(np.empty(count, np.bool_), here.size)[here.rank])
    rounds = max(1, -(-count // (here.size * ROWS_A_ROUND)))
    ends = [own * number // rounds for number in range(rounds + 1)]
    return [slice(*ends[number : number + 2]) for number in range(rounds)]


def propagate(
    ids: IntArray,
    degree: IntArray,
    weight: NDArray[np.uint16],
    seed: int,
    here: World,
    poll: Poll = undisturbed,
) -> IntArray:
    """Propagate labels over the own lists [n, k] with their weights; return labels [N], equal on all ranks.

    Of the lists the first `degree` [N] entries count.
    """
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


def with_pieces(
    labels: IntArray, ids: IntArray, full: NDArray[np.bool_], here: World, *, strict: bool = True
) -> IntArray:
    """Return labels [N] where a cluster joins a larger one that most entries of its images' lists [n, k] are in.

    A `full` [N] image likely shows a person of more than k images. Some images of such a person are in no list, so they
    have no mutual edge; and a few images may form a cluster of their own. But their own lists name the person. The
    lists of other images count as if their entries were in no cluster. An image that is alone is a cluster, too.

    A person of a hundred times k images may be in so many pieces that none has most entries of another. A cluster is
    such a piece if its own images are not even most of those that its lists would name first. Above a `strict` floor it
    joins the larger cluster that has more of its entries than any other.
    """
    n, k = len(labels), ids.shape[1]
    first = first_row(n, here)
    rows = np.flatnonzero(full[first : first + len(ids)])
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


def by_components(
    ids: IntArray,
    cosine: FloatArray,
    here: World,
    *,
    mutual_top: int,
    similarity: float,
    max_size: int,
    poll: Poll = undisturbed,
) -> Clusters:
    """Return the connected components of similar images that are in each other's first `mutual_top`.

    A component many times larger than `max_size` is a chain of people: its similarity threshold is raised step by step.
    Components still larger than `max_size` are cut. The most similar images stay together, so almost no image is lost.
    """
    n = len(gather(ids[:, :0], here))
    top, alike = ids[:, :mutual_top], cosine[:, :mutual_top]
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
    while (oversize := np.bincount(labels, minlength=n)[labels] > CUT * max_size).any():
        similarity += STEP
        kept = ~oversize[pairs[:, 0]] | (alike >= similarity)
        pairs, alike = pairs[kept], alike[kept]
        labels = _components(pairs, n)
        poll()
    # A component within the limit comes out unchanged.
    pieces = join(pairs[np.argsort(-alike, kind="stable")], n, max_size)
    return Clusters(pieces.astype(np.int64), np.bincount(labels, minlength=n)[labels] > max_size)


def with_looser(strict: Clusters, loose: Clusters, max_size: int) -> Clusters:
    """Return `strict` with those clusters of a lower floor, `loose`, that it fails to find.

    A loose cluster counts if it has EVIDENCE images, of which no strict cluster holds the share WHOLE. The floor that
    keeps strangers apart in pairs is too high where people differ in few directions: their images are then alone or
    in pieces. At a low floor strangers form pairs, but rarely a large group whose images share their neighbours.
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


def number(labels: IdArray, min_size: int, max_size: int) -> IdArray:
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


def first_row(n: int, here: World) -> int:
    """Return where this rank's share of n rows begins."""
    return sum(len(part) for part in np.array_split(np.empty(n, np.bool_), here.size)[: here.rank])


def _order(pairs: IntArray, n: int) -> IdArray:
    """Return the order of pairs [E, 2 or more] of images by the first, then the second."""
    return np.argsort(pairs[:, 0].astype(np.int64) * n + pairs[:, 1], kind="stable")


def _components(pairs: IntArray, n: int) -> IntArray:
    graph = sparse.coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def by_smallest_member(labels: NDArray[Any]) -> NDArray[Any]:
    """Rename each label to the smallest image that carries it, so that no label names an image of another cluster."""
    smallest = np.full(labels.max(initial=-1) + 1, len(labels), labels.dtype)
    np.minimum.at(smallest, labels, np.arange(len(labels), dtype=labels.dtype))
    return smallest[labels]
