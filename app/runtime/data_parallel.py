"""Gradients of a module, averaged over ranks by torch's DistributedDataParallel."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from app.runtime.dist import World


def data_parallel(module: nn.Module, here: World) -> nn.Module:
    """Average the module's gradients over ranks; with one rank, return it unchanged. The recipe averages buffers."""
    if here.size == 1:
        return module
    devices = [here.device.index] if here.device.type == "cuda" else None
    wrapper = nn.parallel.DistributedDataParallel
    # torch renamed this argument after 2.11.
    names = inspect.signature(wrapper.__init__).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return wrapper(module, device_ids=devices, gradient_as_bucket_view=True, **{sync: False})


def gradients_meet(module: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Context of a forward pass: whether its backward pass averages gradients over ranks.

    Only the last micro-batch of an update needs it; the others just accumulate.
    """
    if now or not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return module.no_sync()
