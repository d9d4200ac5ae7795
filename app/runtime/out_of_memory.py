"""Out of memory: report a step that does not fit in one sentence with a batch size to try, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from app.config import Config

# torch has an exception class for GPU memory only; its CPU allocator and cuBLAS raise RuntimeError with these texts.
WORDS = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class OutOfMemory(Exception):
    """A step ran out of memory. Earlier checkpoints are good."""


@contextmanager
def step_fits(config: Config, device: torch.device) -> Iterator[None]:
    """Raise OutOfMemory if an allocation inside fails."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in WORDS)):
            raise
        raise OutOfMemory(advice(config, device)) from None


def advice(config: Config, device: torch.device) -> str:
    batch = config.train.batch
    where = "memory"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        where = f"the {properties.total_memory / 2**30:.1f} GiB of {properties.name}"
    part = next((part for part in range(2, batch.size // 2 + 1) if batch.size % part == 0), None)
    smaller = (
        f"train.batch.size={batch.size // part} train.batch.grad_accum_steps={batch.grad_accum_steps * part}, "
        "the same global batch, or "
        if part
        else ""
    )
    return (
        f"a step with train.batch.size={batch.size} in {config.train.precision} does not fit into {where}; "
        f"give {smaller}backbone.gradient_checkpointing=true"
    )
