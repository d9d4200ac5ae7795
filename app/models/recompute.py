"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): less memory for activations, one more forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply `work` of `block` to x; in training its inner tensors are recomputed for the gradients, not kept."""
    if not (block.training and torch.is_grad_enabled()):
        return work(x)
    if torch.compiler.is_compiling():  # the compiler sees the writes to BN's averages and makes them once
        return checkpoint(work, x, use_reentrant=False)
    return checkpoint(work, x, use_reentrant=False, context_fn=lambda: (nullcontext(), averages_at_rest(block)))


@contextmanager
def averages_at_rest(block: nn.Module) -> Iterator[None]:
    """Freeze BN's running averages and counters, which include this batch already; BN normalises by the batch."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
