"""Emulate a GPU's tensor cores on a CPU: multiply 16-bit numbers, sum in 32 bits, round the result to 16 bits.

A CPU without 16-bit units needs ten times as long for a 16-bit convolution as for one in fp32. So 16-bit products run
in fp32, and the result is rounded as tensor cores round it: an overflow becomes inf, small gradients become 0. All
other operations run in their own type. On a CPU the backward pass runs in the same thread, so it is emulated too.

    python -m tests.app.shadow.tensor_cores key=value …      app.train with the emulation, also under torchrun
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {
    aten.addmm.default,
    aten.baddbmm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.mm.default,
}


class TensorCores(TorchDispatchMode):
    """While active, runs 16-bit products in fp32 and rounds the results."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing compiles here. To forbid it in each operation takes longer than most operations."""
        return False

    def __torch_dispatch__(
        self, op: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        half = half_of(args) if op in PRODUCTS else None
        if half is None:
            return op(*args, **(kwargs or {}))
        made = op(*(arg.float() if isinstance(arg, Tensor) else arg for arg in args), **(kwargs or {}))
        if isinstance(made, Tensor):
            return made.to(half)
        return tuple(None if each is None else each.to(half) for each in made)


def cores_of(precision: str) -> contextlib.AbstractContextManager[Any]:
    """The emulation for runs in this precision: none where no number has 16 bits."""
    return contextlib.nullcontext() if precision == "fp32" else TensorCores()


def half_of(args: tuple[Any, ...]) -> torch.dtype | None:
    """The 16-bit type of a product's factors; None for one in 32 or 64 bits."""
    found = [arg.dtype for arg in args if isinstance(arg, Tensor)]
    return next((dtype for dtype in found if dtype in (torch.float16, torch.bfloat16)), None)


if __name__ == "__main__":
    from app import train
    from app.runtime import dist

    with TensorCores():
        code = train.main(sys.argv[1:])
    dist.leave(code)
