"""Divide the images of one cluster into two parts, and measure how far apart these are.

There are two ways. `halves` divides along the widest direction, and finds two people of many images each. `few` takes
the images that are most alike, a node of the tree of average linkage, and finds a person of few images beside one of
many. Both scale each difference from the mean of all to length 1, because blurry images differ more. `by_chance`
measures mixed groups, which do not show two people.

Letters: m groups of s images, D embedding size, p differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.polynomial import Polynomial
from scipy.special import digamma

from app.mining.arrays import Doubles, Longs, Mask
from app.mining.eigenvectors import widest_eigenvectors
from app.mining.graph import most_alike, settle
from app.mining.whole_clusters import ENTRIES_AT_ONCE
from app.runtime.threads import on_cores

HALF = 2  # least images of a half
REASSIGNED = 3  # times that the images move to the nearer mean
SIZES = (4, 5, 6, 8, 10, 13, 17, 22, 29, 38, 50, 66, 87, 115, 152, 200, 264, 348)  # images of a mixed group
SMOOTH = 8  # images; from here on, mean and spread of the measures are fitted by polynomials of the size's logarithm
DEGREE, SPREAD_DEGREE = 4, 2  # of the polynomials of the mean, and of the logarithm of the spread
GROUPS = 200  # mixed groups of a size, at most
FITTED_GROUPS = 1800  # of all sizes from SMOOTH on
ENTRIES = 60 * 80**2  # of the matrices of a size; fewer groups of more images
LEAST_GROUPS = 5
TIGHT = 3.0  # standard deviations below the scatter of a person
TIGHT_SHARE = 0.5  # of the scatter of a person; the images of a real person may be sharper than most
LARGER = -1  # instead of the number of a way: the larger of the deviations of both
STEPS = 2**20  # of a measure, so that it does not depend on the last bits


class Halves(NamedTuple):
    """The two parts of m groups of s images."""

    measure: Doubles  # [m]: how far apart they are
    one: Mask  # [m, s]: the images of one part


class Null(NamedTuple):
    """The measures of mixed groups of each size, and the scatter of an image."""

    sizes: list[int]
    mean: list[list[float]]  # of the measure of a group, for each of WAYS; the last one of the larger deviation
    spread: list[list[float]]
    scatter: float  # mean squared difference of an image from its person
    scatter_spread: float

    def deviations(self, measure: Doubles, size: int, way: int) -> Doubles:
        """Return how many standard deviations the measures of groups of `size` images are above chance."""
        at, known = np.log(size), np.log(self.sizes)
        return (measure - np.interp(at, known, self.mean[way])) / np.interp(at, known, self.spread[way])

    def with_chance(self, measures: list[Doubles]) -> Null:
        """Return this with the mean and spread of `measures`, those of mixed groups of each size."""
        groups = np.array([len(each) for each in measures])
        mean = np.array([each.mean() for each in measures])
        spread = np.array([max(each.std(ddof=1), 1 / STEPS) for each in measures])
        larger = np.array(self.sizes) >= SMOOTH
        if larger.any():
            at, free = np.log(self.sizes)[larger], groups[larger] - 1
            # The logarithm of the spread of few groups is low on average.
            log_spread = np.log(spread[larger]) - (digamma(free / 2) - np.log(free / 2)) / 2
            spread[larger] = np.exp(fitted(log_spread, at, free**0.5, SPREAD_DEGREE))
            mean[larger] = fitted(mean[larger], at, groups[larger] ** 0.5 / spread[larger], DEGREE)
        return self._replace(mean=[*self.mean, mean.tolist()], spread=[*self.spread, spread.tolist()])

    def is_tight(self, scatter: float, images: int) -> bool:
        """Return whether `images` scatter so little that they show frames of a video."""
        return scatter < min(self.scatter - TIGHT * self.scatter_spread / images**0.5, TIGHT_SHARE * self.scatter)


def products_beside(groups: Doubles) -> Doubles:
    """Return the scalar products [m, s, s] of images [m, s, D] without their part along the mean of their group."""
    products = np.matmul(groups, groups.transpose(0, 2, 1))
    along = products.mean(axis=2)  # with the mean; [m, s]
    along /= np.sqrt(np.maximum(along.mean(axis=1, keepdims=True), 1e-24))
    products -= along[:, :, None] * along[:, None, :]
    return products


def beside(groups: Doubles, mean: Doubles) -> Doubles:
    """Return the images [m, s, D] without their part along the mean [m, 1, D]."""
    unit = mean / np.maximum(np.linalg.norm(mean, axis=2, keepdims=True), 1e-12)
    return groups - (groups * unit).sum(2, keepdims=True) * unit


def halves(alike: Doubles) -> Halves:
    """Divide groups, given by the products [m, s, s] of their images' `directions`, along the widest one.

    The measure adds the logarithms of two shares of the scatter: along that direction, and between the halves.
    """
    size = alike.shape[1]
    width, direction = widest_direction(alike)
    order = np.argsort(direction, axis=1, kind="stable")
    along = np.take_along_axis(direction, order, 1)
    first = np.arange(1, size)
    between = np.cumsum(along, axis=1)[:, :-1] ** 2 / (first * (size - first))
    cut = between[:, HALF - 1 : size - HALF].argmax(1) + HALF  # images of the first half
    one = np.zeros(order.shape)
    np.put_along_axis(one, order, (np.arange(size) < cut[:, None]).astype(np.float64), 1)
    one = _settled(alike, one)
    count = one.sum(1)
    whole = np.maximum(np.trace(alike, axis1=1, axis2=2), 1e-300)
    share = _across(alike, one) * size / (count * (size - count)) / whole
    measure = np.log(np.maximum(share, 1e-12)) + np.log(np.maximum(width / whole, 1e-12))
    return Halves(measure, one > 0)


def few(alike: Doubles) -> Halves:
    """Divide groups, given by the products [m, s, s] of their images' `directions`, into those most alike and the rest.

    The measure is the mean cosine of their differences times the root of the number of pairs, in standard deviations.
    """
    pairs, own = alike.shape[1] * (alike.shape[1] - 1), np.einsum("mii->mi", alike)
    variance = (np.einsum("mij,mij->m", alike, alike) - (own**2).sum(1)) / pairs - (own.sum(1) / pairs) ** 2
    measure, one = most_alike((alike + alike.transpose(0, 2, 1)) / 2, HALF)
    measure /= np.sqrt(np.maximum(variance, 1e-24))
    return Halves(measure, _settled(alike, one.astype(np.float64)) > 0)


WAYS: tuple[Callable[[Doubles], Halves], ...] = (halves, few)


def by_chance(pool: Doubles, largest: int) -> Null | None:
    """Return what groups of up to `largest` images, mixed from differences `pool` [p, D], measure; None if too few."""
    sizes = [size for before, size in zip((0, *SIZES), SIZES, strict=False) if before < largest]
    sizes = [size for size in sizes if 2 * size <= len(pool)]
    if not sizes:
        return None
    products, random = pool @ pool.T, np.random.default_rng(0)
    drawn = [
        np.stack([random.choice(len(pool), size, replace=False) for _ in range(groups)])
        for size, groups in zip(sizes, groups_of(sizes), strict=True)
    ]
    measures = on_cores(_measures, [(products, groups) for groups in reversed(drawn)])[::-1]  # the longest first
    scatter = np.diag(products)
    null = Null(sizes, [], [], float(scatter.mean()), float(scatter.std()))
    for way in range(len(WAYS)):
        null = null.with_chance([each[way] for each in measures])
    larger = [
        np.max([null.deviations(found, size, way) for way, found in enumerate(each)], axis=0)
        for size, each in zip(sizes, measures, strict=True)
    ]
    return null.with_chance(larger)


def _measures(products: Doubles, drawn: Longs) -> list[Doubles]:
    """Return for each of WAYS the measures [m] of groups `drawn` [m, s] of differences with `products` [p, p]."""
    parts = np.array_split(drawn, -(-drawn.size * drawn.shape[1] // ENTRIES_AT_ONCE))
    alike = [directions(products.take(part[:, :, None] * len(products) + part[:, None, :])) for part in parts]
    return [np.concatenate([way(part).measure for part in alike]) for way in WAYS]


def groups_of(sizes: list[int]) -> list[int]:
    """Return how many mixed groups are measured of each of `sizes`."""
    share = FITTED_GROUPS // max(1, sum(size >= SMOOTH for size in sizes))
    fewer = [max(LEAST_GROUPS, min(GROUPS, share, ENTRIES // size**2)) for size in sizes]
    return [GROUPS if size < SMOOTH else groups for size, groups in zip(sizes, fewer, strict=True)]


def fitted(values: Doubles, at: Doubles, weight: Doubles, degree: int) -> Doubles:
    """Return the polynomial of `at` [r] through `values` [r], which have errors in proportion to 1 / `weight` [r]."""
    return Polynomial.fit(at, values, min(degree, len(at) - 1), w=weight)(at) if len(at) > 1 else values


def directions(products: Doubles) -> Doubles:
    """Return the products [m, s, s] of the differences from the mean of all, each of length 1, and again centred."""
    centred = _centred(products)
    length = np.sqrt(np.maximum(np.einsum("mii->mi", centred), 1e-12))
    centred /= length[:, :, None]
    centred /= length[:, None, :]
    return _centred(centred)


def widest_direction(alike: Doubles) -> tuple[Doubles, Doubles]:
    """Return the largest eigenvalue [m] of the matrices [m, s, s] and its vector [m, s].

    Raises LinAlgError if LAPACK finds none.
    """
    # 32 bits are enough: the error of the eigenvalue, computed in 64 bits, is the square of the vector's.
    vectors = np.empty(alike.shape[:2], np.float32)
    if widest_eigenvectors(alike.astype(np.float32), vectors):
        raise np.linalg.LinAlgError("LAPACK finds no widest direction of a cluster")
    direction = vectors.astype(np.float64)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return _across(alike, direction), direction


def _centred(products: Doubles) -> Doubles:
    row = products.mean(axis=2, keepdims=True)
    centred = products - (row - row.mean(axis=1, keepdims=True))
    centred -= row.transpose(0, 2, 1)
    return centred


def _settled(alike: Doubles, one: Doubles) -> Doubles:
    """Return the part `one` [m, s] once the images have moved to the nearer mean (`settle`)."""
    part = one > 0
    settle(alike, part, REASSIGNED, HALF)
    return part.astype(np.float64)


def _across(products: Doubles, part: Doubles) -> Doubles:
    """Return the sum [m] of the products of the images of a part [m, s]."""
    return (np.matmul(products, part[:, :, None])[:, :, 0] * part).sum(axis=1)


def scatter(products: Doubles, one: Doubles) -> Doubles:
    """Return the mean squared difference [m, 2] of an image from the mean of its part, `one` [m, s] or the rest."""
    centred = _centred(products)
    diagonal = np.einsum("mii->mi", centred)
    return np.stack(
        [
            ((diagonal * part).sum(1) - _across(centred, part) / part.sum(1)) / (part.sum(1) - 1)
            for part in (one, 1 - one)
        ],
        axis=1,
    )
