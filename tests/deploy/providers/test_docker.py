"""A container of our image as a machine: acquired, found, listed, reused and released. Real engine, real sshd."""

from __future__ import annotations

import contextlib
import shutil
import socket
import socketserver
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

import pytest

from deploy.errors import NoMachine, WrongUse, command
from deploy.providers import image
from deploy.providers.docker import DockerProvider, _log
from deploy.specs.machine import Machine, MachineSpec
from deploy.specs.settings import Docker, Settings, Target
from tests.support import images
from tests.support.ports import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def provider(tmp_path: Path, our_image: str) -> Iterator[DockerProvider]:
    """A provider for a separate project, so that no other test shares its containers."""
    project = tmp_path / f"p{uuid.uuid4().hex[:8]}"
    project.mkdir()
    made = DockerProvider(settings(project, image=our_image))
    yield made
    for machine in made.list():
        made.release(machine)
    made.client.close()


def settings(project: Path, **options: object) -> Settings:
    root = "/workspace/sniperface"
    return Settings(project, Target("docker", "docker", root=root, options=Docker(**options)))  # type: ignore[arg-type]


def spec(provider: DockerProvider, run: str) -> MachineSpec:
    family = f"sniperface-{provider.settings.project.name}-docker"
    return MachineSpec(f"{family}-{run}", family, PurePosixPath("/workspace/sniperface"))


def ssh(machine: Machine, command: str, folder: Path) -> str:
    """Run a command through OpenSSH, which accepts only the host keys that the engine reported."""
    address = machine.address
    assert address is not None
    assert address.key is not None
    known = folder / "known_hosts"
    known.write_text("".join(f"[{address.host}]:{address.port} {key}\n" for key in address.host_keys))
    argv = ["ssh", "-i", address.key, "-p", str(address.port), "-o", "StrictHostKeyChecking=yes"]
    argv += ["-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
    argv += [f"{address.user}@{address.host}", command]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def test_a_machine_from_nothing_to_nothing(provider: DockerProvider, tmp_path: Path) -> None:
    assert provider.list() == []
    assert provider.find("sniperface-nobody") is None

    machine = provider.acquire(spec(provider, "r1"))
    assert machine.address is not None
    assert machine.address.host == "127.0.0.1"
    assert len(machine.address.host_keys) == 1
    assert ssh(machine, "which python; stat -f -c %b*%S /dev/shm", tmp_path) == f"{machine.python}\n524288*4096"
    assert provider.find(machine.name) == machine
    assert provider.list() == [machine]

    again = provider.acquire(spec(provider, "r2"))
    assert again == machine

    provider.release(machine)
    provider.release(machine)
    assert provider.find(machine.name) is None
    assert provider.list() == []


def test_a_stopped_one_is_started_again_with_its_files_and_its_host_key(
    provider: DockerProvider, tmp_path: Path
) -> None:
    machine = provider.acquire(spec(provider, "r1"))
    ssh(machine, "echo kept > /workspace/note", tmp_path)
    provider.client.containers.get(machine.name).stop()
    assert provider.find(machine.name) is None
    again = provider.acquire(spec(provider, "r2"))
    assert (again.name, again.address and again.address.host_keys) == (
        machine.name,
        machine.address and machine.address.host_keys,
    )
    assert ssh(again, "cat /workspace/note", tmp_path) == "kept"


def test_lines_from_before_the_noted_start_count(provider: DockerProvider) -> None:
    """A busy engine notes the start of a container up to some milliseconds after its first lines."""
    machine = provider.acquire(spec(provider, "r1"))
    container = provider.client.containers.get(machine.name)
    container.restart()
    provider.acquire(spec(provider, "r2"))
    container.reload()
    noted = datetime.now(timezone.utc).isoformat().replace("+00:00", "000Z")  # later than all lines so far
    container.attrs["State"]["StartedAt"] = noted
    assert _log(container).count("host key: ") == 1, "of this start, and of no earlier one"


def test_one_that_is_still_starting_is_not_there_yet(provider: DockerProvider) -> None:
    """`find` ignores a starting container: a command would ask the user to confirm its unknown host key."""
    machine = provider.acquire(spec(provider, "r1"))
    about = provider.client.containers.get(machine.name)
    silent = provider.client.containers.run(
        about.image, ["sleep", "600"], entrypoint="", detach=True, name=f"{machine.name}-2", labels=about.labels
    )
    assert provider.find(str(silent.name)) is None
    assert {each.name for each in provider.list()} == {machine.name, silent.name}
    silent.kill()  # `sleep` as process 1 ignores SIGTERM, so a release would wait for a minute


def test_two_machines_have_different_host_keys(provider: DockerProvider) -> None:
    one = provider.acquire(spec(provider, "r1"))
    other = provider.acquire(MachineSpec(f"{one.name}-other", f"{one.name}-other", one.root))
    assert one.address
    assert other.address
    assert one.address.host_keys != other.address.host_keys
    assert {each.name for each in provider.list()} == {one.name, other.name}


def test_a_container_that_does_not_start_well_is_said_with_its_log_and_is_gone(
    provider: DockerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.providers.docker.project_key", lambda _: (Path("key"), "no key at all"))
    with pytest.raises(NoMachine, match="failed to start") as raised:
        provider.acquire(spec(provider, "r1"))
    assert any("PUBLIC_KEY holds no public key" in line for line in raised.value.evidence)
    assert provider.list() == []


def test_without_an_image_the_next_command_is_to_build_one(tmp_path: Path, our_image: str) -> None:
    assert our_image
    for name in image.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.PROJECT / name, tmp_path / name)
    (tmp_path / "constraints.txt").write_text("another==1.0\n")
    provider = DockerProvider(settings(tmp_path))
    with pytest.raises(NoMachine, match="no image of this environment yet") as raised:
        provider.acquire(MachineSpec("sniperface-none", "sniperface-none", PurePosixPath("/workspace")))
    assert raised.value.next_command == command("build --on docker")


def test_gpus_that_the_engine_has_not_are_said(provider: DockerProvider, our_image: str) -> None:
    if "nvidia" in provider.client.info().get("Runtimes", {}):
        pytest.skip("needs an engine without GPUs")
    asking = DockerProvider(settings(provider.settings.project, image=our_image, gpus="all"))
    with pytest.raises(NoMachine, match="the engine has no GPU available"):
        asking.acquire(spec(asking, "r1"))
    assert asking.list() == []


def test_an_engine_that_is_not_there_is_said_with_its_address(tmp_path: Path) -> None:
    nobody = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(NoMachine, match=f"no Docker engine answers at {nobody}"):
        DockerProvider(settings(tmp_path, docker_host=nobody)).list()


def test_a_network_that_cannot_work_is_said(provider: DockerProvider, our_image: str) -> None:
    asking = DockerProvider(settings(provider.settings.project, image=our_image, network="host"))
    with pytest.raises(WrongUse, match="no SSH port of its own"):
        asking.acquire(spec(asking, "r1"))
    assert provider.list() == []


def test_an_engine_elsewhere_is_reached_by_its_address(
    provider: DockerProvider, our_image: str, tmp_path: Path
) -> None:
    """TCP works, here through a relay to this computer's engine. The container's port is then open to the network."""
    with relay("/var/run/docker.sock") as port:
        there = settings(provider.settings.project, image=our_image, docker_host=f"tcp://127.0.0.2:{port}")
        remote = DockerProvider(there)
        machine = remote.acquire(spec(remote, "r1"))
        assert machine.address is not None
        assert machine.address.host == "127.0.0.2"
        assert provider.list() == [replace(machine, address=replace(machine.address, host="127.0.0.1"))]
        assert ssh(machine, "echo there", tmp_path) == "there"
        remote.release(machine)
        remote.client.close()


@contextlib.contextmanager
def relay(path: str) -> Iterator[int]:
    """Forward a port of this computer to a Unix socket. Yields the port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as there:
                there.connect(path)
                pump = threading.Thread(target=_copy, args=(there, self.request), daemon=True)
                pump.start()
                _copy(self.request, there)
                pump.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.2", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
