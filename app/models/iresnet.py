"""IResNet, the residual network of face recognition (Duta et al. 2020, arXiv:2004.04989; as used by ArcFace).

Differences from a plain ResNet: stride-1 stem, BN before the first convolution of a block, PReLU, stride on the
second convolution, no activation after the sum, and a flattened tail instead of average pooling.

Letters: B batch, C channels, H/W height and width, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.config import BackboneConfig
from app.models.fourier import fourier_layer
from app.models.layers import Conv1x1, Conv3x3, PReLU
from app.models.recompute import recomputed

BN_EPS = 1e-5


class Block(nn.Module):
    """BN, conv3x3, BN, PReLU, conv3x3 (stride), BN, plus the shortcut. [B, C_in, H, W] -> [B, C, H/stride, W/stride]"""

    def __init__(self, channels_in: int, channels: int, stride: int, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.bn1 = nn.BatchNorm2d(channels_in, eps=BN_EPS)
        self.conv1 = Conv3x3(channels_in, channels)
        self.bn2 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.prelu = PReLU(channels)
        self.conv2 = Conv3x3(channels, channels, stride)
        self.bn3 = nn.BatchNorm2d(channels, eps=BN_EPS)
        # This name and the two positions match the keys of published weights (layerS.B.downsample.0 / .1).
        self.downsample = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else nn.Sequential(Conv1x1(channels_in, channels, stride), nn.BatchNorm2d(channels, eps=BN_EPS))
        )

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self, self._forward, x) if self.gradient_checkpointing else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        # In place: BN's gradient needs only its input, and this writes one tensor less.
        return self.bn3(self.conv2(y)).add_(self.downsample(x))


class IResNet(nn.Module):
    """Up to four stages of `layers` blocks with 1, 2, 4 and 8 times `width` channels.

    images [B, 3, S, S] in [-1, 1] -> embeddings [B, D], not normalised.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        channels = config.width
        self.fourier_transform_layer = fourier_layer(config.fourier, config.image_size)
        self.conv1 = Conv3x3(3, channels)
        self.bn1 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.prelu = PReLU(channels)
        for stage, blocks in enumerate(config.layers):
            out = config.width * 2**stage
            sizes = [(channels, out, 2)] + [(out, out, 1)] * (blocks - 1)
            blocks_of_stage = (Block(*size, gradient_checkpointing=config.gradient_checkpointing) for size in sizes)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks_of_stage))
            channels = out
        self.stages = len(config.layers)
        side = -(-config.image_size // 2**self.stages)  # each stage halves, rounding up
        self.bn2 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(channels * side * side, config.embedding_dim)
        self.features = nn.BatchNorm1d(config.embedding_dim, eps=BN_EPS)
        # A scale per output would undo the directions that the loss trains; the published networks freeze it at 1.
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(self.fourier_transform_layer(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)  # [B, width * 2^stage, S / 2^(stage+1), …]
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        # 16-bit sums over 25,088 inputs lose accuracy: the tail stays in fp32 regardless of autocast.
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))
