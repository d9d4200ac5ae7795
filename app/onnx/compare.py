"""Whether an ONNX file says what the network says that it was made from, on real images.

Letters: N images, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.data.augment import to_float
from app.onnx.make import HALF_RANGE
from app.onnx.session import Session

MOST_DIFFERENCE = 1e-4  # of a number of an embedding; fp32 sums in another order differ by some 1e-6 of its size
LEAST_COSINE = 0.9999


@dataclass(frozen=True)
class Agreement:
    """How far onnxruntime's embeddings of `images` images are from torch's."""

    images: int
    max_abs_difference: float
    least_cosine: float

    @property
    def good(self) -> bool:
        return self.max_abs_difference <= MOST_DIFFERENCE and self.least_cosine >= LEAST_COSINE  # NaN is not


@torch.no_grad()
def compare(
    model: bytes, backbone: nn.Module, images: NDArray[np.uint8], *, image_size: int, inside: bool
) -> Agreement:
    """Both ways from pixels uint8 [N, 112, 112, 3] to embeddings; of the first image also by itself.

    torch's way is that of training and mining: `to_float`, then the backbone as it was trained. Raises CannotRun.
    """
    session = Session(model)
    x = pixels(images, inside=inside)
    found = np.concatenate([session.run(x[:1]), session.run(x)])
    was_training = backbone.training
    wanted = backbone.eval()(to_float(torch.from_numpy(images), image_size)).float().numpy()
    backbone.train(was_training)
    return Agreement(len(images), *apart(found, np.concatenate([wanted[:1], wanted])))


def apart(found: NDArray[Any], wanted: NDArray[Any]) -> tuple[float, float]:
    """Largest difference of a number, and least cosine of a row, of embeddings [N, D]; NaN where there is none."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite ones, and a row of zeros has no direction
        cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        return float(np.abs(a - b).max()), float(cosine.min())


def pixels(images: NDArray[np.uint8], *, inside: bool) -> NDArray[np.float32]:
    """uint8 [N, 112, 112, 3] -> fp32 [N, 3, 112, 112], as the file takes them."""
    x = images.transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray(x if inside else (x - HALF_RANGE) / HALF_RANGE)
