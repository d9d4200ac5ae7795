"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): the memory of activations for a second forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`work` of `block` on x, whose inner tensors are not kept while training but computed again for the gradients."""
    if not (block.training and torch.is_grad_enabled()):
        return work(x)
    if torch.compiler.is_compiling():  # the compiler knows what was written to BN's averages, and does it once
        return checkpoint(work, x, use_reentrant=False)
    return checkpoint(work, x, use_reentrant=False, context_fn=lambda: (nullcontext(), averages_at_rest(block)))


@contextmanager
def averages_at_rest(block: nn.Module) -> Iterator[None]:
    """BN uses the batch as in training, but its running averages and counters stay: they have met this batch."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
