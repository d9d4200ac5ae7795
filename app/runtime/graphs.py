"""Capture a network's forward and backward pass as CUDA graphs, so that the host launches each with one call.

Off unless `train.cuda_graphs=on`: no GPU has shown yet that captured passes are equal and faster. `python -m
benchmarks.gpu` measures both. The augmentation, the loss and the optimizer are not captured.

Letters: B batch, S side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from app.config.schema import Config
from app.errors import WrongUse
from app.runtime.dist import World

Make = Callable[..., Any]  # torch.cuda.make_graphed_callables
WARM_UP = 3  # passes before the capture, in which cuDNN chooses its algorithms


def refuse_unfit(config: Config, here: World) -> None:
    """Raise WrongUse if `train.cuda_graphs` is on and this run cannot use it."""
    reason = unfit(config, here.size, here.device.type) if is_on(config) else None
    if reason:
        raise WrongUse(f"train.cuda_graphs=on needs {reason}, or leave train.cuda_graphs out")


def is_on(config: Config) -> bool:
    """Whether passes are captured. `auto` is off until a GPU has shown that it is right and pays."""
    return config.train.cuda_graphs == "on"


def unfit(config: Config, processes: int, device_type: str) -> str | None:
    """Return what a run must have to use captured passes, and a value that works; None if it has everything."""
    train, backbone = config.train, config.backbone
    if device_type != "cuda":
        return "a GPU; give train.cuda_graphs=off"
    if processes > 1:  # gradients would meet only after the whole backward pass, in hooks that no graph has
        return "a single process; give --nproc_per_node=1"
    if train.compile:
        return "a network that is not compiled; give train.compile=false"
    if train.batch.grad_accum_steps > 1:  # a replay writes gradients where those of the micro-batch before still are
        return "one batch per step; give train.batch.grad_accum_steps=1"
    if backbone.dropout or backbone.drop_path or backbone.mask_ratio:  # a graph replays the numbers of its capture
        return "a network without random numbers; give 0 for backbone.dropout, drop_path and mask_ratio"
    if backbone.gradient_checkpointing:
        return "activations that are kept; give backbone.gradient_checkpointing=false"
    return None


class Captured(nn.Module):
    """The network with captured passes, for batches of one shape. The network itself stays as it is.

    A wrapper, because torch replaces the `forward` of what it captures: in a copy of the network, such as mining's, it
    would still run the original's graph.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def captured(network: nn.Module, images: Tensor, make: Make | None = None) -> Captured:
    """Capture the passes of `network`, in training mode, for batches like `images` [B, 3, S, S].

    BN's averages are those of before, though the passes of the warm-up change them. Call it inside the autocast of the
    step, but without its cache. The outputs are overwritten by the next call.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    wrapper = Captured(network.train())
    (make or torch.cuda.make_graphed_callables)(wrapper, (images,), num_warmup_iters=WARM_UP, allow_unused_input=True)
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
    return wrapper
