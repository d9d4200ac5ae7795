"""Provider for containers of our image on a local or remote Docker engine. State is in labels, not in local files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deploy import border
from deploy.errors import BadAnswer, NoMachine, StepFailed, WrongUse, command
from deploy.providers import image
from deploy.providers.rented import answers_ssh
from deploy.providers.ssh_key import project_key
from deploy.specs.machine import Address, Image, Machine, MachineSpec
from deploy.specs.names import slug
from deploy.specs.provider import Provider
from deploy.specs.settings import Docker, Settings

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.networks import Network

LABEL = "sniperface."  # prefix of the labels project, target, family, root
PYTHON = "/opt/sniperface/bin/python"
PROBE_S = 5.0
READY_S = 60.0  # limit from the container's start to an answering sshd
LOG_LINES = 1000
SSH_PORT = "22/tcp"
HOST_KEY = "sniperface host key: "
BAD_START = "sniperface bad start: "


class DockerProvider(Provider):
    """Provide Docker containers as machines. A machine's name is the name of its container.

    For a container that is gone, `find` returns None and `release` succeeds.
    """

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.target.options, Docker)
        super().__init__(settings)
        self.options = settings.target.options

    @cached_property
    def client(self) -> DockerClient:
        return image.engine(self.options.docker_host)

    def price(self) -> float | None:
        return 0.0

    def acquire(self, spec: MachineSpec) -> Machine:
        usable = [each for each in self._usable(spec.family) if spec.fits(str(each.name))]
        found = sorted(usable, key=lambda each: each.status != "running")
        container = found[0] if found else self._create(spec)
        try:
            if container.status == "paused":
                container.unpause()
            elif container.status != "running":
                self._start(container)
            if spec.nodes > 1:
                self._join_network(container)
            machine = self._when_it_answers(container)
            self.check(machine)
            return machine
        except BaseException:
            if not found:
                self._remove(container)
            raise

    def find(self, name: str) -> Machine | None:
        from docker.errors import NotFound

        try:
            container = self.client.containers.get(name)
        except NotFound:
            return None
        if LABEL + "project" not in container.labels or container.status != "running":
            return None
        machine = self._machine(container)
        # Another command may be starting it: without a host key in its log, its identity cannot be verified yet.
        says_its_key = machine.address is not None and machine.address.host_keys
        is_starting = time.time() - _seconds(container.attrs["State"]["StartedAt"]) < READY_S
        return None if is_starting and not says_its_key else machine

    def image(self) -> Image:
        return Image(self.options.image or image.newest(self.client, self.settings.project) or "")

    def list(self) -> list[Machine]:
        return [self._listed(container) for container in self._containers()]

    def release(self, machine: Machine) -> None:
        from docker.errors import NotFound

        try:
            self._remove(self.client.containers.get(machine.name))
        except NotFound:
            return

    def log(self, machine: Machine) -> Iterator[str]:
        from docker.errors import NotFound

        try:
            said = self.client.containers.get(machine.name).logs(tail=LOG_LINES)
        except NotFound:
            return
        yield from said.decode("utf-8", errors="replace").splitlines()

    def _usable(self, family: str) -> Sequence[Container]:
        """List reusable containers. Those of another environment than this checkout's keep their data, unused."""
        if self.options.image:
            return self._containers(family=family)
        now = image.environment(self.settings.project)
        return [each for each in self._containers(family=family) if each.labels.get(image.ENVIRONMENT) == now]

    def _containers(self, **labels: str) -> Sequence[Container]:
        wanted = {"project": self._project, **labels}
        filters = {"label": [f"{LABEL}{name}={value}" for name, value in wanted.items()]}
        return list(self.client.containers.list(all=True, filters=filters, ignore_removed=True))

    def _create(self, spec: MachineSpec) -> Container:
        from docker.errors import APIError, ImageNotFound

        if self.options.network in ("host", "none"):
            raise WrongUse(
                f"network: {self.options.network} gives target '{self.settings.target.name}' no SSH port of its own: "
                "remove network, or name a bridge network, such as network: bridge"
            )
        name = self.image().name
        if not name:
            raise NoMachine(
                "the Docker engine has no image of this environment yet: build it once",
                next_command=command(f"build --on {self.settings.target.name}"),
            )
        labels = {
            "project": self._project,
            "target": self.settings.target.name,
            "family": spec.family,
            "root": str(spec.root),
        }
        gib = 1 << 30
        memory = self.options.memory_gib
        try:
            return self.client.containers.create(
                name,
                name=spec.name,
                labels={LABEL + key: value for key, value in labels.items()},
                environment={"PUBLIC_KEY": project_key(self.settings)[1]},
                # The engine chooses the port. Only a remote engine exposes it to its whole network.
                ports={SSH_PORT: ("0.0.0.0" if self._engine_host() else "127.0.0.1", None)},  # noqa: S104
                shm_size=int(self.options.shm_gib * gib),
                mem_limit=int(memory * gib) if memory else None,
                nano_cpus=int(self.options.cpus * 1e9) if self.options.cpus else None,
                network=self.options.network,
                volumes=list(self.options.volumes),
                device_requests=self._gpus(),
                detach=True,
            )
        except ImageNotFound as error:
            raise NoMachine(
                f"the Docker engine has no image {name}: pull or build it first",
                next_command=(
                    f"docker pull {name}" if self.options.image else command(f"build --on {self.settings.target.name}")
                ),
            ) from error
        except APIError as error:
            raise _refused(f"the container {spec.name} could not be created", error) from error

    def _join_network(self, container: Container) -> None:
        """Connect a container to the network that all machines of this project share.

        The network is created when first needed, and removed with the last container.
        """
        container.reload()
        if self.options.network:  # the user's own network: already connected
            return
        networks = self._networks() or [
            self.client.networks.create(f"sniperface-{self._project}", labels={LABEL + "project": self._project})
        ]
        if networks[0].name not in container.attrs["NetworkSettings"]["Networks"]:
            networks[0].connect(container)

    def _networks(self) -> Sequence[Network]:
        return list(
            self.client.networks.list(
                names=[f"^sniperface-{self._project}$"], filters={"label": f"{LABEL}project={self._project}"}
            )
        )

    @property
    def _project(self) -> str:
        return slug(self.settings.project.name)

    def _gpus(self) -> Sequence[Any]:
        """Request all GPUs, none, or a number of them. `auto`: all if the engine has the NVIDIA runtime, else none."""
        from docker.types import DeviceRequest

        wanted = self.options.gpus
        if wanted == "none" or (wanted == "auto" and "nvidia" not in self.client.info().get("Runtimes", {})):
            return []
        count = int(wanted) if wanted.isdigit() else -1
        return [DeviceRequest(driver="nvidia", count=count, capabilities=[["gpu"]])]

    def _start(self, container: Container) -> None:
        from docker.errors import APIError

        try:
            container.start()
        except APIError as error:
            raise _refused(f"the container {container.name} could not be started", error) from error

    def _when_it_answers(self, container: Container) -> Machine:
        """Wait for the SSH banner. Raises NoMachine after READY_S, or at once when the container failed to start."""
        until = time.monotonic() + READY_S
        while True:
            container.reload()
            log = _log(container)
            last, more = log.splitlines()[-8:], f"docker logs {container.name}"
            if BAD_START in log or container.status not in ("running", "created", "restarting"):
                raise NoMachine(f"the container {container.name} failed to start", evidence=last, next_command=more)
            machine = self._machine(container, log)
            at = machine.address
            assert at is not None
            # A published port accepts connections before anything listens behind it.
            if at.host_keys and at.port and answers_ssh(at.host, at.port, PROBE_S):
                return machine
            if time.monotonic() > until:
                raise NoMachine(
                    f"the container {container.name} runs, but no SSH server answers at {at.host}:{at.port} within "
                    f"{READY_S:g} s; for a remote engine, set ssh_host: in conf/deploy to the host that exposes its "
                    "ports",
                    evidence=last,
                    next_command=more,
                )
            time.sleep(0.1)

    def _machine(self, container: Container, log: str | None = None) -> Machine:
        """Describe a container as a machine. Its host keys come from its log: the engine is trusted already."""
        ports = (container.attrs["NetworkSettings"].get("Ports") or {}).get(SSH_PORT) or []
        log = _log(container) if log is None else log
        told = [line.removeprefix(HOST_KEY).strip() for line in log.splitlines() if line.startswith(HOST_KEY)]
        keys = [key for key in told if len(key) < 4000 and key.isprintable()]
        address = Address(
            host=self.options.ssh_host or self._engine_host() or "127.0.0.1",
            port=int(ports[0]["HostPort"]) if ports else None,
            user="root",
            key=str(project_key(self.settings)[0]),
            host_keys=tuple(keys[-1:]),
        )
        environment = dict(entry.partition("=")[::2] for entry in container.attrs["Config"].get("Env") or [])
        return Machine(
            name=str(container.name),
            root=PurePosixPath(container.labels.get(LABEL + "root") or str(self.settings.root)),
            python=environment.get("SNIPERFACE_PYTHON", PYTHON),
            address=address,
            id=str(container.id),
            created=_seconds(container.attrs["Created"]),
            is_stopped=container.status not in ("running", "restarting"),
        )

    def _listed(self, container: Container) -> Machine:
        """Describe a container; one whose description does not fit keeps its name and id, and says why."""
        try:
            with border.fitting(f"Docker: container {str(container.id)[:12]}"):
                return self._machine(container)
        except BadAnswer as error:
            about = container.attrs
            name = str(about.get("Name") or "").lstrip("/") or str(container.id)
            root = PurePosixPath(str(self.settings.root))
            return Machine(name, root, PYTHON, address=Address(""), id=str(container.id), fault=error.message)

    def _remove(self, container: Container) -> None:
        """Remove a container and its anonymous volumes. It is stopped first, so that a job can write a checkpoint."""
        from docker.errors import APIError, NotFound

        try:
            container.stop(timeout=60)
            container.remove(force=True, v=True)
            self._remove_empty_network()
        except NotFound:
            return
        except APIError as error:
            if error.status_code == 409:  # another command is removing it
                return
            raise StepFailed(f"the container {container.name} could not be removed", evidence=[str(error)]) from error

    def _remove_empty_network(self) -> None:
        from docker.errors import APIError

        for network in self._networks():
            network.reload()
            if not network.containers:
                with contextlib.suppress(APIError):  # a container is joining it, or another command removed it
                    network.remove()

    def _engine_host(self) -> str | None:
        """Return the host of an engine that is reached over the network; None for a local engine."""
        host = image.engine_address(self.options.docker_host) or ""
        return urlsplit(host).hostname if urlsplit(host).scheme in ("ssh", "tcp", "http", "https") else None


def _log(container: Container) -> str:
    """Read the first READY_S of the log since the last start. The whole log grows with every SSH connection."""
    from docker.errors import APIError

    started, ended = (_seconds(container.attrs["State"][each]) for each in ("StartedAt", "FinishedAt"))
    if started <= 0:  # never started
        return ""
    since = ended if ended > 0 else None  # not `started`: the engine may note it after the container's first lines
    try:
        return str(container.logs(since=since, until=started + READY_S).decode("utf-8", errors="replace"))
    except APIError:  # just removed, or its log driver keeps no readable log
        return ""


def _seconds(text: str) -> float:
    """Convert Docker's time to Unix seconds. It has nine decimals, and Python 3.10 reads six."""
    whole, _, rest = text.partition(".")
    return datetime.fromisoformat(f"{whole[:19]}+00:00").timestamp() + (
        float(f"0.{rest[:6]}") if rest[:6].isdigit() else 0
    )


def _refused(what: str, error: Exception) -> NoMachine:
    words = str(getattr(error, "explanation", None) or error)
    if "could not select device driver" in words or "nvidia" in words.lower():
        what += ": the engine has no GPU available; install the NVIDIA container toolkit there, or set gpus: none"
    elif "port is already allocated" in words:
        what += ": its port is already in use"
    return NoMachine(what, evidence=[words[:400]], next_command="docker info")
