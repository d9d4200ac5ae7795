"""What mining could reach at most: an oracle that knows the people of the generator, and assigns each image to one.

The oracle knows the true centre and size of each person, the length and the axes of an image's noise, and the direction
of blurry images. It assigns an image to the person who is most probable. Mining knows none of that, so no clustering
can be expected to do better. Where this oracle confuses people, so does everybody.

The density of a direction is that of a normal distribution projected onto the sphere. Letters: n images, S directions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from app.config import NO_ID
from app.mining.gate import pair_f, pair_precision
from benchmarks._planted import Floats, Planted

PRECISION = 0.95
KEPT = np.linspace(1, 0.01, 100)  # shares of the images that the careful oracle keeps
AT_ONCE = 2048  # images
AXES_SHARE = 1 / 3  # of the variance of the noise, along the axes
Floats64 = NDArray[np.float64]


class Limits(NamedTuple):
    f: float  # of the oracle
    precision: float
    careful_f: float  # best F of the oracle that leaves out doubtful images until its precision is PRECISION; or 0


def limits(truth: Planted) -> Limits:
    """Return what the oracle reaches on planted identities."""
    found, sure = np.zeros(len(truth.images), np.int64), np.zeros(len(truth.images))
    for first in range(0, len(found), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        chances = log_chances(truth, part)
        found[part] = chances.argmax(axis=1)
        sure[part] = np.exp(chances.max(axis=1) - logsumexp(chances, axis=1))
    found, sure = found[truth.source], sure[truth.source]
    careful = 0.0
    for share in KEPT:
        kept = np.where(sure >= np.quantile(sure, 1 - share), found, NO_ID)
        if pair_precision(kept, truth.labels) >= PRECISION:
            careful = max(careful, pair_f(kept, truth.labels))
    return Limits(pair_f(found, truth.labels), pair_precision(found, truth.labels), careful)


def log_chances(truth: Planted, part: slice = slice(None)) -> Floats64:
    """Return the logarithm of the probability [n, people] of each person for each image of `part`, up to a constant."""
    images, centres = truth.visible[part].astype(np.float64), truth.centres.astype(np.float64)
    scale = truth.scale[part].astype(np.float64)
    if truth.blur is not None:
        blur = truth.blur.astype(np.float64)
        images, centres = (rows - np.outer(rows @ blur, blur) for rows in (images, centres))
    dim = images.shape[1]
    images, centres = (whitened(rows, truth.axes) for rows in (images, centres))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    along = images @ centres.T / scale
    # The integral over the length r of an image, of r^(dim - 1) exp(r along - r^2 / 2), by Laplace's method.
    r = (along + np.sqrt(along**2 + 4 * (dim - 1))) / 2
    density = (dim - 1) * np.log(r) - r**2 / 2 + r * along - np.log1p((dim - 1) / r**2) / 2
    far = (centres**2).sum(axis=1) / (2 * scale**2)
    return density - far + np.log(np.bincount(truth.labels, minlength=len(centres)))


def whitened(rows: Floats64, axes: Floats | None) -> Floats64:
    """Return rows [*, S] in units of the noise of scale 1."""
    dim = rows.shape[1]
    if axes is None:
        return rows * np.sqrt(dim)
    basis = axes.astype(np.float64)
    across = (1 - AXES_SHARE) / dim
    inside = rows @ basis
    return (rows - inside @ basis.T) / np.sqrt(across) + inside @ basis.T / np.sqrt(
        across + AXES_SHARE / basis.shape[1]
    )
