"""Bodies of requests to RunPod's REST API v2: a pod, or a cluster of equal ones. Pure, no I/O."""

from __future__ import annotations

from typing import Any

from deploy.providers.runpod.api import Wanted


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
