"""Back ends of an emulated pod: a listener that greets like an SSH server, or a real container."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from deploy.providers.rented import Clock
    from tests.support.emulators.runpod_state import Pod

LABEL = "sniperface.emulator"
Line = tuple[str, str]  # time stamp, text


class Machine(Protocol):
    def address(self) -> tuple[str, int] | None: ...

    def log(self) -> list[Line]: ...

    def restart(self) -> None: ...

    def close(self) -> None: ...


Maker = Callable[["Pod"], Machine]


def stamp(time: float) -> str:
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23] + "Z"


class Network:
    """Addresses of the pods of one cluster, and the variables that RunPod sets in a pod for them."""

    def __init__(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id
        self.begin = "10.65.0"

    @property
    def cidr(self) -> str:
        return f"{self.begin}.0/24"

    def ip(self, rank: int) -> str:
        return f"{self.begin}.{rank + 2}"

    def environment(self, rank: int, nodes: int, gpus_each: int) -> dict[str, str]:
        first = self.ip(0)
        return {
            "PRIMARY_ADDR": first, "MASTER_ADDR": first, "PRIMARY_PORT": "29500", "MASTER_PORT": "29500",
            "HOST_NODE_ADDR": f"{first}:29500", "NODE_ADDR": self.ip(rank), "NODE_RANK": str(rank),
            "NUM_NODES": str(nodes), "NUM_TRAINERS": str(gpus_each), "WORLD_SIZE": str(nodes * gpus_each),
        }  # fmt: skip

    def options(self, rank: int) -> tuple[str, ...]:
        del rank
        return ()

    def close(self) -> None:
        """Do nothing: there is no real network."""


class DockerNetwork(Network):
    """A Network that is a Docker network, in which containers reach each other."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(cluster_id)
        self.name = f"sniperface-emulator-{os.getpid()}-{cluster_id}"
        for part in itertools.islice(itertools.cycle(range(256)), os.getpid() % 256, os.getpid() % 256 + 256):
            self.begin = f"10.65.{part}"
            with contextlib.suppress(subprocess.CalledProcessError):  # subnet in use
                docker("network", "create", "--label", LABEL, "--subnet", self.cidr, self.name)
                return
        raise RuntimeError("no network of 10.65.0.0/16 is free on the Docker engine")

    def options(self, rank: int) -> tuple[str, ...]:
        return "--network", self.name, "--ip", self.ip(rank)

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            docker("network", "rm", self.name)


class Greeter:
    """A port that sends SSH-2.0 once `late_s` have passed since the container's start; before, it hangs up."""

    def __init__(self, pod: Pod, clock: Clock, late_s: float = 0.0, *, with_keys: bool = True) -> None:
        self.pod = pod
        self.clock = clock
        self.late_s = late_s
        self.with_keys = with_keys
        self.boots = 1
        self.printed: list[Line] = []
        self._listen()

    def host_key(self) -> str:
        number = int(self.pod.id[3:]) * 10 + self.boots
        return f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{number:05d}{'A' * 38}"

    def address(self) -> tuple[str, int]:
        return self.socket.getsockname()[:2]

    def log(self) -> list[Line]:
        if self.clock.time() < self.pod.started:
            return []
        at = stamp(self.pod.started)
        gpus = 0 if self.pod.zero_gpus else self.pod.gpu_count
        keys = [(at, f"sniperface host key: {self.host_key()} root@{self.pod.id}")] if self.with_keys else []
        hardware = (at, f"sniperface hardware: gpus={gpus} memory_gib={self.pod.memory_gib}")
        bad = [(at, f"sniperface bad start: {self.pod.bad_start}")] if self.pod.bad_start else []
        ready = [(stamp(self._listens), "sniperface ready: sshd started (1)")] if self.with_keys and self._is_up else []
        return [(at, "booting"), *bad, *keys, *([hardware] if self.with_keys else []), *ready, *self.printed]

    @property
    def _listens(self) -> float:
        return self.pod.started + self.late_s

    @property
    def _is_up(self) -> bool:
        return self.clock.time() >= self._listens and not self.pod.bad_start

    def restart(self) -> None:
        self.close()
        self.boots += 1
        self._listen()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(5)

    def _listen(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._greet, args=(self.socket,), daemon=True)
        self._thread.start()

    def _greet(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                if self._is_up and not self.pod.is_closed:
                    connection.sendall(b"SSH-2.0-emulated\r\n")


class Container:
    """A container with its own SSH server on a port of this computer, started by `docker run`.

    The pod's start command takes the place of the image's, as at RunPod.
    """

    def __init__(
        self,
        pod: Pod,
        image: str | None = None,
        given: Mapping[str, str] | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        """`given`: variables of the pod besides the requested ones; `folders`: network volume -> folder."""
        told = {**(given or {}), **pod.env}
        env = [part for name, value in told.items() for part in ("--env", f"{name}={value}")]
        for mount in pod.mounts.get("network", []):
            env += ["--volume", f"{(folders or {})[mount['volumeId']]}:{mount['path']}"]
        self.pod = pod
        network = pod.cluster.network.options(pod.rank) if pod.cluster else ()
        self.id = docker(
            "run", "--detach", "--label", f"{LABEL}={pod.id}", "--publish", "127.0.0.1::22", *network,
            "--env", f"RUNPOD_POD_ID={pod.id}", *env, image or pod.image, *shlex.split(pod.args),
        )  # fmt: skip

    def address(self) -> tuple[str, int] | None:
        ports = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Ports}}", self.id) or "{}")
        bound = ports.get("22/tcp")
        return (bound[0]["HostIp"], int(bound[0]["HostPort"])) if bound else None

    def log(self) -> list[Line]:
        done = subprocess.run(
            ["docker", "logs", "--timestamps", self.id], capture_output=True, text=True, encoding="utf-8", check=False
        )
        lines = [line.partition(" ") for line in (done.stdout + done.stderr).splitlines()]
        return sorted((f"{at[:23]}Z", self._with_gpus(text)) for at, _, text in lines if at)

    def _with_gpus(self, text: str) -> str:
        """Replace the number of GPUs in our image's log line by the rented number; this computer may have none."""
        gpus = 0 if self.pod.zero_gpus else self.pod.gpu_count
        return re.sub(r"^(sniperface hardware: gpus=)\d+", rf"\g<1>{gpus}", text)

    def restart(self) -> None:
        docker("restart", "--time", "1", self.id)

    def limit(self, cores: float) -> None:
        """Limit how many cores the pod may use."""
        docker("update", f"--cpus={cores}", self.id)

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            docker("rm", "--force", "--volumes", self.id)


def docker(*argv: str) -> str:
    return subprocess.run(
        ["docker", *argv], check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout.strip()


def gateway() -> str:
    """The address at which containers reach this computer."""
    return gateway_of(json.loads(docker("network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}")))


def gateway_of(pools: list[dict[str, str]]) -> str:
    """The bridge's address in the address pools of `docker network inspect`.

    Before its second start, Docker 20.10 names no gateway: the bridge then has the first address of the subnet.
    """
    pool = next(pool for pool in pools if ipaddress.ip_network(pool["Subnet"]).version == 4)
    return pool.get("Gateway") or str(next(ipaddress.ip_network(pool["Subnet"]).hosts()))


def remove_leftovers() -> None:
    for container in docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}").split():
        docker("rm", "--force", "--volumes", container)
    for network in docker("network", "ls", "--quiet", "--filter", f"label={LABEL}").split():
        docker("network", "rm", network)
