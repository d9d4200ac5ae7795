"""Set BN's running averages before training to statistics of real images instead of mean 0 and variance 1.

In eval mode a network normalises by these averages. With 0 and 1 it does not normalise, each convolution scales its
input up, and a deep network overflows: keys, mined embeddings and the first evaluation are not finite.

Letters: B batch, S side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

Norm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d
IMAGES = 128  # images for the first statistics
BATCH = 64


def norms_of(module: nn.Module) -> list[Norm]:
    """Return the BN layers of a module that keep running averages."""
    return [m for m in module.modules() if isinstance(m, Norm) and m.track_running_stats]


@torch.no_grad()
def calibrate(network: nn.Module, views: Iterable[Tensor], *, only: nn.Module | None = None) -> None:
    """Set the running averages of `network` to the mean statistics of these batches [B, 3, S, S].

    With `only`, a part of the network, the other BN layers use and keep their averages. Weights do not change.
    Everything runs in fp32, as activations of an untrained network exceed the range of 16 bits.
    """
    norms = norms_of(network if only is None else only)
    with _averaging(network, norms):
        for batch in views:
            with torch.autocast(batch.device.type, enabled=False):
                network(batch)


@contextmanager
def _averaging(network: nn.Module, norms: list[Norm]) -> Iterator[None]:
    """Let `norms` normalise by their batch and keep the plain mean over batches; all else is in eval mode."""
    training = {module: module.training for module in network.modules()}
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.num_batches_tracked = torch.zeros_like(norm.num_batches_tracked)
        norm.momentum = None  # selects torch's cumulative average
        norm.train()
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
        for module, mode in training.items():
            module.training = mode
