"""Check on real images that an ONNX file gives the same embeddings as its torch network.

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

# Per component, as a share of the largest component or of 1: another order of fp32 sums changes about 1e-6 of it.
MOST_DIFFERENCE = 1e-4
LEAST_COSINE = 0.9999


@dataclass(frozen=True)
class Agreement:
    """The difference between onnxruntime's and torch's embeddings of `images` images."""

    images: int
    max_abs_difference: float
    least_cosine: float
    largest: float = 1.0  # component of torch's embeddings, as an absolute value

    @property
    def good(self) -> bool:
        allowed = MOST_DIFFERENCE * max(1.0, self.largest)
        return self.max_abs_difference <= allowed and self.least_cosine >= LEAST_COSINE  # false for NaN


@torch.no_grad()
def compare(
    model: bytes, backbone: nn.Module, images: NDArray[np.uint8], *, image_size: int, inside: bool
) -> Agreement:
    """Embed pixels uint8 [N, 112, 112, 3] with onnxruntime and with torch, the first image also as a batch of 1.

    torch uses the path of training and mining: `to_float`, then the original backbone. Raises CannotRun.
    """
    session = Session(model)
    x = pixels(images, inside=inside)
    found = np.concatenate([session.run(x[:1]), session.run(x)])
    was_training = backbone.training
    wanted = backbone.eval()(to_float(torch.from_numpy(images), image_size)).float().numpy()
    backbone.train(was_training)
    largest = float(np.abs(wanted).max(initial=0.0))
    return Agreement(len(images), *apart(found, np.concatenate([wanted[:1], wanted])), largest)


def apart(found: NDArray[Any], wanted: NDArray[Any]) -> tuple[float, float]:
    """Largest difference of a component and least cosine of a row of embeddings [N, D]; NaN if undefined."""
    with np.errstate(invalid="ignore"):  # for infinite values
        difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    return float(difference.max()), float(cosines(found, wanted).min())


def cosines(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of each row of embeddings [N, D]; NaN if undefined."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # for infinite values and rows of zeros
        result: NDArray[np.float64] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return result


def pixels(images: NDArray[np.uint8], *, inside: bool) -> NDArray[np.float32]:
    """Convert uint8 [N, 112, 112, 3] to the file's input, fp32 [N, 3, 112, 112]."""
    x = images.transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray(x if inside else (x - HALF_RANGE) / HALF_RANGE)
