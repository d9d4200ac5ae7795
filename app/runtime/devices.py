"""Choose the device of this process, and check that the machine has the GPUs the run was planned for.

The launcher sets SNIPERFACE_DEVICES to the number of GPUs it planned for on this machine; 0 means the CPU. A command
run by hand, without that variable, uses what torch finds.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from app.errors import WrongUse

PLANNED = "SNIPERFACE_DEVICES"
DRIVER_FILE = Path("/proc/driver/nvidia/version")  # on Linux


def own_device() -> torch.device:
    """The GPU with this process's local rank, else the CPU."""
    if planned_gpus(os.environ) == 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def refuse_missing_gpus() -> None:
    """Raise WrongUse if torch finds fewer GPUs than the run was planned for, or fewer than it has processes here."""
    if planned_gpus(os.environ) == 0:
        return
    with warnings.catch_warnings(record=True) as heard:  # torch warns why it cannot use a driver
        warnings.simplefilter("always")
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    words = [str(each.message) for each in heard]
    fault = missing(os.environ, found, torch.__version__, torch.version.cuda, driver(), words[0] if words else "")
    if fault:
        raise WrongUse(fault)


def missing(
    environ: Mapping[str, str], found: int, version: str, cuda: str | None, driver_version: str | None, warning: str
) -> str | None:
    """One sentence on why `found` usable GPUs are too few; None if they are enough."""
    planned, processes = planned_gpus(environ), int(environ.get("LOCAL_WORLD_SIZE", "1"))
    if planned is not None and found < planned:
        facts = f"torch {version}, CUDA {cuda or 'none'}, NVIDIA driver {driver_version or 'none'}"
        why = f": {warning.split('. ')[0].split(' (Triggered')[0]}" if warning else ""
        return (
            f"this run was planned for {planned} GPUs here and torch can use {found} ({facts}){why}; "
            "give a machine whose driver fits, or device: cpu in the target's file to train on the CPU"
        )
    if found and processes > found:
        return (
            f"{processes} processes were started here and torch can use {found} GPUs; "
            f"give --nproc_per_node={found}, or set CUDA_VISIBLE_DEVICES to more of them"
        )
    return None


def planned_gpus(environ: Mapping[str, str]) -> int | None:
    """The number of GPUs the launcher planned for here; None for a command run by hand. Raises WrongUse."""
    text = environ.get(PLANNED, "")
    if not text:
        return None
    if not text.isdecimal():
        raise WrongUse(f"{PLANNED}={text} is not a number of GPUs; give one such as 2, 0 for the CPU, or leave it out")
    return int(text)


def driver() -> str | None:
    """The version of the NVIDIA driver; None if it is unknown."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER_FILE.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return found[0] if found else None
