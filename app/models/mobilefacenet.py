"""MobileFaceNet (Chen et al. 2018, arXiv:1804.07573) in the structure of arcface_torch's `mbf`.

Parameter names match, so published weights load unchanged.

Letters: B batch, C channels, H/W height and width, D embedding size.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from app.config import BackboneConfig
from app.models.fourier import fourier_layer
from app.models.layers import PReLU
from app.models.recompute import recomputed


class Chain(nn.Module):
    """A sequence of layers under the published name `layers`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> Chain:
    """A convolution without bias and its BN: [B, c_in, H, W] -> [B, c_out, H/stride, W/stride]."""
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    return Chain(convolution, nn.BatchNorm2d(c_out))


def conv_bn_prelu(c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> Chain:
    return Chain(*conv_bn(c_in, c_out, kernel, stride, padding, groups).layers, PReLU(c_out))


class Bottleneck(Chain):
    """Expand 1x1, depthwise 3x3, project 1x1; plus the shortcut, except at the start of a stage (stride 2)."""

    def __init__(self, c_in: int, c_out: int, expanded: int, stride: int, *, gradient_checkpointing: bool) -> None:
        super().__init__(
            conv_bn_prelu(c_in, expanded, 1),
            conv_bn_prelu(expanded, expanded, 3, stride, 1, groups=expanded),
            conv_bn(expanded, c_out, 1),
        )
        self.shortcut = stride == 1
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self, self._forward, x) if self.gradient_checkpointing else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileFaceNet(nn.Module):
    """images [B, 3, S, S] in [-1, 1] -> embeddings [B, D], not normalised.

    `layers` (1, 4, 6, 2) with `width` 128 is the published `mbf`; (2, 8, 12, 4) with 256 is `mbf_large`. `width` is the
    number of channels of the first layers, a multiple of 64.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.fourier_transform_layer = fourier_layer(config.fourier, config.image_size)
        bottleneck = partial(Bottleneck, gradient_checkpointing=config.gradient_checkpointing)

        def repeated(channels: int, expanded: int, blocks: int) -> Chain:
            return Chain(*(bottleneck(channels, channels, expanded, 1) for _ in range(blocks)))

        c = c_in = config.width
        first, *rest = config.layers
        start = conv_bn_prelu(c, c, 3, 1, 1, groups=64) if first == 1 else repeated(c, 128, first)
        self.layers = nn.Sequential(conv_bn_prelu(3, c, 3, 2, 1), start)
        for blocks, c_out, expanded, inner in zip(
            rest, (c, 2 * c, 2 * c), (128, 256, 512), (128, 256, 256), strict=True
        ):
            self.layers.extend([bottleneck(c_in, c_out, expanded, 2), repeated(c_out, inner, blocks)])
            c_in = c_out
        side = -(-config.image_size // 16)
        self.conv_sep = conv_bn_prelu(c_in, 512, 1)
        self.features = Chain(
            conv_bn(512, 512, side, groups=512),  # global depthwise convolution: one weight per position and channel
            nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout)),
            nn.Linear(512, config.embedding_dim, bias=False),
            nn.BatchNorm1d(config.embedding_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.fourier_transform_layer(x))  # [B, C, S/16, S/16]
        last_bn = self.features.layers[-1]
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.conv_sep(x.to(last_bn.weight.dtype)))
