"""A running mean of a network's weights: the momentum encoder of MoCo, and what the supervised recipe may evaluate."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(mean: nn.Module, network: nn.Module, momentum: float) -> None:
    """Weights and BN averages of `mean` move by 1 - momentum towards those of `network`; counters are copied."""
    mine = [*mean.parameters(), *mean.buffers()]
    theirs = [*network.parameters(), *network.buffers()]
    floats = [(m, t) for m, t in zip(mine, theirs, strict=True) if m.is_floating_point()]
    torch._foreach_lerp_([m for m, _ in floats], [t.detach() for _, t in floats], 1 - momentum)
    for m, t in zip(mine, theirs, strict=True):
        if not m.is_floating_point():
            m.copy_(t)


class Average(nn.Module):
    """A copy of a network that is never trained by gradients, only follows. It counts its steps.

    The mean of the first steps would be mostly the untrained start, so the momentum begins low and rises to its value
    as (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, momentum: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.momentum = momentum
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.eval()

    def train(self, mode: bool = True) -> Average:  # noqa: ARG002 - nn.Module's signature
        return super().train(False)

    def follow(self, network: nn.Module) -> None:
        self.steps += 1
        steps = int(self.steps)
        follow(self.network, network, min(self.momentum, (1 + steps) / (10 + steps)))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
