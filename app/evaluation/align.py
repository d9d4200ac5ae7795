"""A face cut out upright: five points of it are laid onto where they are in a training image of 112x112.

The similarity (turn, one scale, shift) is the least-squares one of Umeyama 1991; the five places are those of ArcFace:
the points of the 96x112 template, 8 pixels further right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.dataset import SIDE

# x, y in pixels: left eye, right eye, tip of the nose, left and right corner of the mouth
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The similarity [2, 3] that takes points [K, 2] nearest to others [K, 2], in squares; never a mirror image."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    u, spread, vt = np.linalg.svd(b.T @ a / len(a))
    keep = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    turn = u @ np.diag(keep) @ vt
    scale = (spread * keep).sum() / max(a.var(0).sum(), 1e-12)
    return np.column_stack([scale * turn, target_mean - scale * turn @ source_mean])


def aligned(file: Path, points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The face in an image file, RGB [112, 112, 3], from its five points [5, 2] in pixels; black where there is none.

    Raises what Pillow raises for a file that it cannot read.
    """
    forward = np.vstack([similarity(points, TEMPLATE), [0.0, 0.0, 1.0]])
    inverse = np.linalg.inv(forward)[:2]
    # The points name the centre of a pixel by a whole number; Pillow's coordinates are half a pixel more.
    inverse[:, 2] += 0.5 - inverse[:, :2].sum(1) / 2
    with Image.open(file) as image:
        face = image.convert("RGB").transform(
            (SIDE, SIDE), Image.Transform.AFFINE, tuple(inverse.ravel().tolist()), Image.Resampling.BILINEAR
        )
    return np.asarray(face)
