"""Align a face to a 112x112 training image by five landmarks.

The similarity transform (rotation, one scale, shift) is the least-squares solution of Umeyama 1991. The target points
are ArcFace's: those of the 96x112 template, moved 8 pixels to the right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.arrays import SIDE
from app.data.sources.photograph import FORMATS, decoding

# x, y in pixels: left eye, right eye, tip of the nose, left and right corner of the mouth
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least-squares similarity [2, 3] from points [K, 2] to points [K, 2]; it never mirrors."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    u, spread, vt = np.linalg.svd(b.T @ a / len(a))
    keep = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    turn = u @ np.diag(keep) @ vt
    scale = (spread * keep).sum() / max(a.var(0).sum(), 1e-12)
    return np.column_stack([scale * turn, target_mean - scale * turn @ source_mean])


@decoding()
def aligned(file: Path, points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Cut out the face in an image file by its five points [5, 2] in pixels; RGB [112, 112, 3].

    Exactly the published protocol: no EXIF, no smoothing of larger faces. Pixels outside the image are black. Raises
    one of UNREADABLE.
    """
    with Image.open(file, formats=FORMATS) as image:
        face = image.convert("RGB").transform(
            (SIDE, SIDE),
            Image.Transform.AFFINE,
            tuple(_inverse(similarity(points, TEMPLATE)).ravel().tolist()),
            Image.Resampling.BILINEAR,
        )
    return np.asarray(face)


def cut(image: Image.Image, points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Cut out the face in an RGB image by its five points [5, 2] in pixels; RGB [112, 112, 3].

    A face larger than the result is reduced first, which avoids aliasing. Pixels outside the image are black.
    """
    return np.asarray(sampled(image, _inverse(similarity(points, TEMPLATE)), SIDE))


def sampled(image: Image.Image, inverse: NDArray[np.float64], side: int) -> Image.Image:
    """Sample an image at the places that `inverse` [2, 3] gives for the pixels of a square of `side` pixels.

    Places are in Pillow's coordinates, with pixel centres at halves. Where the square is smaller than what it shows,
    the image is reduced first.
    """
    times = min(int(np.hypot(*inverse[:, 0])), *image.size)
    if times > 1:
        image, inverse = image.reduce(times), inverse / times
    words = tuple(inverse.ravel().tolist())
    return image.transform((side, side), Image.Transform.AFFINE, words, Image.Resampling.BILINEAR)


def _inverse(forward: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse = np.linalg.inv(np.vstack([forward, [0.0, 0.0, 1.0]]))[:2]
    # The points have pixel centres at whole numbers; Pillow has them half a pixel higher.
    inverse[:, 2] += 0.5 - inverse[:, :2].sum(1) / 2
    return inverse
