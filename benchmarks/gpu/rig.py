"""Shared by all checks: the device, sizes for it, synthetic images, timing."""

from __future__ import annotations

import gc
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Rig:
    """The machine under test: results go to `out`, everything else to `work`. `on_cpu` makes everything small."""

    def __init__(self, out: Path, work: Path, *, on_cpu: bool) -> None:
        if not on_cpu and not torch.cuda.is_available():
            raise SystemExit("torch finds no GPU here; give --cpu to see whether the checks run")
        self.out, self.work, self.on_cpu = out, work, on_cpu
        self.device = torch.device("cpu") if on_cpu else torch.device("cuda", 0)
        if not on_cpu:
            torch.cuda.set_device(self.device)

    @property
    def patience(self) -> int:
        """Factor on a check's budget: budgets are for GPUs."""
        return 10 if self.on_cpu else 1

    @property
    def card(self) -> str:
        """The card's name in a form for file names, such as nvidia-rtx-a4500."""
        name = "cpu" if self.on_cpu else torch.cuda.get_device_name(self.device)
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    def machine(self) -> dict[str, Any]:
        found: dict[str, Any] = {"card": self.card, "torch": torch.__version__, "python": platform.python_version()}
        if self.on_cpu:
            return found
        card = torch.cuda.get_device_properties(self.device)
        return {
            **found,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "gib": round(card.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": driver_version(),
        }

    def sized(self, on_gpu: int, on_cpu: int) -> int:
        return on_cpu if self.on_cpu else on_gpu

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """Synthetic faces [N, 112, 112, 3]: a coarse pattern per person, with noise per image."""
        rng = np.random.default_rng(0)
        people = self.sized(512, 24)
        coarse = rng.integers(30, 225, (people, 1, 7, 7, 3)).repeat(16, axis=2).repeat(16, axis=3)
        noise = rng.integers(-25, 25, (people, 8, 112, 112, 3))
        return np.clip(coarse + noise, 0, 255).astype(np.uint8).reshape(-1, 112, 112, 3)

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        return (np.arange(len(self.images)) // 8).astype(np.int32)

    @cached_property
    def data_path(self) -> Path:
        """The same images as files, for commands."""
        folder = self.work / "data"
        folder.mkdir(exist_ok=True)
        np.save(folder / "images.npy", self.images)
        np.save(folder / "labels.npy", self.labels)
        return folder / "images.npy"

    def autocast(self, precision: str) -> torch.autocast:
        half = PRECISIONS[precision]
        return torch.autocast(self.device.type, half or torch.bfloat16, enabled=half is not None)

    def synchronize(self) -> None:
        if not self.on_cpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int = 10, warm_up: int = 3) -> float:
        """Return the median time of a call, including the device's work."""
        rounds, warm_up = self.sized(rounds, 1), self.sized(warm_up, 1)
        times = []
        for number in range(warm_up + rounds):
            self.synchronize()
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started if number >= warm_up else 0.0)
        return statistics.median(times[warm_up:])

    def clear(self) -> None:
        """Free memory before the next check."""
        gc.collect()
        if not self.on_cpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


@contextmanager
def as_in_training(rig: Rig) -> Iterator[None]:
    """On a GPU, allow TF32 and let cuDNN choose its algorithms, as app/set_up.py does."""
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    settings = cudnn.allow_tf32, cudnn.benchmark
    if not rig.on_cpu:
        torch.set_float32_matmul_precision("high")
        cudnn.allow_tf32 = cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32, cudnn.benchmark = settings


def driver_version() -> str | None:
    """Return the first card's driver version; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip() or None


def distance(found: Tensor, right: Tensor) -> float:
    """Return the relative distance of a tensor to the right one, in float64 on the CPU."""
    found, right = found.detach().double().cpu(), right.detach().double().cpu()
    return float((found - right).norm() / right.norm().clamp(min=1e-30))
