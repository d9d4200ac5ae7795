"""Resolve `train.precision`, once for all ranks, and compute exactly where 16 bits are too few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from app.runtime import dist
from app.runtime.dist import World

AUTO = "auto"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16_FROM = (8, 0)  # compute capability: older GPUs emulate bf16, slower than fp32

Capability = tuple[int, int]


def resolve(wish: str, capabilities: Sequence[Capability]) -> str:
    """Return fp32, fp16 or bf16. `capabilities`: those of all ranks' GPUs; empty for a run on CPUs.

    deploy/specs/memory.py has the same rule for the plan; a test compares the two.
    """
    if wish != AUTO:
        return wish
    if not capabilities:
        return "fp32"
    return "bf16" if min(capabilities) >= BF16_FROM else "fp16"


def settle(wish: str, here: World) -> str:
    """Resolve alike on all ranks: the oldest of their GPUs decides. All ranks must call it."""
    return resolve(wish, [each for each in dist.from_all(_capability(here.device), here) if each is not None])


def dtype_of(wish: str, device: torch.device) -> torch.dtype:
    """Resolve `wish` for one device, outside a run."""
    capability = _capability(device)
    return DTYPES[resolve(wish, [] if capability is None else [capability])]


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in full fp32 inside the block: no autocast and no TF32."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _capability(device: torch.device) -> Capability | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None
