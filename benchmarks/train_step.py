"""Images a second in a training step of IResNet18 on this CPU: forward, backward, clipping and optimizer, in 32 bits.

Ours is the network, memory layout and optimizer of app.train's defaults. The peer is the network as arcface_torch
builds it, of torch's own layers in torch's default memory layout, with torch's SGD. Names of weights agree, so both
start from the same weights. Both run in one process on one core, in turn, and the time is that of the core: other load
on the machine affects both alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from _claims import Claim, core_seconds, in_turn, quick, report

from app.config import load
from app.models import build_backbone
from app.runtime.optimizer import build_optimizer

SIZE = 112
EPS = 1e-5
CLIP = 5.0  # the norm of gradients, as published


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
    """IResNet18 of torch's layers: [B, 3, 112, 112] -> [B, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=EPS)
        self.prelu = nn.PReLU(64)
        sizes = [(64, 64), (64, 128), (128, 256), (256, 512)]
        for number, (before, after) in enumerate(sizes, 1):
            setattr(self, f"layer{number}", nn.Sequential(Block(before, after, 2), Block(after, after, 1)))
        self.bn2 = nn.BatchNorm2d(512, eps=EPS)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512, eps=EPS)
        self.features.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))


def stepper(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> Callable[[], None]:
    def step() -> None:
        network(images).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> int:
    is_quick = quick()
    rounds = 2 if is_quick else 9
    torch.set_num_threads(1)
    claims = [claim(batch, rounds) for batch in ((4,) if is_quick else (8, 16))]
    return report("train_step", claims, is_quick=is_quick)


def claim(batch: int, rounds: int) -> Claim:
    torch.manual_seed(0)
    config = load(["backbone=iresnet18"])
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    images = torch.randn(batch, 3, SIZE, SIZE)
    network = build_backbone(config.backbone).train()
    plain = Peer().train()
    plain.load_state_dict(network.state_dict())
    network = network.to(memory_format=layout)
    o = config.train.optimizer
    rates = {"lr": 1e-3, "momentum": o.momentum, "nesterov": o.nesterov, "weight_decay": o.weight_decay}
    theirs = torch.optim.SGD(plain.parameters(), **rates)
    mine = build_optimizer(o, [{"params": list(network.parameters()), "lr": 1e-3}])
    ours, peer = stepper(network, mine, images.to(memory_format=layout)), stepper(plain, theirs, images)
    fast, slow, ratio = in_turn(lambda: batch / core_seconds(ours), lambda: batch / core_seconds(peer), rounds)
    return Claim(f"training step of IResNet18, batch {batch}, one core", fast, slow, "images/s", ratio, 1.1)


if __name__ == "__main__":
    raise SystemExit(main())
