"""Separate two people who look alike and became one cluster.

The images of one person scatter around their mean. If a cluster shows two people, its images lie around two means, and
the scatter along the line through both is larger. How large it may be by chance is read from the data itself: images of
many clusters, each as its difference from the mean of its cluster, are mixed into groups that have no halves. The
measure of a cluster is compared with that of such groups of equal size.

The images of a real person may have halves too, as with and without glasses. Where this is common, most clusters
measure more than the mixed groups. So a cluster is compared with the median of the clusters of its size as well, in
units of their spread (Efron 2004, "Large-scale simultaneous hypothesis testing: the choice of a null hypothesis"). The
lower half gives the spread, which the clusters of two people do not reach.

A half whose images differ less than those of a person shows frames of a video, and does not count. Near-copies take no
part and follow their image. The difference from the mean leaves out the part along the mean: it depends on the quality
of an image.

Letters: N images, n of this process (its contiguous share), D embedding size, C clusters, m groups of s images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.mining.cluster import by_smallest_member, first_row
from app.mining.lists import usable
from app.mining.partition import dealt
from app.mining.sample import owned
from app.runtime.dist import World, from_main, gather_rows, total
from app.runtime.stop import Poll, undisturbed

HALF = 2  # least images of a half
LARGEST = 1024  # images of a cluster; the time grows with their cube
POOL = 2048  # images from which groups are mixed
GROUPS = 200  # mixed groups of each size
SIZES = (4, 5, 6, 8, 10, 13, 17, 22, 29, 38, 50)  # images of a mixed group; more change little
ABOVE = 3.0  # standard deviations; of normal measures one in 740 is above
TIGHT = 3.0  # standard deviations below the scatter of a person
REASSIGNED = 3  # times that the images move to the nearer mean
TOGETHER = 32  # clusters that are compared with each other, at least
LOWER_HALF = 0.6745  # standard deviations from the median of a normal distribution to its lower quartile
ROWS_AT_ONCE = 2**15  # of a process
ENTRIES_AT_ONCE = 2**21  # of matrices
STEPS = 2**20  # of a measure: it does not depend on the last bits
Rows = NDArray[np.float64]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Null(NamedTuple):
    """What chance gives: of mixed groups of each size, and the scatter of an image."""

    sizes: list[int]
    mean: list[float]  # of the measure of a group
    spread: list[float]
    scatter: float  # mean squared difference of an image from its person
    scatter_spread: float

    def deviations(self, measure: Rows, size: int) -> Rows:
        """Return how many standard deviations the measures of groups of `size` images are above chance."""
        at, known = np.log(size), np.log(self.sizes)
        return (measure - np.interp(at, known, self.mean)) / np.interp(at, known, self.spread)

    def is_tight(self, scatter: float, images: int) -> bool:
        """Return whether `images` scatter less than images of a person do by chance."""
        return scatter < self.scatter - TIGHT * self.scatter_spread / images**0.5


def apart(labels: Ids, shard: Tensor, original: NDArray[np.int32], here: World, poll: Poll = undisturbed) -> Ids:
    """Return clusters [N] where those that show two people who look alike are split; the same on every rank.

    `labels` [N] are clusters, `shard` [n, D] this rank's unit embeddings, `original` [N] the image that an image is a
    near-copy of, else itself.
    """
    everyone = np.arange(len(labels))
    part = (gather_rows(usable(shard).to(torch.uint8), here).cpu().numpy() > 0) & (original == everyone)
    names, cluster = np.unique(np.where(part, labels, -1), return_inverse=True)
    size = np.bincount(cluster, minlength=len(names))
    tested = (size >= 2 * HALF) & (size <= LARGEST) & (names >= 0)
    null = from_main(_by_chance(_pool(cluster, size, tested, shard, here)), here)
    if null is None:
        return labels
    measured = np.zeros(len(names), np.int64)
    for ids, rows in _dealt(cluster, size, tested, shard, here):
        for groups, stacked in _by_size(cluster[ids], rows):
            above = null.deviations(halves(stacked).measure, stacked.shape[1])
            measured[cluster[ids[groups[:, 0]]]] = np.rint(above * STEPS)
        poll()
    measured = total(torch.from_numpy(measured), here).numpy()
    limit = from_main(limit_of(measured[tested] / STEPS, size[tested]), here)
    wide = tested & (measured > limit.of(np.maximum(size, 1)) * STEPS)
    pieces = [np.zeros((0, 2), np.int64)]
    for ids, rows in _dealt(cluster, size, wide, shard, here):
        for groups, stacked in _by_size(cluster[ids], rows):
            for own, images in zip(groups, stacked, strict=True):
                pieces += [
                    np.stack([ids[own][each], np.full(len(each), ids[own][each].min())], 1)
                    for each in split(images, null, limit)
                ]
        poll()
    moved = gather_rows(torch.from_numpy(np.concatenate(pieces)), here).numpy()
    result = labels.copy()
    result[moved[:, 0]] = len(labels) + moved[:, 1]
    follows = labels == labels[original]
    return by_smallest_member(np.where(follows, result[original], result))


class Limit(NamedTuple):
    """The deviation above which a cluster shows two people, for clusters of some sizes."""

    log_size: list[float]
    above: list[float]

    def of(self, size: NDArray[np.integer] | int) -> Rows:
        """Return the limits of clusters of `size` images."""
        return np.interp(np.log(size), self.log_size, self.above)


def limit_of(deviations: Rows, size: Ids) -> Limit:
    """Return the limit, from the deviations [C] of all clusters and their sizes [C], alike ones together."""
    order = np.argsort(size, kind="stable")
    result = Limit([], [])
    for alike in np.array_split(order, max(1, len(order) // TOGETHER)):
        lower, median = np.quantile(deviations[alike], [0.25, 0.5])
        spread = max(1.0, (median - lower) / LOWER_HALF)
        result.log_size.append(float(np.log(size[alike]).mean()))
        result.above.append(float(max(0.0, median) + ABOVE * spread))
    return result


class Halves(NamedTuple):
    """The two halves of m groups of s images."""

    measure: Rows  # [m]: logarithm of the scatter's share along its widest direction, and of that between the halves
    one: Mask  # [m, s]: the images of one half
    scatter: Rows  # [m, 2]: mean squared difference of an image from its half's mean


def halves(groups: Rows) -> Halves:
    """Return the halves of groups of images [m, s, D]: split along the widest direction, then by the nearer mean."""
    beside = _beside(groups, groups.mean(axis=1, keepdims=True))
    return halves_of_products(np.matmul(beside, beside.transpose(0, 2, 1)))


def halves_of_products(products: Rows) -> Halves:
    """Return the halves of groups given by the scalar products [m, s, s] of their images."""
    size = products.shape[1]
    centred = products - products.mean(1, keepdims=True) - products.mean(2, keepdims=True)
    centred += products.mean((1, 2), keepdims=True)
    widths, directions = np.linalg.eigh(centred)
    order = np.argsort(directions[:, :, -1], axis=1, kind="stable")
    along = np.take_along_axis(directions[:, :, -1], order, 1)
    first = np.arange(1, size)
    between = np.cumsum(along, axis=1)[:, :-1] ** 2 / (first * (size - first))
    cut = between[:, HALF - 1 : size - HALF].argmax(1) + HALF  # images of the first half
    one = np.zeros(order.shape)
    np.put_along_axis(one, order, (np.arange(size) < cut[:, None]).astype(np.float64), 1)
    for _ in range(REASSIGNED):
        nearer = (_distance(centred, one, one) < _distance(centred, 1 - one, one, other=True)).astype(np.float64)
        enough = np.minimum(nearer.sum(1), size - nearer.sum(1)) >= HALF
        one = np.where(enough[:, None], nearer, one)
    count = one.sum(1)
    across = np.einsum("mi,mij,mj->m", one, centred, one)  # of the difference of the two means, squared
    whole = np.maximum(np.trace(centred, axis1=1, axis2=2), 1e-300)
    share = across * size / (count * (size - count)) / whole
    diagonal = np.einsum("mii->mi", centred)
    inside = [((diagonal * half).sum(1) - across / half.sum(1)) / (half.sum(1) - 1) for half in (one, 1 - one)]
    measure = np.log(np.maximum(share, 1e-12)) + np.log(np.maximum(widths[:, -1] / whole, 1e-12))
    return Halves(measure, one > 0, np.stack(inside, 1))


def split(images: Rows, null: Null, limit: Limit) -> list[Ids]:
    """Return the rows of `images` [s, D] of each person; a single array if the images show one person."""
    whole = np.arange(len(images))
    if len(images) < 2 * HALF:
        return [whole]
    found = halves(images[None])
    one = found.one[0]
    if null.deviations(found.measure, len(images))[0] <= limit.of(len(images)):
        return [whole]
    if any(null.is_tight(scatter, half.sum()) for scatter, half in zip(found.scatter[0], (one, ~one), strict=True)):
        return [whole]
    return [whole[half][each] for half in (one, ~one) for each in split(images[half], null, limit)]


def _distance(centred: Rows, half: Rows, one: Rows, *, other: bool = False) -> Rows:
    """Return the squared distance [m, s] of each image to the mean of a half, without the image's own share in it."""
    count = half.sum(1, keepdims=True)
    towards = np.einsum("mij,mj->mi", centred, half)
    squared = (
        np.einsum("mii->mi", centred) - 2 * towards / count + ((half * towards).sum(1) / count[:, 0] ** 2)[:, None]
    )
    inside = one == (0 if other else 1)
    return squared * np.where(inside, count / np.maximum(count - 1, 1), count / (count + 1))


def _beside(groups: Rows, mean: Rows) -> Rows:
    """Return the images [m, s, D] without their part along the mean [m, 1, D]."""
    unit = mean / np.maximum(np.linalg.norm(mean, axis=2, keepdims=True), 1e-12)
    return groups - (groups * unit).sum(2, keepdims=True) * unit


def _pool(cluster: Ids, size: Ids, tested: Mask, shard: Tensor, here: World) -> Rows:
    """Return differences [p, D] of images from the mean of their cluster, of random clusters that are tested."""
    random = np.random.default_rng(0)
    drawn = random.permutation(np.flatnonzero(tested))
    drawn = drawn[: int(np.searchsorted(np.cumsum(np.minimum(size[drawn], POOL // 8)), POOL)) + 1]
    chosen = np.zeros(len(size), np.bool_)
    chosen[drawn] = True
    ids = np.flatnonzero(chosen[cluster])
    ids = ids[np.lexsort((random.random(len(ids)), cluster[ids]))]
    _, first, count = np.unique(cluster[ids], return_index=True, return_counts=True)
    ids = np.sort(ids[np.arange(len(ids)) - np.repeat(first, count) < POOL // 8])
    places = owned(torch.from_numpy(ids).to(shard.device), shard, here)[1]
    rows = gather_rows(shard[places], here).cpu().numpy().astype(np.float64)
    result = [np.zeros((0, shard.shape[1]))]
    for _, group in _by_size(cluster[ids], rows):
        beside = _beside(group, group.mean(axis=1, keepdims=True))
        # The mean of s images moves with each of them, which makes the difference smaller.
        result.append((beside * (group.shape[1] / (group.shape[1] - 1)) ** 0.5).reshape(-1, rows.shape[1]))
    return np.concatenate(result)


def _by_chance(pool: Rows) -> Null | None:
    """Return what groups mixed from the differences `pool` [p, D] measure; None if they are too few."""
    sizes = [size for size in SIZES if 2 * size <= len(pool)]
    if not sizes:
        return None
    products, random = pool @ pool.T, np.random.default_rng(0)
    scatter = np.diag(products)
    mean, spread = [], []
    for size in sizes:
        drawn = np.stack([random.choice(len(pool), size, replace=False) for _ in range(GROUPS)])
        measure = halves_of_products(products[drawn[:, :, None], drawn[:, None, :]]).measure
        mean.append(float(measure.mean()))
        spread.append(max(float(measure.std()), 1 / STEPS))
    return Null(sizes, mean, spread, float(scatter.mean()), float(scatter.std()))


def _dealt(cluster: Ids, size: Ids, chosen: Mask, shard: Tensor, here: World) -> Iterator[tuple[Ids, Rows]]:
    """Yield ids [e], ascending, and embeddings [e, D] of whole `chosen` clusters, each cluster on one process.

    All processes yield equally often. A process holds about ROWS_AT_ONCE rows at a time.
    """
    images = np.where(chosen, size, 0)
    piece = (np.cumsum(images) - images) // ROWS_AT_ONCE
    first = first_row(len(cluster), here)
    own = first + np.flatnonzero(chosen[cluster[first : first + len(shard)]])
    for number in range(-(-(int(piece[chosen].max(initial=-1)) + 1) // here.size)):
        ids = own[piece[cluster[own]] // here.size == number]
        rows = shard[torch.from_numpy(ids - first).to(shard.device)].cpu().numpy()
        owner = piece[cluster[ids]] % here.size
        yield dealt(ids, owner, here).astype(np.int64), dealt(rows, owner, here).astype(np.float64)


def _by_size(cluster: Ids, rows: Rows) -> Iterator[tuple[Ids, Rows]]:
    """Yield for clusters of equal size their rows [m, s], and those of `rows` [m, s, D]."""
    order = np.argsort(cluster, kind="stable")
    _, first, count = np.unique(cluster[order], return_index=True, return_counts=True)
    for size in np.unique(count):
        begins = first[count == size]
        at_once = max(1, ENTRIES_AT_ONCE // int(size) ** 2)
        for some in np.split(begins, range(at_once, len(begins), at_once)):
            places = order[some[:, None] + np.arange(size)]
            yield places, rows[places]
