"""Running mean of a network's weights: MoCo's momentum encoder, and optionally what the supervised recipe evaluates."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(mean: nn.Module, network: nn.Module, share: Tensor, taken: Tensor) -> None:
    """Move weights and BN averages of `mean` by `share` (0 to 1) towards those of `network`; copy counters.

    If `taken` is 0 instead of 1 nothing changes. Both numbers are tensors on the device: the host need not read them.
    """
    pairs = list(zip(_tensors(mean), _tensors(network), strict=True))
    for is_float, part in ((True, share * taken), (False, taken.long())):
        mine = [m for m, _ in pairs if m.is_floating_point() == is_float]
        if mine:
            apart = torch._foreach_sub([t.detach() for _, t in pairs if t.is_floating_point() == is_float], mine)
            torch._foreach_mul_(apart, part)
            torch._foreach_add_(mine, apart)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class Average(nn.Module):
    """A copy of a network that follows it and is never trained by gradients. It counts its steps.

    Early on, the mean would be mostly the untrained start. So the momentum begins low and rises to its value
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

    def follow(self, network: nn.Module, taken: Tensor) -> None:
        """Move towards `network`, if its step was `taken` (1 or 0, on the device)."""
        self.steps += taken.long()
        momentum = ((1 + self.steps) / (10 + self.steps)).clamp(max=self.momentum)
        follow(self.network, network, 1 - momentum, taken)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
