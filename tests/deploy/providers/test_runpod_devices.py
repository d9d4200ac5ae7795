"""Hosts that cannot run our image are not requested, or released as soon as that shows; the next one is tried."""

from __future__ import annotations

import json

import pytest

from deploy.errors import CannotTrain, NoMachine
from deploy.providers import image
from deploy.specs.machine import Machine
from tests.deploy.conftest import SOURCE
from tests.support.emulators.rig import Rig, of


def with_our_image(rig: Rig) -> None:
    (rig.project / "Dockerfile").write_bytes((SOURCE / "Dockerfile").read_bytes())


class FirstCannotTrain:
    """A check of a machine's GPUs that fails for the first `times` machines: torch cannot use their driver."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.asked: list[Machine] = []

    def __call__(self, machine: Machine) -> None:
        self.asked.append(machine)
        if len(self.asked) <= self.times:
            raise CannotTrain("1 GPU is paid for and torch can use 0 (NVIDIA driver 550.54.14)")


def test_the_cuda_of_our_image_is_that_of_the_torch_in_it() -> None:
    """A host's driver must support the CUDA version that is installed in the image."""
    lines = (SOURCE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    [runtime] = [line.partition("==")[2] for line in lines if line.startswith("nvidia-cuda-runtime==")]
    assert image.cuda(SOURCE) == ".".join(runtime.split(".")[:2]) == "13.0"


def test_runpod_is_asked_for_the_cuda_of_the_image_by_itself(both: Rig) -> None:
    with_our_image(both)
    assert of(both, both.acquire().name).cuda == "13.0"


def test_without_our_image_nothing_is_asked_for(v2: Rig) -> None:
    assert of(v2, v2.acquire().name).cuda == "12.8"


def test_the_targets_own_floor_wins(v2: Rig) -> None:
    with_our_image(v2)
    assert of(v2, v2.acquire(min_cuda="12.4").name).cuda == "12.8"


def test_a_host_below_the_floor_is_given_back_at_once(v2: Rig) -> None:
    """The API may place a pod below the floor. The answer to the creation shows it, and the pod is released."""
    with_our_image(v2)
    v2.emulator.next_pod(cuda="12.8")
    began = v2.clock.time()
    machine = v2.acquire()
    assert of(v2, machine.name).cuda == "13.0"
    assert v2.creations == 2
    assert v2.emulator.names == [machine.name]
    assert v2.clock.time() - began < 60
    assert any("its driver supports CUDA 12.8 at most, less than min_cuda: 13.0" in line for line in v2.said)


def test_a_machine_that_cannot_train_is_given_back_and_the_next_one_tried(both: Rig) -> None:
    provider = both.provider()
    provider.check = check = FirstCannotTrain(1)
    machine = provider.acquire(both.spec())
    assert [each.id for each in check.asked] != [machine.id, machine.id]
    assert (check.asked[0].gpus, check.asked[-1].id) == (1, machine.id)
    assert both.emulator.names == [machine.name]
    assert any("releasing " in line and ": 1 GPU is paid for and torch can use 0" in line for line in both.said)


def test_when_no_machine_can_train_the_reason_is_told_and_nothing_bills(v2: Rig) -> None:
    provider = v2.provider()
    provider.check = FirstCannotTrain(99)
    with pytest.raises(NoMachine) as caught:
        provider.acquire(v2.spec())
    assert any("torch can use 0 (NVIDIA driver 550.54.14)" in line for line in caught.value.evidence)
    assert (v2.emulator.names, v2.intents()) == ([], [])


def test_each_machine_of_a_cluster_is_asked_and_a_bad_one_gives_all_back(v2: Rig) -> None:
    """A cluster cannot be requested by CUDA version, so each of its machines is checked."""
    provider = v2.provider()
    provider.check = check = FirstCannotTrain(1)
    machine = provider.acquire(v2.spec("r1", 0, 2))
    assert len(check.asked) == 3  # one of the first cluster, both of the second
    assert {each.group for each in check.asked[1:]} == {machine.group} != {check.asked[0].group}
    assert len(v2.emulator.account.clusters) == 1


def test_a_cluster_below_the_floor_is_given_back(v2: Rig) -> None:
    with_our_image(v2)
    for gpu in v2.emulator.account.gpus.values():
        gpu.hosts = ("12.8",)
    with pytest.raises(NoMachine) as caught:
        v2.acquire_all()
    assert any("CUDA 12.8 at most" in line for line in caught.value.evidence)
    assert v2.emulator.account.clusters == {}


def test_the_catalogue_tells_the_memory_of_the_first_candidate(both: Rig) -> None:
    """The plan needs the memory before anything is requested."""
    card = both.provider().card()
    assert card is not None
    assert (card.name, card.count, card.memory_bytes) == ("NVIDIA RTX A4500", 1, 20 << 30)
    assert both.creations == 0
    bodies = [each.body for each in both.emulator.exchanges if each.what == "POST /v2/pods"]
    assert [json.loads(body) for body in bodies] == []
