"""MobileFaceNet (Chen et al. 2018, arXiv:1804.07573) in the shape of arcface_torch's `mbf`.

Letters: B batch, C channels, H/W height and width, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and its BN: [B, c_in, H, W] -> [B, c_out, H/stride, W/stride]."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(c_out)
    )


def conv_bn_prelu(
    c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(*conv_bn(c_in, c_out, kernel, stride, padding, groups), nn.PReLU(c_out))


class Bottleneck(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; a shortcut where the shape does not change."""

    def __init__(self, c_in: int, c_out: int, expanded: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_bn_prelu(c_in, expanded, 1),
            conv_bn_prelu(expanded, expanded, 3, stride, 1, groups=expanded),
            conv_bn(expanded, c_out, 1),
        )
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileFaceNet(nn.Module):
    """images [B, 3, S, S] in [-1, 1] -> embeddings [B, D], not normalised.

    `layers` (1, 4, 6, 2) with `scale` 2 is the published `mbf`; (2, 8, 12, 4) with 4 is `mbf_large`.
    """

    def __init__(
        self,
        layers: Sequence[int] = (1, 4, 6, 2),
        *,
        scale: int = 2,
        embedding_dim: int = 512,
        image_size: int = 112,
    ) -> None:
        super().__init__()
        c = 64 * scale
        first, *rest = layers
        parts: list[nn.Module] = [conv_bn_prelu(3, c, 3, 2, 1)]
        if first == 1:
            parts.append(conv_bn_prelu(c, c, 3, 1, 1, groups=64))
        else:
            parts.extend(Bottleneck(c, c, 128, 1) for _ in range(first))
        c_in = c
        for blocks, c_out, expanded in zip(rest, (c, 2 * c, 2 * c), (128, 256, 512), strict=True):
            parts.append(Bottleneck(c_in, c_out, expanded, 2))
            inner = 128 if c_out == c else 256
            parts.extend(Bottleneck(c_out, c_out, inner, 1) for _ in range(blocks))
            c_in = c_out
        self.trunk = nn.Sequential(*parts)
        side = -(-image_size // 16)
        self.tail = nn.Sequential(
            conv_bn_prelu(c_in, 512, 1),
            conv_bn(512, 512, side, groups=512),  # global depthwise convolution: one weight a place and channel
        )
        self.fc = nn.Linear(512, embedding_dim, bias=False)
        self.features = nn.BatchNorm1d(embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.tail(self.trunk(x)), 1)  # [B, 512]
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.float()))
