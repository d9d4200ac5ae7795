"""Build the optimizer of a run, with the state that its first step would create, and clip its gradients.

torch creates SGD's momentum buffers in the first step. The fused kernel leaves them uninitialised if the fp16 scaler
skips that step, and the next step writes them into the weights. A buffer of zeros gives the same first step:
0 * momentum + gradient.

torch hides methods of its optimizers from its compiler, and loads the compiler for that. This takes as long as loading
torch, in each process, and no optimizer is compiled here: so the methods run without these wrappers.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from app.config.schema import OptimizerConfig


def unhidden(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return the class with methods that do not load torch's compiler; they do the same to the bit."""
    hidden = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in hidden}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(methods["step"])})


def build_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the configured optimizer over parameter groups; its first step may be skipped safely."""
    rates = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}  # one pass over the weights
    if config.name == "adamw":
        return unhidden(torch.optim.AdamW)(groups, **rates)
    optimizer = unhidden(torch.optim.SGD)(groups, momentum=config.momentum, nesterov=config.nesterov, **rates)
    fill_momentum(optimizer)
    return optimizer


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """With SGD and momentum, create a zero buffer for each parameter without one."""
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for p in group["params"]:
            if optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
    """Scale the gradients of all parameters to a common L2 norm of at most `limit`. Returns the norm before that."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.nn.utils.clip_grad_norm_(trained, limit)


def take_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the saved state of an optimizer of the same kind, but keep the options of this one.

    Moments get the memory layout of their weights, as fused optimizers read both in the order of memory. The saved run
    may have had another one: see `train.channels_last`.
    """
    optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    for p, state in optimizer.state.items():
        for name, moment in state.items():
            if isinstance(moment, Tensor) and moment.shape == p.shape and moment.stride() != p.stride():
                state[name] = torch.empty_like(p, dtype=moment.dtype).copy_(moment)
    fill_momentum(optimizer)  # a checkpoint with momentum 0, or of an older version, may lack buffers
