"""Clusters of a nearest-neighbour graph: which images likely show one person.

Threshold-and-connect fails on faces: a cone of blurry images, or one bad bridge, joins thousands of people. Here an
edge must be mutual and its ends must share neighbours; what is left is clustered by label propagation (Raghavan et
al. 2007, arXiv:0709.2938) on edges weighted by similarity times shared-neighbour overlap (Jarvis and Patrick 1973).

Everything is a pure function of its arguments and a seed: every rank computes the same labels.

Letters: N images, k neighbours, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import norm

from app.config import NO_ID

SWEEPS = 50
FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int64]


@dataclass(frozen=True)
class Edges:
    """Undirected edges, a < b, ascending."""

    a: IdArray  # [E]
    b: IdArray  # [E]
    weight: FloatArray  # [E]


def similarity_floor(bank: FloatArray, false_edges_per_image: float, seed: int, sample: int = 2048) -> float:
    """The cosine above which an image of `bank` [N, D] is expected to have that many neighbours by chance.

    Cosines of random pairs are bounded and skewed; their Fisher transform (artanh) is close to normal. True pairs
    among them sit in the far tail and would lift a quantile taken there, so the normal is fitted to the body (median
    and lower quartile) and the floor is read off its upper tail.
    """
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(bank), min(sample, len(bank)), replace=False)
    cosine = (bank[rows] @ bank[rows].T)[np.triu_indices(len(rows), k=1)]
    lower, median = np.arctanh(np.clip(np.quantile(cosine, [0.25, 0.5]), -0.9999, 0.9999))
    sigma = (median - lower) / norm.ppf(0.75)
    tail = min(0.5, false_edges_per_image / max(len(bank) - 1, 1))
    # Below 0 two images have nothing in common, however few there are to tell.
    return max(0.0, float(np.tanh(median + sigma * norm.isf(tail))))


def mutual_edges(ids: IdArray, cosine: FloatArray, floor: float, min_overlap: float) -> Edges:
    """Edges between images that are in each other's list, alike above `floor`, and share neighbours.

    ids, cosine [N, k] with -1 for "no such neighbour". Overlap is the share of k that both lists, each with its own
    image added, have in common; the weight is cosine times overlap.
    """
    n, k = ids.shape
    source = np.repeat(np.arange(n), k)
    target, similarity = ids.ravel(), cosine.ravel()
    kept = (target >= 0) & (similarity >= floor)
    listed = sparse.csr_array(
        (np.ones(np.count_nonzero(target >= 0), np.float32), (source[target >= 0], target[target >= 0])),
        shape=(n, n),
    )
    listed.setdiag(1)
    near = sparse.csr_array((similarity[kept], (source[kept], target[kept])), shape=(n, n))
    mutual = sparse.triu(near.minimum(near.T), k=1).tocoo()
    mutual.eliminate_zeros()
    a, b = mutual.row.astype(np.int64), mutual.col.astype(np.int64)
    overlap = np.asarray(listed[a].multiply(listed[b]).sum(1)).ravel() / (k + 1)
    strong = overlap >= min_overlap
    a, b, weight = a[strong], b[strong], (mutual.data * overlap)[strong].astype(np.float32)
    order = np.lexsort((b, a))
    return Edges(a[order], b[order], weight[order])


def propagate(edges: Edges, n: int, seed: int) -> IdArray:
    """Label propagation: labels [N]; images without edges keep a label of their own.

    In each sweep a random half of the images takes the label with the greatest total weight among its neighbours
    (the smallest label wins a tie), seen from the labels of the sweep before; halves keep two neighbours from swapping
    labels for ever.
    """
    rng = np.random.default_rng(seed)
    source = np.concatenate([edges.a, edges.b])
    target = np.concatenate([edges.b, edges.a])
    weight = np.concatenate([edges.weight, edges.weight]).astype(np.float64)
    labels = np.arange(n)
    for _ in range(SWEEPS):
        best = _heaviest_label(source, labels[target], weight, labels)
        if np.array_equal(best, labels):
            break
        labels = np.where(rng.random(n) < 0.5, best, labels)
    return labels


def _heaviest_label(source: IdArray, label: IdArray, weight: NDArray[np.float64], current: IdArray) -> IdArray:
    """For each image the label with the greatest summed weight over its edges; `current` where it has none."""
    order = np.lexsort((label, source))
    source, label, weight = source[order], label[order], weight[order]
    first = np.ones(len(source), bool)
    first[1:] = (source[1:] != source[:-1]) | (label[1:] != label[:-1])
    starts = np.flatnonzero(first)
    total = np.add.reduceat(weight, starts) if len(starts) else weight
    source, label = source[starts], label[starts]
    order = np.lexsort((label, -total, source))
    source, label = source[order], label[order]
    winner = np.ones(len(source), bool)
    winner[1:] = source[1:] != source[:-1]
    best = current.copy()
    best[source[winner]] = label[winner]
    return best


def cluster(
    ids: IdArray,
    cosine: FloatArray,
    *,
    floor: float,
    min_overlap: float,
    min_size: int,
    max_size: int,
    seed: int,
) -> IdArray:
    """Pseudo-IDs [N] from neighbour lists [N, k]: 0, 1, … by the first image of each cluster, NO_ID for the rest.

    A cluster larger than `max_size` is clustered again with a higher floor and overlap, a few times; what is still
    too large is left without an ID rather than taught as one person.
    """
    n = len(ids)
    labels = propagate(mutual_edges(ids, cosine, floor, min_overlap), n, seed)
    for attempt in range(1, 4):
        sizes = np.bincount(labels, minlength=n)
        oversize = sizes[labels] > max_size
        if not oversize.any():
            break
        tighter = mutual_edges(ids, cosine, floor + (1 - floor) * attempt / 4, min_overlap + 0.15 * attempt)
        inside = oversize[tighter.a] & (labels[tighter.a] == labels[tighter.b])
        again = propagate(Edges(tighter.a[inside], tighter.b[inside], tighter.weight[inside]), n, seed + attempt)
        labels = np.where(oversize, again, labels)
    sizes = np.bincount(labels, minlength=n)
    good = (sizes[labels] >= min_size) & (sizes[labels] <= max_size)
    return _number(labels, good)


def _number(labels: IdArray, good: NDArray[np.bool_]) -> IdArray:
    """Labels of the `good` images renumbered 0, 1, … in order of first appearance; NO_ID elsewhere."""
    _, first, inverse = np.unique(labels[good], return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered = np.full(len(labels), NO_ID, np.int64)
    numbered[good] = rank[inverse]
    return numbered
