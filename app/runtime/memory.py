"""Free memory of the device of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process can still use: on its GPU, or its share of the machine's free memory for a CPU.

    None if the operating system does not report it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return usable_bytes(free, torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return _free_of_machine(Path("/proc/meminfo"), Path("/sys/fs/cgroup"), processes)


def usable_bytes(driver_free: int, reserved: int, allocated: int) -> int:
    """The driver's free memory plus what PyTorch's allocator has reserved and does not use.

    After an epoch of training the allocator holds most of a GPU's memory. The driver counts it as used, though new
    tensors go there.
    """
    return driver_free + max(0, reserved - allocated)


@contextmanager
def emptied_cache(device: torch.device) -> Iterator[None]:
    """On a GPU, return the allocator's unused blocks to the driver before and after.

    Mining allocates few large blocks and training many of other sizes: each would fragment the other's memory.
    """
    release = torch.cuda.empty_cache if device.type == "cuda" else lambda: None
    release()
    try:
        yield
    finally:
        release()


def _free_of_machine(meminfo: Path, group: Path, processes: int) -> int | None:
    """This process's share of the free memory: of its container's or of the machine's, whichever is less."""
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit = group / "memory.max"
    if limit.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int((group / "memory.current").read_text()))
    return max(0, free) // processes
