"""Find values that are not finite, by name, and the exception for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from app.errors import Failed, WrongUse
from app.runtime.dist import World, any_rank


class NotFinite(Failed):
    """Training diverged, or weights hold NaN or infinity. Earlier checkpoints are good."""


def listed(module: nn.Module, attribute: str) -> set[str]:
    """Names, as in the module's state_dict, that its submodules list in a class attribute, a tuple.

    `of_data` lists tensors with an entry for each image, by row number; `may_hold_nan` those that hold NaN on purpose.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name in getattr(part, attribute, ())
    }


def first_fault(content: Any, spared: Collection[str] = (), name: str = "") -> str | None:
    """Dotted name of the first tensor or number in nested dicts and lists that is not finite; None if all are.

    Skips the names in `spared`.
    """
    if name in spared:
        return None
    if isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        faults = (first_fault(value, spared, f"{name}.{key}" if name else str(key)) for key, value in items)
        return next((fault for fault in faults if fault is not None), None)
    if isinstance(content, Tensor):
        return None if is_finite(content) else name
    return name if isinstance(content, float) and not math.isfinite(content) else None


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, greatest = torch.aminmax(tensor.detach())  # one pass without a copy; propagates NaN
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


@contextmanager
def noticed_together(here: World) -> Iterator[None]:
    """If one rank raises NotFinite inside, raise it on all. That rank must not miss a collective inside."""
    fault: NotFinite | None = None
    refusal: WrongUse | None = None
    try:
        yield
    except NotFinite as error:
        fault = error
    except WrongUse as error:
        refusal = error
    if any_rank(fault is not None, here):
        raise fault or NotFinite("another process found values that are not finite")
    if refusal is not None:
        raise refusal
