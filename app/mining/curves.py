"""Join clusters that are pieces of one person whose images lie along a curve, as from frontal to profile.

A list holds the nearest images only. So the graph of a person with many images along a curve is a chain, which label
propagation cuts into pieces. Many images at the border of two pieces list each other, and the images fill the line
between the two means: spread evenly, they have a variance of 1/12 of the squared distance of the means of its halves.
Two people leave a gap there, because each scatters little along that one of many directions.

Means of few images also differ by chance, so both halves of the images must show the distance. And if a network hardly
tells people apart, strangers fill lines as well. So a line must be filled far more than those to random clusters.

Letters: N images mined, n of this process (its contiguous share), k neighbours, P pairs of clusters, C clusters of
pairs, D embedding size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from app.mining.arrays import Doubles, Ints, Longs, Mask
from app.mining.cluster import by_smallest_member
from app.mining.exchange import first_row
from app.mining.lists import NONE, Neighbours
from app.mining.sample import STEPS, in_steps, sums_of, usable_of_all
from app.runtime.dist import World, from_main, gather_rows, share, total
from app.runtime.stop import Poll, undisturbed

LEAST = 4  # images of a cluster, two in each half
TOUCHING = 3  # images of each cluster that list one of the other, at least; strangers hardly do
BORDER = 0.2  # share of the images of each cluster; a piece of a chain is about as long as its lists reach
FILLED = 1 / 24  # variance along the line, of the squared distance: half of what evenly spread images have
CONFIRMED = 0.5  # share of the squared distance between the means that is not chance
STRANGERS = 16  # random clusters with which each cluster of a pair is compared
DRAWN_FROM = 2**10  # random clusters; each is read once for all lines to it that are measured together
MOST = 0.9  # of the lines to strangers; some may be pieces of the same person
MORE = 8.0  # times as much as these lines; between two people of real networks it was up to 7.2 times
PAIRS_AT_ONCE, ROWS_AT_ONCE, IMAGES_AT_ONCE = 2**13, 2**14, 2**10


class Line(NamedTuple):
    """What is known of P pairs of clusters and the lines between their means."""

    squared: Doubles  # [P]: the squared distance of the means
    confirmed: Doubles  # [P]: the same from two independent halves of the images
    variance: Doubles  # [P]: along the line, the mean of both clusters

    @property
    def filled(self) -> Doubles:
        """The variance along the line, of the squared distance [P]."""
        return self.variance / np.maximum(self.squared, 1e-24)


def joined(
    labels: Longs,
    shard: Tensor,
    listed: Neighbours,
    floor: float,
    original: Ints,
    largest: int,
    here: World,
    poll: Poll = undisturbed,
) -> Longs:
    """Return clusters [N] where pieces of one curve are one cluster of up to `largest` images; the same on every rank.

    `labels` [N] are clusters, `shard` [n, D] this rank's unit embeddings and `listed` their lists, where neighbours
    reach `floor`. `original` [N]: the image that an image is a near-copy of, else itself; copies do not count.
    """
    part = usable_of_all(shard, here) & (original == np.arange(len(labels)))
    images = np.bincount(labels[part], minlength=len(labels))
    pairs = touching(labels, images, listed, floor, here)
    pairs, counted = pairs[images[pairs].sum(1) <= largest], np.where(part, labels, -1)
    lines = measured(pairs, counted, images, shard, here, poll)
    filling = from_main(np.flatnonzero(fills(lines)).tolist(), here)
    pairs, filled = pairs[filling], lines.filled[filling]
    strange, foreign = with_strangers(pairs, images)
    by_chance = measured(strange.reshape(-1, 2), counted, images, shard, here, poll).filled.reshape(foreign.shape)
    usual = np.quantile(np.where(foreign, by_chance, 0), MOST, axis=1)
    pairs = pairs[from_main(np.flatnonzero(filled > MORE * usual).tolist(), here)]
    edge = np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])
    curve = connected_components(sparse.coo_array(edge, shape=(len(labels), len(labels))), directed=False)[1][labels]
    whole = np.bincount(curve)[curve] <= largest
    return by_smallest_member(np.where(whole, len(labels) + curve, labels))


def fills(line: Line) -> Mask:
    """Return for P lines whether the images of two clusters fill the line between their means."""
    return (line.variance > FILLED * line.squared) & (line.confirmed > CONFIRMED * line.squared)


def with_strangers(pairs: Longs, images: Longs) -> tuple[Longs, Mask]:
    """Return pairs [P, r, 2] of the clusters of each of `pairs` [P, 2] with random ones, and which [P, r] are others.

    `images` [N] are those that count in each cluster.
    """
    large = np.flatnonzero(images >= LEAST)
    if len(large) > DRAWN_FROM:
        large = np.random.default_rng(0).choice(large, DRAWN_FROM, replace=False)
    drawn = large[np.random.default_rng(0).integers(0, max(1, len(large)), (len(pairs), 2 * STRANGERS))]
    own = np.repeat(pairs, STRANGERS, axis=1)
    return np.stack([own, drawn], 2), (drawn[:, :, None] != pairs[:, None, :]).all(2)


def touching(labels: Longs, images: Longs, listed: Neighbours, floor: float, here: World) -> Longs:
    """Return pairs [P, 2] of clusters that touch: enough images of each list one of the other above `floor`.

    `labels` [N] are clusters, `images` [N] how many count in each. The same on every rank.
    """
    count = len(labels)
    own = share(labels, here)
    parts = [slice(at, at + ROWS_AT_ONCE) for at in range(0, len(own), ROWS_AT_ONCE)]
    touched = [_touched(own[part], labels, images, listed.ids[part], listed.cosine[part] >= floor) for part in parts]
    found, touch = np.unique(np.concatenate([np.zeros(0, np.int64), *touched]), return_counts=True)
    everywhere = gather_rows(torch.from_numpy(np.stack([found, touch], 1)), here).cpu().numpy()
    found, place = np.unique(everywhere[:, 0], return_inverse=True)
    touch = np.zeros(len(found), np.int64)
    np.add.at(touch, place, everywhere[:, 1])
    found = found[touch >= np.maximum(TOUCHING, BORDER * images[found // max(count, 1)])]
    pairs = np.stack(np.divmod(found, max(count, 1)), 1)
    return pairs[(pairs[:, 0] < pairs[:, 1]) & np.isin(pairs[:, 1] * count + pairs[:, 0], found)]


def _touched(own: Longs, labels: Longs, images: Longs, ids: Ints, near: Mask) -> Longs:
    """Return pairs [e] of clusters: for each of r images its `own` [r] and each other one in its list `ids` [r, k].

    A pair is the own cluster times N, plus the other one. Only neighbours that are `near` [r, k] count.
    """
    others = labels[ids]
    across = near & (ids != NONE) & (others != own[:, None])
    across &= (images[own] >= LEAST)[:, None] & (images[others] >= LEAST)
    row, at = np.nonzero(across)
    row, other = np.divmod(np.unique(row * len(labels) + others[row, at]), len(labels))
    return own[row] * len(labels) + other


def measured(pairs: Longs, labels: Longs, images: Longs, shard: Tensor, here: World, poll: Poll = undisturbed) -> Line:
    """Measure the lines between the means of `pairs` [P, 2] of clusters; `labels` [N], -1: an image does not count."""
    some = []
    for part in np.array_split(pairs, -(-len(pairs) // PAIRS_AT_ONCE) or 1):
        some.append(_measured(part, labels, images, shard, here))
        poll()
    return Line(*map(np.concatenate, zip(*some, strict=True)))


def _measured(pairs: Longs, labels: Longs, images: Longs, shard: Tensor, here: World) -> Line:
    names, ends = np.unique(pairs, return_inverse=True)
    ends, size = ends.reshape(pairs.shape), images[names]
    row, half = _images_of(names, size, labels, shard, here)
    sums = sums_of(row, half, 2 * len(names), shard, here).reshape(len(names), 2, shard.shape[1])
    halves = sums / np.stack([(size + 1) // 2, size // 2], 1)[:, :, None]
    between = _from_end_to_end(sums.sum(1) / size[:, None], ends)
    squared = (between**2).sum(1)
    direction = in_steps(torch.from_numpy(between / np.sqrt(np.maximum(squared, 1e-24))[:, None])).to(shard.device)
    along = _sums_along(direction, ends, row, half // 2, shard, here)
    count = size[ends]
    variance = (along[..., 1] - along[..., 0] ** 2 / count) / (count - 1)
    return Line(squared, _from_end_to_end(halves, ends).prod(1).sum(1), variance.mean(1))


def _images_of(names: Longs, size: Longs, labels: Longs, shard: Tensor, here: World) -> tuple[Tensor, Tensor]:
    """Return this rank's rows [e] of the images of C clusters, one cluster after the other, and the half of each.

    `names` [C] are among `labels` [N] and have `size` [C] images. A half is 2 * its cluster's place in `names` + 0 or
    1.
    """
    number = np.full(int(labels.max(initial=0)) + 2, -1)
    number[names] = np.arange(len(names))
    cluster = number[labels]
    ids = np.flatnonzero(cluster >= 0)
    ids = ids[np.argsort(cluster[ids], kind="stable")]
    place = np.arange(len(ids)) - np.repeat(np.cumsum(size) - size, size)
    half, row = 2 * cluster[ids] + place % 2, ids - first_row(len(labels), here)
    own = (row >= 0) & (row < len(shard))
    return torch.from_numpy(row[own]).to(shard.device), torch.from_numpy(half[own]).to(shard.device)


def _sums_along(direction: Tensor, ends: Longs, row: Tensor, cluster: Tensor, shard: Tensor, here: World) -> Doubles:
    """Return for each line and end the sums [P, 2, 2] of its images' places along the line, and of their squares.

    `direction` [P, D] is that of each line, in STEPS, and `ends` [P, 2] are the clusters at its ends. `row` [e] are
    this rank's images, sorted by their `cluster` [e].
    """
    clusters = np.arange(int(ends.max(initial=-1)) + 2)
    by_cluster = np.argsort(ends, axis=None, kind="stable")
    images, lines = (
        np.diff(np.searchsorted(each, clusters)).tolist() for each in (cluster.cpu().numpy(), ends.ravel()[by_cluster])
    )
    sums = torch.zeros((ends.size, 2), dtype=torch.int64, device=shard.device)
    of_cluster = torch.from_numpy(by_cluster).to(shard.device).split(lines)
    for own, line in zip(row.split(images), of_cluster, strict=True):
        for some in own.split(IMAGES_AT_ONCE) if len(own) else ():
            place = (in_steps(shard[some]) @ direction[line // 2].T).div_(STEPS).round_()  # [images, lines]
            sums[line] += torch.stack([place.sum(0), place.square().sum(0)], 1).long()
    return (total(sums, here).cpu().numpy() / np.array([STEPS, STEPS**2])).reshape(*ends.shape, 2)


def _from_end_to_end(means: Doubles, ends: Longs) -> Doubles:
    """Return the differences [P, *] of the `means` [C, *] of the two clusters of each of `ends` [P, 2]."""
    return means[ends[:, 0]] - means[ends[:, 1]]
