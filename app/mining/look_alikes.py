"""Separate two people who look alike and became one cluster.

The images of one person scatter around their mean. Those of two people scatter around two means, so their scatter
along the line through both is larger. `halves.py` measures it. What chance gives is measured on groups mixed from the
images of many clusters, each as its difference from the mean of its cluster. Before, differences along axes that
everybody shares are made small (`shared_axes.py`), and the part along the mean is left out, because it depends on the
quality of an image.

A cluster is split if its measure is far above that of mixed groups of its size. Many such clusters lower the limit
(Benjamini and Hochberg 1995). But images of one person may have halves too, as with and without glasses. If that is
common, most clusters measure more than the mixed groups. Then the limit is relative to the median of the clusters of
like size, in units of their spread (Efron 2004, "Large-scale simultaneous hypothesis testing: the choice of a null
hypothesis"). The spread is that of the lower half, which has no clusters of two people.

A half whose images differ less than those of a person shows frames of a video: such a cluster stays. Near-copies take
no part and follow their image.

Letters: N images, n of this process (its contiguous share), D embedding size, C clusters, m groups of s images.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from app.mining.arrays import Doubles, Floats, Ints, Longs, Mask
from app.mining.cluster import by_smallest_member
from app.mining.halves import (
    HALF,
    LARGER,
    SIZES,
    STEPS,
    WAYS,
    Halves,
    Null,
    beside,
    by_chance,
    directions,
    products_beside,
    scatter,
)
from app.mining.sample import owned, usable_of_all
from app.mining.shared_axes import Axes, shared_axes
from app.mining.whole_clusters import by_size, whole_clusters
from app.runtime.dist import World, from_main, gather_rows, total
from app.runtime.stop import Poll, undisturbed
from app.runtime.threads import on_cores, small_matrices

LARGEST = SIZES[-1]  # images of a cluster; the time grows with their cube
POOL = 2048  # images from which groups are mixed
ABOVE = 3.0  # standard deviations; of normal measures one in 740 is above
LEAST_ABOVE = 2.0  # standard deviations, where many clusters are above
BY_CHANCE = 0.1  # of the images of clusters to split, at most
TOGETHER = 32  # clusters that are compared with each other, at least
LOWER_HALF = 0.6745  # standard deviations from the median of a normal distribution to its lower quartile
HALF_APART, MOST_APART = 4, 6  # of so many clusters one is below 0, if a half or a third show one person
CLEARLY = 2.0  # standard errors by which clusters are more spread than mixed groups
SURE = 50  # images; of larger groups fewer are mixed (`ENTRIES`), so chance is not as sure
ROUNDS = 2  # without the clusters that the first one splits, chance and the limit are better known
FEW = 0.05  # share of all images; if fewer moved, chance is not measured again


def apart(labels: Longs, shard: Tensor, original: Ints, here: World, poll: Poll = undisturbed) -> Longs:
    """Return clusters [N] where those that show two people who look alike are split; the same on every rank.

    `labels` [N] are clusters, `shard` [n, D] this rank's unit embeddings, `original` [N] the image that an image is a
    near-copy of, else itself.
    """
    everyone = np.arange(len(labels))
    part = usable_of_all(shard, here) & (original == everyone)
    follows = labels == labels[original]
    measured, changed = np.zeros(len(labels), np.int64), np.ones(len(labels), np.bool_)
    with small_matrices():
        for _ in range(ROUNDS):
            if changed.sum() >= FEW * len(labels):
                axes, null = _chance(*_clusters(labels, part), shard, here)
                changed[:] = True
            if null is None:
                break
            moved = _moved(labels, part, measured, changed, axes, null, shard, here, poll)
            if not len(moved):
                break
            result = labels.copy()
            result[moved[:, 0]] = len(labels) + moved[:, 1]
            labels = by_smallest_member(np.where(follows, result[original], result))
            changed[:] = False
            changed[moved[:, 0]] = True
    return labels


def _clusters(labels: Longs, part: Mask) -> tuple[Longs, Longs, Mask]:
    """Return the cluster [N] of each image, numbered anew, and the clusters' sizes among `part` [N] and which count."""
    names, cluster = np.unique(np.where(part, labels, -1), return_inverse=True)
    size = np.bincount(cluster, minlength=len(names))
    return cluster, size, (size >= 2 * HALF) & (size <= LARGEST) & (names >= 0)


def _chance(cluster: Longs, size: Longs, tested: Mask, shard: Tensor, here: World) -> tuple[Axes, Null | None]:
    """Return the axes that the `tested` clusters share, and what chance gives; the same on every rank."""
    pool, owner = _pool(cluster, size, tested, shard, here)
    axes = from_main(shared_axes(pool, owner), here)
    return axes, from_main(by_chance(axes.shrunk(pool), int(size[tested].max(initial=0))), here)


def _moved(
    labels: Longs,
    part: Mask,
    known: Longs,
    changed: Mask,
    axes: Axes,
    null: Null,
    shard: Tensor,
    here: World,
    poll: Poll,
) -> Longs:
    """Return image and new cluster [e, 2] of the images of clusters to split, among the images of `part` [N].

    `known` [N]: the measure of an image's cluster. It is updated for clusters with images that `changed` [N].
    """
    cluster, size, tested = _clusters(labels, part)
    tested &= size <= null.sizes[-1]  # of larger groups it is not known what chance gives
    none = np.zeros((0, 2), np.int64)
    if not tested.any():
        return none
    new = tested & (np.bincount(cluster, changed) > 0)
    measured = np.zeros(len(size), np.int64)
    for ids, rows in whole_clusters(cluster, size, new, shard, here):
        groups = by_size(cluster[ids], rows.shape[1])
        above = on_cores(_measured, [(rows, places, axes, null) for places in groups])
        for places, each in zip(groups, above, strict=True):
            measured[cluster[ids[places[:, 0]]]] = np.rint(each * STEPS)
        poll()
    measured = total(torch.from_numpy(measured), here).numpy()
    known[:] = np.where(new[cluster], measured[cluster], known)
    measured[cluster] = known
    limit = from_main(limit_of(measured[tested] / STEPS, size[tested]), here)
    wide = tested & (measured > limit.of(np.maximum(size, 1)) * STEPS)
    pieces = [none]
    for ids, rows in whole_clusters(cluster, size, wide, shard, here):
        groups = by_size(cluster[ids], rows.shape[1])
        people = on_cores(_separated, [(rows, places, axes, null, limit) for places in groups])
        for own, found in zip(chain(*groups), chain(*people), strict=True):
            pieces += [
                np.stack([ids[own][each], np.full(len(each), ids[own][each].min())], 1)
                for each in found
                if len(found) > 1
            ]
        poll()
    return gather_rows(torch.from_numpy(np.concatenate(pieces)), here).numpy()


def _measured(rows: Floats, places: Longs, axes: Axes, null: Null) -> Doubles:
    """Return how many deviations the clusters at `places` [m, s] of `rows` [e, D] are above chance [m]."""
    return widest(axes.shrunk(rows[places].astype(np.float64)), null)[0]


def _separated(rows: Floats, places: Longs, axes: Axes, null: Null, limit: Limit) -> list[list[Longs]]:
    """Return for the clusters at `places` [m, s] of `rows` [e, D] the images of each person."""
    return split(axes.shrunk(rows[places].astype(np.float64)), null, limit)


class Limit(NamedTuple):
    """The deviation above which a cluster shows two people, for clusters of some sizes."""

    log_size: list[float]
    above: list[float]

    def of(self, size: NDArray[np.integer] | int) -> Doubles:
        """Return the limits of clusters of `size` images."""
        return np.interp(np.log(size), self.log_size, self.above)


def limit_of(deviations: Doubles, size: Longs) -> Limit:
    """Return the limit, from the deviations [C] of all clusters and their sizes [C], alike ones together."""
    groups = np.array_split(np.argsort(size, kind="stable"), max(1, len(size) // TOGETHER))
    both = shows_both_kinds(deviations)
    result = Limit([], [])
    for alike in groups:
        at, above = limits_of_alike(deviations[alike], size[alike], both_kinds=both, are_largest=alike is groups[-1])
        result.log_size.extend(np.log(at).tolist())
        result.above.extend(above.tolist())
    return result


def limits_of_alike(
    deviations: Doubles, size: Longs, *, both_kinds: bool, are_largest: bool
) -> tuple[Doubles, Doubles]:
    """Return sizes [r], and the limit [r] for each, from the deviations [C] of clusters of like sizes [C].

    `both_kinds`: see `shows_both_kinds`. The limit rises with the size within the largest clusters only; for others,
    the limits of the groups of like sizes do.
    """
    is_sure, typical = bool(size.max() <= SURE), np.exp(np.log(size).mean())
    if (is_sure or both_kinds) and is_chance(deviations, both_kinds=both_kinds):
        return np.array([typical]), np.array([rarely_above(deviations, size) if is_sure else ABOVE])
    slope = rise(np.sqrt(size), deviations) if are_largest else 0.0
    lower, median = np.quantile(deviations - slope * (size**0.5 - typical**0.5), [0.25, 0.5])
    at = np.append(typical, np.unique(size[size > typical]) if slope else [])
    spread = max(1.0, (median - lower) / LOWER_HALF)
    return at, max(0.0, median) + ABOVE * spread + slope * (at**0.5 - typical**0.5)


def rise(root: Doubles, deviations: Doubles) -> float:
    """Return by how much `deviations` [C] rise with the `root` [C] of the size, the median over pairs; at least 0.

    Equal halves deviate more in a larger cluster. Few clusters do not change the median (Sen 1968). Pairs of one size
    count as no rise, so a few clusters that are larger than all others do not decide.
    """
    one, other = np.triu_indices(len(root), 1)
    larger, more = root[other] - root[one], deviations[other] - deviations[one]
    slopes = np.where(larger == 0, 0, more / np.where(larger == 0, 1, larger))
    return max(0.0, float(np.median(slopes))) if len(slopes) else 0.0


def shows_both_kinds(deviations: Doubles) -> bool:
    """Return whether clusters of deviations [C] clearly show one person or two, and a third or more show one.

    If people have halves themselves, few clusters are below the mean of chance, or no gap divides the two kinds.
    """
    below = np.count_nonzero(deviations <= 0)
    lower, upper = np.count_nonzero(deviations <= ABOVE), np.count_nonzero(deviations > 2 * ABOVE)
    between = len(deviations) - lower - upper
    return bool(MOST_APART * below >= len(deviations) and 2 * between < min(lower, upper))


def is_chance(deviations: Doubles, *, both_kinds: bool = False) -> bool:
    """Return whether chance explains the lower of `deviations` [C], so that the others show two people.

    About half of the clusters of one person are below the mean of chance, and no further below than chance gives. A
    quarter of all clusters must be below, unless they clearly show `both_kinds` (`shows_both_kinds`).
    """
    below = deviations[deviations <= 0]
    if not both_kinds and HALF_APART * len(below) < len(deviations):
        return False
    return not len(below) or bool((below**2).mean() ** 0.5 <= 1 + CLEARLY / (2 * len(below)) ** 0.5)


def rarely_above(deviations: Doubles, size: Longs) -> float:
    """Return a limit between LEAST_ABOVE and ABOVE, above which few images are in clusters that are there by chance.

    `deviations` [C] are those of clusters of `size` [C] images. Images are counted, not clusters, because a large
    cluster of two people has most wrong pairs. One cluster by chance is added, for data sets with few clusters.
    """
    order = np.argsort(-deviations, kind="stable")
    ordered = deviations[order]
    by_chance = ndtr(-ordered) * size.sum() + size.mean()
    few = ordered[by_chance <= BY_CHANCE * np.cumsum(size[order])]
    return float(few.min(initial=ABOVE).clip(LEAST_ABOVE, ABOVE))


def widest(groups: Doubles, null: Null) -> tuple[Doubles, list[Halves]]:
    """Return for groups of images [m, s, D] how many deviations their parts are above chance [m], and the parts."""
    alike = directions(products_beside(groups))
    found = [way(alike) for way in WAYS]
    above = np.stack([null.deviations(each.measure, groups.shape[1], way) for way, each in enumerate(found)])
    return null.deviations(above.max(axis=0), groups.shape[1], LARGER), [
        Halves(*(values[at : at + 1] for values in found[way])) for at, way in enumerate(above.argmax(axis=0))
    ]


def split(groups: Doubles, null: Null, limit: Limit) -> list[list[Longs]]:
    """Return for groups of images [m, s, D] the rows of each person; a single array if the images show one person."""
    if groups.shape[1] < 2 * HALF:
        return [[np.arange(groups.shape[1])] for _ in groups]
    above, found = widest(groups, null)
    return [
        _parts(images, found[at].one[0], null, limit) if above[at] > limit.of(len(images)) else [np.arange(len(images))]
        for at, images in enumerate(groups)
    ]


def _parts(images: Doubles, one: Mask, null: Null, limit: Limit) -> list[Longs]:
    """Return the rows of `images` [s, D] of each person in the part `one` [s] and in the rest; all if one is tight."""
    whole = np.arange(len(images))
    scattered = scatter(products_beside(images[None]), one[None].astype(np.float64))[0]
    if any(null.is_tight(each, half.sum()) for each, half in zip(scattered, (one, ~one), strict=True)):
        return [whole]
    return [whole[half][each] for half in (one, ~one) for each in split(images[half][None], null, limit)[0]]


def _pool(cluster: Longs, size: Longs, tested: Mask, shard: Tensor, here: World) -> tuple[Doubles, Longs]:
    """Return differences [p, D] of images from the mean of their cluster, of random tested ones; and that cluster."""
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
    rows = gather_rows(shard[places], here).cpu().numpy()
    result, owner = [np.zeros((0, shard.shape[1]))], [np.zeros(0, np.int64)]
    for places in by_size(cluster[ids], rows.shape[1]):
        group = rows[places].astype(np.float64)
        rest = beside(group, group.mean(axis=1, keepdims=True))
        # The mean of s images moves with each of them, which makes the difference smaller.
        result.append((rest * (group.shape[1] / (group.shape[1] - 1)) ** 0.5).reshape(-1, rows.shape[1]))
        owner.append(cluster[ids[places.ravel()]])
    return np.concatenate(result), np.concatenate(owner)
