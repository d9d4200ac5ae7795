"""The optimizer of a run: built with all the state that its first step would make.

torch makes SGD's momentum buffers in the first step. The fused kernel makes them from uninitialised memory, and leaves
them so when the fp16 scaler skips that step; the next step writes them into the weights. A buffer of zeros is
numerically the same first step: 0 * momentum + gradient.
"""

from __future__ import annotations

from typing import Any

import torch

from app.config.schema import OptimizerConfig


def build_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The configured optimizer over parameter groups, ready for a first step that may be skipped."""
    rates = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}  # one pass over the weights
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **rates)
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **rates)
    fill_momentum(optimizer)
    return optimizer


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD with momentum a buffer of zeros for each parameter that has none."""
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for p in group["params"]:
            if optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)


def take_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Continue with a saved state of the same kind of optimizer, and with the options that this one was built with."""
    optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    fill_momentum(optimizer)  # a checkpoint of momentum 0, or of an older version, may have none
