"""Simulate JPEG compression for a batch of images on any device, without encoding a file.

It follows ITU-T T.81 with the tables of its annex K, scaled by quality as in the IJG library. Chroma is halved in both
directions (4:2:0). Entropy coding is lossless and left out.

Letters: B batch, S side (padded to a multiple of 16 internally).
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress RGB images [B, 3, S, S] in [0, 1] with `quality` [B], 1 to 100."""
    side = x.shape[-1]
    padding = -side % 16
    levels = F.pad(x * 255.0, (0, padding, 0, padding), mode="replicate")
    ycc = torch.einsum("ij,bjhw->bihw", constant(TO_YCC, x.device), levels)
    luma = _through_blocks(ycc[:, :1].round() - 128.0, LUMA, quality).round() + 128.0
    chroma = _through_blocks(F.avg_pool2d(ycc[:, 1:].round(), 2).round(), CHROMA, quality)
    chroma = F.interpolate(chroma.round(), scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("ij,bjhw->bihw", constant(TO_RGB, x.device), torch.cat([luma, chroma], 1))
    return (rgb[..., :side, :side].round() / 255.0).clamp(0.0, 1.0)


def _through_blocks(x: Tensor, table: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """Quantise the 8x8 DCT coefficients of [B, C, H, W] with the table scaled by quality, and transform back."""
    b, c, height, width = x.shape
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
    step = (
        ((constant(table, x.device) * scale + 50) / 100).floor().clamp(1, 255)[:, None, :, None, :]
    )  # [B, 1, 8, 1, 8]
    dct = _dct(x.device)
    blocks = x.view(b, c * (height // 8), 8, width // 8, 8)
    frequencies = torch.einsum("ui,bnimj,vj->bnumv", dct, blocks, dct)
    kept = (frequencies / step).round() * step
    return torch.einsum("ui,bnumv,vj->bnimj", dct, kept, dct).reshape(b, c, height, width)


@functools.cache
def constant(values: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A float32 matrix, cached per device: a copy in each step would make the host wait for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device)


@functools.cache
def _dct(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of 8 points [8 frequencies, 8 places]."""
    u, i = torch.arange(8.0)[:, None], torch.arange(8.0)[None, :]
    matrix = torch.cos((2 * i + 1) * u * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)
