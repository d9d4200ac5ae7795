"""IResNet as arcface_torch builds it: torch's own layers under the published names, as a peer to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPS = 1e-5


class Block(nn.Module):
    """The peer's residual block: [B, C_in, H, W] -> [B, C, H/stride, W/stride]."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in, eps=EPS)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=EPS)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels, eps=EPS)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels, eps=EPS))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y.add_(x if self.downsample is None else self.downsample(x))


class Peer(nn.Module):
    """Four stages of blocks: images [B, 3, 112, 112] -> embeddings [B, D]. The default is IResNet18."""

    def __init__(self, layers: Sequence[int] = (2, 2, 2, 2), width: int = 64, embedding_dim: int = 512) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=EPS)
        self.prelu = nn.PReLU(width)
        before = width
        for stage, blocks in enumerate(layers):
            after = width * 2**stage
            more = (Block(after, after, 1) for _ in range(blocks - 1))
            setattr(self, f"layer{stage + 1}", nn.Sequential(Block(before, after, 2), *more))
            before = after
        self.bn2 = nn.BatchNorm2d(before, eps=EPS)
        self.fc = nn.Linear(before * 7 * 7, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim, eps=EPS)
        self.features.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))
