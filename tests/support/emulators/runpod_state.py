"""The emulated RunPod account: its pods, clusters and volumes. Both APIs of the emulator use this state."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.providers.rented import Clock
from tests.support.emulators.runpod_pods import Machine, Maker, Network

NO_ROOM = "There are no longer any instances available with the requested specifications. Please refresh and try again."


class Refusal(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass
class Gpu:
    id: str
    usd_per_hour: float
    memory_gib: int
    max_count: int = 8
    stock: dict[str, str] = field(default_factory=dict)  # data centre -> LOW, MEDIUM, HIGH
    spot_usd_per_hour: float | None = None  # lowest accepted bid for one GPU
    hosts: tuple[str, ...] = ("12.8", "13.0")  # newest CUDA of each host's driver; the first that fits is used


def catalogue() -> dict[str, Gpu]:
    """GPU types with RunPod's names; prices and stock are invented."""
    gpus = [
        Gpu("NVIDIA RTX A4500", 0.25, 20, 4, {"EU-RO-1": "HIGH", "US-KS-2": "LOW"}, 0.12),
        Gpu("NVIDIA RTX A5000", 0.27, 24, 8, {"EU-RO-1": "MEDIUM", "US-TX-3": "HIGH"}),
        Gpu("NVIDIA A40", 0.40, 48, 8, {"EU-SE-1": "HIGH", "US-KS-2": "HIGH"}, 0.20),
        Gpu("NVIDIA H100 80GB HBM3", 2.69, 80, 8, {"US-KS-2": "LOW"}, None, ("13.0",)),
        Gpu("NVIDIA GeForce RTX 3070", 0.13, 8, 2, {}),
    ]
    return {gpu.id: gpu for gpu in gpus}


@dataclass
class Pod:
    id: str
    name: str
    image: str
    gpu: str
    gpu_count: int
    cloud: str
    data_center: str
    disk: int
    ports: list[str]
    env: dict[str, str]
    mounts: dict[str, Any]
    registry: str | None
    usd_per_hour: float
    cuda: str
    args: str
    created: float
    booted: float  # when the last start of the container began
    boot_s: float
    machine: Machine | None = None
    memory_gib: float = 62.0
    zero_gpus: bool = False
    ends: str = ""  # EXITED or ERROR instead of RUNNING
    vanishes: float = float("inf")
    appears: float = 0.0  # in lists
    runtime_null_s: float = 0.0
    locked: bool = False
    bad_start: str = ""  # reason, as our image prints it
    system: tuple[tuple[float, str], ...] = ((1.0, "create pod network"),)  # host's log lines, seconds since boot
    stays: str = ""  # a status that it never leaves
    is_closed: bool = False  # its SSH server listens, but no connection gets through
    has_container: bool = True  # False: RUNNING, but nothing ever runs
    publishes: str = "address"  # for port 22: "address", "no ip", or "nothing"
    stopped: bool = False
    spot: bool = False
    cluster: Cluster | None = None
    rank: int = 0  # in the cluster

    def status(self, now: float) -> str:
        if self.stopped:
            return "EXITED"
        if self.stays:
            return self.stays
        if now < self.booted + self.boot_s * 0.2:
            return "PROVISIONING"
        if now < self.started:
            return "STARTING"
        return self.ends or "RUNNING"

    @property
    def started(self) -> float:
        return self.booted + self.boot_s

    def has_runtime(self, now: float) -> bool:
        return self.has_container and self.status(now) == "RUNNING" and now >= self.started + self.runtime_null_s

    def host_lines(self, now: float) -> list[tuple[float, str]]:
        """The host's log lines so far, with their times."""
        return [(self.booted + after_s, text) for after_s, text in self.system if self.booted + after_s <= now]


@dataclass
class Cluster:
    """Equal pods in one data centre, and the network between them."""

    id: str
    name: str
    type: str
    nodes: int
    gpu: str
    gpus_each: int
    data_center: str
    created: float
    network: Network
    pods: list[Pod] = field(default_factory=list)
    appears: float = 0.0  # in lists
    ranks: float = 0.0  # when its pods get their ranks
    vanishes: float = float("inf")


class Account:
    def __init__(self, clock: Clock, maker: Maker, boot_s: float, networks: Callable[[str], Network] = Network) -> None:
        self.clock = clock
        self.maker = maker
        self.networks = networks
        self.boot_s = boot_s
        self.gpus = catalogue()
        self.volumes: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, Pod] = {}
        self.clusters: dict[str, Cluster] = {}
        self.ended: list[Pod] = []
        self.refusals: list[tuple[int, str]] = []  # for the next creations
        self.oddities: list[Mapping[str, Any]] = []  # fields of the next pods
        self.cluster_oddities: list[Mapping[str, Any]] = []  # fields of the next clusters
        self.runtime_null_s = 0.0
        self.balance_usd = 25.0
        self.spend_limit_usd_per_hour = 80
        self.specification: Mapping[str, Any] | None = None  # that the server publishes; None: the one in this folder
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)

    def create(
        self,
        *,
        name: str,
        image: str,
        gpu: str,
        gpu_count: int,
        cloud: str,
        data_centers: Sequence[str],
        disk: int,
        ports: Sequence[str],
        env: Mapping[str, str],
        volume: str | None = None,
        volume_path: str = "",
        registry: str | None = None,
        nodes: int = 1,
        args: str = "",
        takes: Callable[[str], object] = bool,
    ) -> Pod:
        """Create a pod, or a cluster of `nodes` pods and return its first. `takes`: accepts a host's CUDA version."""
        with self.lock:
            if self.refusals:
                raise Refusal(*self.refusals.pop(0))
            kind = self.gpus.get(gpu)
            if kind is None:
                raise Refusal(400, f"gpu type {gpu} not found")
            if volume and volume not in self.volumes:
                raise Refusal(400, f"network volume {volume} not found")
            wanted = [self.volumes[volume]["dataCenter"]] if volume else list(data_centers) or list(kind.stock)
            centers = [center for center in wanted if center in kind.stock]
            hosts = [cuda for cuda in kind.hosts if takes(cuda)]
            if not centers or not hosts or gpu_count > kind.max_count:
                raise Refusal(400, NO_ROOM)
            if self.balance_usd < kind.usd_per_hour * gpu_count * nodes:
                raise Refusal(402, "the balance is below an hour of this machine")
            about = {
                "name": name, "image": image, "gpu": gpu, "gpu_count": gpu_count, "cloud": cloud,
                "data_center": centers[0], "disk": disk, "ports": list(ports), "registry": registry,
                "mounts": {"network": [{"volumeId": volume, "path": volume_path}]} if volume else {},
                "usd_per_hour": kind.usd_per_hour * gpu_count, "cuda": hosts[0], "args": args,
            }  # fmt: skip
            cluster = self._new_cluster(name, nodes, about) if nodes > 1 else None
            pods = [self._new_pod({**about, "env": dict(env)}, cluster, rank) for rank in range(nodes)]
        for pod in pods:
            pod.machine = self.maker(pod)  # outside the lock: starting a container is slow
        return pods[0]

    def _new_cluster(self, name: str, nodes: int, about: Mapping[str, Any]) -> Cluster:
        odd = dict(self.cluster_oddities.pop(0)) if self.cluster_oddities else {}
        now, id = self.clock.time(), f"cluster{next(self._numbers):04d}"
        cluster = Cluster(
            id, name, "TRAINING", nodes, about["gpu"], about["gpu_count"], about["data_center"], now, self.networks(id)
        )
        cluster.appears = now + odd.pop("appears_after_s", 0.0)
        cluster.ranks = now + odd.pop("ranks_after_s", 0.0)
        cluster.vanishes = now + odd.pop("vanishes_after_s", float("inf"))
        vars(cluster).update(odd)
        self.clusters[id] = cluster
        return cluster

    def _new_pod(self, about: dict[str, Any], cluster: Cluster | None, rank: int) -> Pod:
        odd = dict(self.oddities.pop(0)) if self.oddities else {}
        now = self.clock.time()
        pod = Pod(
            id=f"pod{next(self._numbers):04d}", created=now, booted=now, boot_s=odd.pop("boot_s", self.boot_s),
            runtime_null_s=self.runtime_null_s, cluster=cluster, rank=rank, **about,
        )  # fmt: skip
        if cluster:
            pod.name = f"{cluster.name}-{pod.id}"  # RunPod documents no names for them
            pod.data_center = cluster.data_center
            pod.appears = cluster.appears
            pod.env |= cluster.network.environment(rank, cluster.nodes, cluster.gpus_each)
            cluster.pods.append(pod)
        pod.vanishes = now + odd.pop("vanishes_after_s", float("inf"))
        pod.appears = max(pod.appears, now + odd.pop("appears_after_s", 0.0))
        vars(pod).update(odd)
        self.pods[pod.id] = pod
        return pod

    def find(self, pod_id: str) -> Pod:
        self._age()
        if pod_id not in self.pods:
            raise Refusal(404, "pod not found")
        return self.pods[pod_id]

    def all(self) -> list[Pod]:
        self._age()
        return [pod for pod in self.pods.values() if self.clock.time() >= pod.appears]

    def terminate(self, pod_id: str) -> None:
        pod = self.find(pod_id)
        if pod.locked:
            raise Refusal(409, "pod is locked")
        if pod.cluster:
            raise Refusal(409, "pod belongs to a cluster and cannot be terminated via the pod endpoints")
        self._end(pod)

    def find_cluster(self, cluster_id: str) -> Cluster:
        self._age()
        if cluster_id not in self.clusters:
            raise Refusal(404, "cluster not found")
        return self.clusters[cluster_id]

    def all_clusters(self) -> list[Cluster]:
        self._age()
        return [cluster for cluster in self.clusters.values() if self.clock.time() >= cluster.appears]

    def end_cluster(self, cluster_id: str) -> None:
        cluster = self.find_cluster(cluster_id)
        with self.lock:
            self.clusters.pop(cluster.id, None)
        for pod in cluster.pods:
            self._end(pod)
        cluster.network.close()

    def restart(self, pod: Pod) -> None:
        """Restart a pod: its container has a new disk and another port."""
        pod.booted, pod.stopped = self.clock.time(), False
        if pod.machine:
            pod.machine.restart()

    def preempt(self, pod: Pod) -> None:
        """Stop a spot pod, as for a higher bid: its processes end, and its disk is deleted. It does not start again."""
        if not pod.spot:
            raise ValueError(f"{pod.name} is no spot pod")
        pod.stopped = True
        if pod.machine:
            pod.machine.close()

    def each_machine(self, act: Callable[[Machine], None]) -> None:
        for pod in [*self.pods.values(), *self.ended]:
            if pod.machine:
                act(pod.machine)

    def close(self) -> None:
        self.each_machine(lambda machine: machine.close())
        for cluster in self.clusters.values():
            cluster.network.close()

    def _age(self) -> None:
        for cluster in [each for each in self.clusters.values() if self.clock.time() >= each.vanishes]:
            cluster.vanishes = float("inf")
            self.end_cluster(cluster.id)
        for pod in [pod for pod in self.pods.values() if self.clock.time() >= pod.vanishes]:
            self._end(pod)

    def _end(self, pod: Pod) -> None:
        with self.lock:
            if self.pods.pop(pod.id, None) is None:
                return
            self.ended.append(pod)
            if pod.cluster:
                pod.cluster.pods = [each for each in pod.cluster.pods if each is not pod]
        if pod.machine:
            pod.machine.close()
