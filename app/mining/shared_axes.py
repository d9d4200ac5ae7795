"""Find axes along which the images of most people differ, such as pose and light, and shrink differences along them.

Two people who look alike differ along one direction. If everybody's images differ more along pose and light, these are
the widest directions of each cluster, and hide the two people. So differences from the means of many clusters are
pooled. Directions with more variance than noise has by chance (Marchenko and Pastur 1967) are axes. Along an axis the
differences are shrunk to the variance of the noise. The variance of an axis is the median over clusters, which a single
cluster of two people does not change.

Letters: p differences of C clusters, D embedding size, r axes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from app.mining.arrays import Doubles, Longs

ROUNDING = 1e-6  # of the largest variance; directions of less have no images


class Axes(NamedTuple):
    """Directions that people share, and the part of a difference along each that remains."""

    directions: Doubles  # [r, D], unit and orthogonal
    kept: Doubles  # [r], from 0 to 1

    def shrunk(self, rows: Doubles) -> Doubles:
        """Return `rows` [*, D], whose differences along the axes are made as small as along other directions."""
        if not len(self.directions):
            return rows
        flat = rows.reshape(-1, rows.shape[-1])  # one product
        return rows - (((flat @ self.directions.T) * (1 - self.kept)) @ self.directions).reshape(rows.shape)


def shared_axes(pool: Doubles, owner: Longs) -> Axes:
    """Return the axes of the differences `pool` [p, D] of images from the mean of their cluster `owner` [p]."""
    count, dim = pool.shape
    _, place, images = np.unique(owner, return_inverse=True, return_counts=True)
    free = count - len(images)  # a mean takes one image of each cluster
    if free < 1 or not pool.any():
        return Axes(np.zeros((0, dim)), np.zeros(0))
    variance, directions = np.linalg.eigh(pool.T @ pool / count)  # ascending
    variance, directions = np.maximum(variance[::-1], 0), directions.T[::-1]
    span = int(np.count_nonzero(variance > ROUNDING * variance[0]))
    wide, before = 0, -1
    while wide != before:  # each axis found lowers the noise that is left
        before = wide
        noise = float(variance[wide:span].mean())
        wide = int(np.count_nonzero(variance > noise * (1 + (span / free) ** 0.5) ** 2))
    along = (pool @ directions[:wide].T) ** 2
    each = np.zeros((len(images), wide))
    np.add.at(each, place, along)
    typical = np.median(each / images[:, None], axis=0)
    return Axes(directions[:wide], np.sqrt(np.minimum(1.0, noise / np.maximum(typical, 1e-300))))
