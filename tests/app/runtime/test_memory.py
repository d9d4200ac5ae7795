"""Free memory: what a process can still use of a GPU or of its machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.runtime.memory import _free_of_machine, emptied_cache, free_bytes, usable_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("driver_free", "reserved", "allocated", "usable"),
    [
        (20 * GIB, 0, 0, 20 * GIB),  # nothing done yet
        (3 * GIB, 16 * GIB, 1 * GIB, 18 * GIB),  # after an epoch: the cache is free for mining
        (3 * GIB, 16 * GIB, 16 * GIB, 3 * GIB),  # all of it in use
        (0, 2 * GIB, GIB, GIB),
        (GIB, 0, GIB, GIB),  # two counters read in turn may disagree; the driver's number is the minimum
    ],
)
def test_memory_that_the_allocator_keeps_unused_counts_as_free(
    driver_free: int, reserved: int, allocated: int, usable: int
) -> None:
    assert usable_bytes(driver_free, reserved, allocated) == usable


@pytest.mark.parametrize(
    ("limit", "used", "processes", "free"),
    [("max", 0, 1, 8 * GIB), ("max", 0, 2, 4 * GIB), (6 * GIB, 2 * GIB, 1, 4 * GIB), (2 * GIB, 3 * GIB, 1, 0)],
)
def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, limit: int | str, used: int, processes: int, free: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    assert _free_of_machine(meminfo, tmp_path, processes) == free
    assert _free_of_machine(tmp_path / "none", tmp_path, processes) is None


def test_a_cpu_has_no_cache_to_empty() -> None:
    cpu = torch.device("cpu")
    with emptied_cache(cpu):
        free = free_bytes(cpu)
    assert free is None or 2**20 < free < 2**50
