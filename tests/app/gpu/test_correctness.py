"""The GPU computes what a CPU computes: each correctness check of benchmarks/gpu is a test."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.menu import CORRECTNESS
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.running import Check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run this on a machine with an NVIDIA card"),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work"), on_cpu=False)


@pytest.mark.parametrize("check", CORRECTNESS, ids=lambda check: check.name)
def test_the_gpu_agrees_with_a_cpu(check: Check, rig: Rig) -> None:
    for module in check.needs:
        pytest.importorskip(module, reason=f"needs a GPU machine with {module}: install it there")
    try:
        assert list(check.measure(rig))  # a check raises an error if the GPU is wrong
    finally:
        rig.clear()
