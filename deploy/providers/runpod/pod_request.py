"""What is requested of RunPod for a pod or a cluster of equal ones, and the bodies of its REST API v2. Pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploy.pod.image.unattended import MINUTES


@dataclass(frozen=True)
class Wanted:
    """A request for one pod, or a cluster of equal ones, of one GPU type. The API tries no other type."""

    name: str
    image: str
    gpu: str
    gpu_count: int
    public_key: str
    cloud: str = "SECURE"
    data_center: str | None = None
    min_cuda: str | None = None
    min_memory_gib: float | None = None  # of the machine; requested if the live API can, and checked after the start
    disk_gib: int = 40
    volume: str | None = None
    volume_path: str = "/workspace"
    registry: str | None = None
    nodes: int = 1  # number of pods; more than one is a cluster
    args: str = ""  # start command; empty: the image's own
    bid_usd_per_gpu_hour: float | None = None  # for a spot pod; None: a pod that RunPod does not interrupt
    unattended_min: float | None = None  # minutes without login and guard after which the pod releases itself

    @property
    def env(self) -> dict[str, str]:
        """Return the variables of the container."""
        switch = {} if self.unattended_min is None else {MINUTES: f"{self.unattended_min:g}"}
        return {"PUBLIC_KEY": self.public_key, **switch}


def body_of(wanted: Wanted) -> dict[str, Any]:
    """Build a pod request from set options only: v2 refuses unknown fields. Without `gpu.count` nothing matches."""
    gpu = {"id": wanted.gpu, "count": wanted.gpu_count}
    body = {
        **_container(wanted),
        "gpu": {**gpu, "minCudaVersion": wanted.min_cuda} if wanted.min_cuda else gpu,
        "cloud": wanted.cloud,
    }
    if wanted.registry:
        body["registry"] = wanted.registry
    return body


def body_of_cluster(wanted: Wanted) -> dict[str, Any]:
    """Build a cluster request. It has no cloud, no minimum CUDA version and no registry credentials."""
    return {
        **_container(wanted),
        "type": "TRAINING",
        "compute": {"gpuTypeId": wanted.gpu, "gpuCountPerPod": wanted.gpu_count, "podCount": wanted.nodes},
    }


def _container(wanted: Wanted) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": wanted.name,
        "image": wanted.image,
        "disk": wanted.disk_gib,
        "ports": ["22/tcp"],
        "env": wanted.env,
    }
    if wanted.args:
        body["args"] = wanted.args
    if wanted.data_center:
        body["dataCenterIds"] = [wanted.data_center]
    if wanted.volume:
        body["mounts"] = {"network": [{"volumeId": wanted.volume, "path": wanted.volume_path}]}
    return body
