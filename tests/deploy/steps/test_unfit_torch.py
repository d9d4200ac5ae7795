"""A machine whose new environment cannot use its GPUs is released, and the next candidate is tried."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.errors import NoMachine
from deploy.runs.session import Prepared, Reach
from deploy.specs.machine import Machine
from tests.deploy.support.pods import PATIENT, ProcessPod
from tests.support.emulators.rig import Rig, rig

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: the pod's programs start with /bin/sh")
SMI = "#!/bin/sh\necho '0, GPU-1, NVIDIA RTX A4500, 580.65.06'\n"
CRASHES = "#!/bin/sh\necho 'Illegal instruction' >&2\nexit 132\n"
NO_GPU = """#!/bin/sh
echo '{"torch": "2.13", "cuda": "13.0", "driver": "580", "listed": 1, "visible": null, "gpus": [],
 "why": "CUDA error 802"}'
"""
WORKS = """#!/bin/sh
echo '{"torch": "2.13", "cuda": "13.0", "driver": "580", "listed": 1, "visible": null, "why": null,
 "gpus": [{"name": "NVIDIA A40", "capability": [8, 6], "memory_bytes": 48000000000}]}'
"""


class Pods:
    """Pods whose new environments have the given interpreters, one after the other."""

    def __init__(self, folder: Path, interpreters: list[str]) -> None:
        self.folder = folder
        self.interpreters = interpreters
        self.made: list[ProcessPod] = []

    def __call__(self, pod: Any) -> ProcessPod:
        machine = ProcessPod(pod, self.folder, "http://127.0.0.1:9")
        programs = {"nvidia-smi": SMI, "torch-python": self.interpreters[len(self.made)]}
        for name, text in programs.items():
            (machine.bin / name).write_text(text)
            (machine.bin / name).chmod(0o755)
        self.made.append(machine)
        return machine

    def prepare(self, machine: Machine) -> Prepared:
        """Stand in for minutes of pip: the environment is the newest pod's interpreter."""
        python = str(self.made[-1].bin / "torch-python")
        return dataclasses.replace(machine, python=python), PurePosixPath("/code")


@pytest.fixture
def pods(tmp_path: Path) -> Pods:
    return Pods(tmp_path / "pods", [CRASHES, NO_GPU, WORKS])


@pytest.fixture
def stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pods: Pods) -> Iterator[Rig]:
    for each in rig("v2", tmp_path, monkeypatch, pods=pods):
        yield each.with_limits(**PATIENT)


def reach(stock: Rig, pods: Pods, **options: Any) -> Reach:
    provider = stock.provider(image=None, **options)
    target = dataclasses.replace(provider.settings.target, root=str(stock.project / "there"))
    provider.settings = dataclasses.replace(provider.settings, target=target)
    at = Reach(provider.settings)
    at.provider, at.prepare = provider, pods.prepare
    return at


def test_torch_that_fails_on_a_host_is_tried_on_the_next(stock: Rig, pods: Pods) -> None:
    """One crashes at import, one sees no GPU, the third works. Its environment is not made again."""
    with reach(stock, pods, data_centers=("EU-RO-1", "US-KS-2", "EU-SE-1")) as at:
        machine = at.acquire(stock.spec(), stock.said.append)
        assert len(pods.made) == 3
        assert stock.emulator.names == [machine.name]
        assert at.devices[machine.name].gpus[0].name == "NVIDIA A40"
        assert at.prepared[machine.name][0].python == str(pods.made[2].bin / "torch-python")
    told = "\n".join(stock.said)
    assert "could not detect which GPUs it can use" in told
    assert "CUDA error 802" in told


def test_if_torch_fails_everywhere_nothing_is_left(stock: Rig, pods: Pods) -> None:
    at = reach(stock, pods, gpus=("NVIDIA A40",), data_centers=("EU-SE-1", "US-KS-2"))
    with at, pytest.raises(NoMachine) as caught:
        at.acquire(stock.spec(), stock.said.append)
    assert (len(pods.made), stock.emulator.names) == (2, [])
    assert any("CUDA error 802" in line for line in caught.value.evidence)
