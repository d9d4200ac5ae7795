"""Emulate torch.cuda.make_graphed_callables on a CPU, as far as memory shows.

A graph reads and writes the addresses of its capture. So do these passes: the input is copied into one buffer, and the
outputs and gradients of each replay overwrite those of the one before. What the passes compute is computed anew. The
capture fails for what CUDA cannot capture: a wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from tests.app.shadow.test_step_budget import Budget


def make_graphed_callables(
    module: nn.Module, sample_args: tuple[Tensor, ...], num_warmup_iters: int = 3, allow_unused_input: bool = False
) -> nn.Module:
    """Replace `module.forward` in its present mode. The warm-up runs the passes, with every effect on buffers."""
    if torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled():
        raise RuntimeError("the autocast cache is not supported")
    run, mode = module.forward, module.training
    static = [arg.clone() for arg in sample_args]
    trained = tuple(p for p in module.parameters() if p.requires_grad)

    def forward() -> tuple[list[Tensor], Any]:
        with torch.enable_grad():
            return tree_flatten(run(*static))

    def backward(outputs: list[Tensor], grads: Any) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(outputs, trained, grads, allow_unused=allow_unused_input)

    for _ in range(num_warmup_iters):
        outputs, spec = forward()
        backward(outputs, [torch.ones_like(each) for each in outputs])
    with Budget() as budget:
        outputs, spec = forward()
        gradients = backward(outputs, [torch.ones_like(each) for each in outputs])
    if budget.waits:
        raise RuntimeError(f"operation not permitted when stream is capturing: {dict(budget.waits)}")
    results = [each.detach().clone() for each in outputs]
    written = [None if each is None else each.clone() for each in gradients]

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
            for into, given in zip(static, inputs, strict=False):
                into.copy_(given)
            ctx.outputs, _ = forward()
            for into, found in zip(results, ctx.outputs, strict=True):
                into.copy_(found.detach())
            return tuple(each.detach() for each in results)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            for into, found in zip(written, backward(ctx.outputs, grads), strict=True):
                if into is not None and found is not None:
                    into.copy_(found)
            return (*(None for _ in static), *(None if each is None else each.detach() for each in written))

    def replay(*args: Tensor) -> Any:
        return tree_unflatten(Graphed.apply(*args, *trained), spec) if module.training == mode else run(*args)

    module.forward = replay  # type: ignore[method-assign]
    return module
