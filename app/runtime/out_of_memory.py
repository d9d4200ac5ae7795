"""Out of memory: report a step that does not fit in one sentence with a batch size to try, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from app.config import Config

# torch has an exception class for its own GPU allocator only; all others raise RuntimeError with these texts.
WORDS = (
    "DefaultCPUAllocator:",  # torch's on a CPU; the rest depends on the operating system
    "ALLOC_FAILED",  # the status of cuBLAS, cuDNN, cuFFT and cuSOLVER
    "out of memory",  # CUDA's own, as in the errors of NCCL
)
# cuDNN's answer where no workspace can be allocated, and where it has no algorithm: torch drops the reason.
NO_ENGINE = "unable to find an engine to execute this computation"


class OutOfMemory(Exception):
    """A step ran out of memory. Earlier checkpoints are good."""


@contextmanager
def step_fits(config: Config, device: torch.device) -> Iterator[None]:
    """Raise OutOfMemory if an allocation inside fails."""
    try:
        yield
    except RuntimeError as error:
        no_engine = NO_ENGINE in str(error)
        if not (isinstance(error, torch.OutOfMemoryError) or no_engine or any(words in str(error) for words in WORDS)):
            raise
        raise OutOfMemory(advice(config, device, sure=not no_engine)) from None


def advice(config: Config, device: torch.device, *, sure: bool = True) -> str:
    """One sentence with a batch that needs less memory; not `sure`: memory is the likely reason."""
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
    step = f"a step with train.batch.size={batch.size} in {config.train.precision}"
    what = f"{step} does not fit into {where}"
    if not sure:
        what = f"cuDNN has no algorithm for {step}, most likely because none fits into {where}"
    return f"{what}; give {smaller}backbone.gradient_checkpointing=true"
