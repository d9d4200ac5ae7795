"""The provider with pods that are real containers of our image: its SSH server, log, ports and network."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from deploy.providers.runpod import RunPodProvider
from deploy.shell import open_shell
from deploy.specs.machine import Machine, MachineSpec, node_name
from deploy.specs.names import project_word
from deploy.specs.settings import RunPod, Settings, Target
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.emulators.runpod_pods import LABEL, docker

pytestmark = pytest.mark.slow

NETWORK = f"sniperface-emulator-{os.getpid()}-"
GREETING = "import socket, sys; print(socket.create_connection((sys.argv[1], 22), 10).recv(99).decode())"


@pytest.fixture
def emulator(our_image: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    emulator = Emulator(pods="docker", image=our_image)
    monkeypatch.setenv("RUNPOD_API_BASE_URL", emulator.url)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    yield emulator
    emulator.close()
    assert containers(emulator) == []


def containers(emulator: Emulator) -> list[str]:
    """The ids of this emulator's containers that still exist."""
    listed = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL}").split()
    mine = {getattr(pod.machine, "id", "") for pod in [*emulator.account.pods.values(), *emulator.account.ended]}
    return [each for each in listed if each in mine]


def scanned(machine: Machine) -> set[str]:
    """The host keys that the machine's SSH server sends over the network."""
    assert machine.address
    argv = ["ssh-keyscan", "-T", "10", "-p", str(machine.address.port), machine.address.host]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return {line.split(" ", 1)[1].strip() for line in shown.splitlines() if not line.startswith("#")}


def says(settings: Settings, machine: Machine) -> str:
    shell = open_shell(machine, settings.notes)
    try:
        return shell.run(["sh", "-c", "echo $RUNPOD_POD_ID; id -un"]).text
    finally:
        shell.close()


@pytest.mark.parametrize("api", ["v2", "sdk"])
def test_a_pod_from_its_creation_to_its_end(emulator: Emulator, api: str, tmp_path: Path) -> None:
    options = RunPod(gpus=("NVIDIA RTX A4500",), image="me/sniperface:1", api=api, min_memory_gib=0.5, wait_min=2)
    settings = Settings(tmp_path, Target("runpod", "runpod", "/workspace/sniperface", options=options))
    provider = RunPodProvider(settings)
    family = f"sniperface-{project_word(tmp_path.name)}-runpod-"
    spec = MachineSpec(f"{family}r1", family, PurePosixPath("/workspace/sniperface"))

    machine = provider.acquire(spec)
    assert machine.address
    assert provider.acquire(spec) == machine
    assert set(machine.address.host_keys) == (scanned(machine) if api == "v2" else set())
    if api == "v2":  # without a host key, the shell would ask the user
        assert says(settings, machine) == f"{machine.id}\nroot\n"

    emulator.restart(spec.name)
    again = provider.find(spec.name)
    assert again
    assert again.address
    assert again.address.port != machine.address.port
    if api == "v2":
        assert set(again.address.host_keys) == scanned(again)
        assert says(settings, again) == f"{machine.id}\nroot\n"
        assert any(line.startswith("sniperface ready") for line in provider.log(again))

    provider.release(again)
    provider.release(again)
    assert provider.list() == []
    assert containers(emulator) == []
    assert breaches(emulator) == []


def test_a_cluster_from_its_creation_to_its_end(emulator: Emulator, tmp_path: Path) -> None:
    """Two machines, requested one after the other, reach each other in a separate network."""
    options = RunPod(gpus=("NVIDIA RTX A4500",), image="me/sniperface:1", min_memory_gib=0.5, wait_min=2)
    settings = Settings(tmp_path, Target("runpod", "runpod", "/workspace/sniperface", options=options))
    provider = RunPodProvider(settings)
    family = f"sniperface-{project_word(tmp_path.name)}-runpod-"
    root = PurePosixPath("/workspace/sniperface")
    specs = [MachineSpec(node_name(f"{family}r1", node), family, root, node, 2) for node in range(2)]

    machines = [provider.acquire(spec) for spec in specs]
    assert [machine.name for machine in machines] == [f"{family}r1", f"{family}r1-node1"]
    assert [provider.acquire(spec) for spec in specs] == machines
    assert [provider.find(spec.name) for spec in specs] == machines
    assert provider.list() == machines
    assert len(containers(emulator)) == 2
    for machine in machines:
        assert machine.address
        assert set(machine.address.host_keys) == scanned(machine)
    shells = [open_shell(machine, settings.notes) for machine in machines]
    try:
        addresses = [shell.run(["sh", "-c", "echo $NODE_ADDR"]).text.strip() for shell in shells]
        assert addresses[0] != addresses[1]
        for shell, rank, other in zip(shells, range(2), reversed(addresses), strict=True):
            told = shell.run(
                ["sh", "-c", "echo $NODE_RANK $NUM_NODES $MASTER_ADDR $RUNPOD_POD_ID; cat /proc/self/mounts"]
            )
            assert told.text.splitlines()[0] == f"{rank} 2 {addresses[0]} {machines[rank].id}"
            assert re.search(r" /dev/shm tmpfs \S*size=65536k", told.text)  # as RunPod documents it
            assert shell.run(["python3", "-c", GREETING, other]).text.startswith("SSH-2.0-")
    finally:
        for shell in shells:
            shell.close()

    provider.release(machines[1])
    provider.release(machines[0])
    assert provider.list() == []
    assert [provider.find(spec.name) for spec in specs] == [None, None]
    assert containers(emulator) == []
    assert docker("network", "ls", "--quiet", "--filter", f"name={NETWORK}{machines[0].group}") == ""
    assert breaches(emulator) == []
