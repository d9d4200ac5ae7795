"""REST API v2 of the emulator: answers as in the specification, from one Account."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.support.emulators import contract
from tests.support.emulators.runpod_pods import stamp
from tests.support.emulators.runpod_state import Account, Cluster, Gpu, Pod, Refusal

TITLES = {
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 409: "Conflict", 422: "Unprocessable Entity", 429: "Too Many Requests",
}  # fmt: skip
ACTIONS = {
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
}


class Invalid(Exception):
    def __init__(self, errors: list[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


def answer(
    account: Account, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
) -> tuple[int, Any]:
    """Status and JSON of every answer except the log stream, which the server writes itself."""
    try:
        return _answer(account, method, path, query, headers, body)
    except Refusal as refusal:
        return problem(refusal.status, refusal.detail)
    except Invalid as invalid:
        return 422, {**problem(422, "Request validation failed.")[1], "errors": invalid.errors}


def problem(status: int, detail: str) -> tuple[int, dict[str, Any]]:
    return status, {"title": TITLES.get(status, "Error"), "status": status, "detail": detail}


def _answer(
    account: Account, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
) -> tuple[int, Any]:
    if (method, path) == ("GET", contract.SPECIFICATION_PATH):
        return 200, contract.SPECIFICATION if account.specification is None else account.specification
    if not contract.knows(method, path):
        raise Refusal(404, f"no such route: {method} {path}")
    try:
        told = json.loads(body) if body else None
    except ValueError:
        raise Refusal(400, "invalid JSON") from None
    errors = contract.problems_of_body(method, path, told, account.specification)
    errors += contract.problems_of_query(method, path, query, headers)
    if errors:
        raise Invalid(errors)
    name = contract.parameters_of_path(path).get("id", "")
    match method, path.split("/")[2:]:
        case "GET", ["pods"]:
            return 200, {"pods": [as_json(account, pod) for pod in listed(account, query)]}
        case "POST", ["pods"]:
            return 201, as_json(account, create(account, told))
        case "GET", ["pods", _]:
            return 200, as_json(account, account.find(name))
        case "DELETE", ["pods", _]:
            account.terminate(name)
            return 204, None
        case "GET", ["clusters"]:
            return 200, {"clusters": [cluster_as_json(account, each) for each in account.all_clusters()]}
        case "POST", ["clusters"]:
            return 201, cluster_as_json(account, create_cluster(account, told))
        case "GET", ["clusters", _]:
            return 200, cluster_as_json(account, account.find_cluster(name))
        case "GET", ["clusters", _, "pods"]:
            return 200, {"pods": [as_json(account, pod) for pod in account.find_cluster(name).pods]}
        case "DELETE", ["clusters", _]:
            account.end_cluster(name)
            return 204, None
        case "GET", ["catalog", "gpus"]:
            return 200, {"gpus": [gpu_as_json(gpu, query) for gpu in account.gpus.values()]}
        case "GET", ["network-volumes"]:
            return 200, {"networkVolumes": [{"id": id, **volume} for id, volume in account.volumes.items()]}
        case "GET", ["network-volumes", _]:
            if name not in account.volumes:
                raise Refusal(404, "network volume not found")
            return 200, {"id": name, **account.volumes[name]}
    raise Refusal(405, "the emulator has no need of this")


def create(account: Account, told: dict[str, Any]) -> Pod:
    if ("gpu" in told) == ("cpu" in told):
        raise Refusal(400, "exactly one of gpu and cpu is required")
    if "gpu" not in told:
        raise Refusal(400, "the emulator has no CPU pods")
    if "count" not in told["gpu"]:
        raise Refusal(400, "no instances available")  # RunPod's known answer in this case
    return account.create(
        gpu=told["gpu"]["id"],
        gpu_count=told["gpu"]["count"],
        cloud=told.get("cloud", "SECURE"),
        registry=told.get("registry"),
        takes=lambda cuda: version(cuda) >= version(told["gpu"].get("minCudaVersion", "0.0")),
        **_container(told),
    )


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _container(told: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Account.create that requests for a pod and for a cluster share."""
    network = (told.get("mounts") or {}).get("network") or [{}]
    return {
        "name": told["name"],
        "image": told["image"],
        "data_centers": told.get("dataCenterIds", []),
        "disk": told.get("disk", 10),
        "ports": told.get("ports", []),
        "env": told.get("env", {}),
        "args": told.get("args", ""),
        "volume": network[0].get("volumeId"),
        "volume_path": network[0].get("path", ""),
    }


def listed(account: Account, query: Mapping[str, str]) -> list[Pod]:
    """All pods; those of clusters only with includeClusterPods=true."""
    pods = account.all()
    return pods if query.get("includeClusterPods") == "true" else [pod for pod in pods if pod.cluster is None]


def create_cluster(account: Account, told: dict[str, Any]) -> Cluster:
    first = account.create(
        gpu=told["compute"]["gpuTypeId"],
        gpu_count=told["compute"]["gpuCountPerPod"],
        cloud="SECURE",
        nodes=told["compute"]["podCount"],
        **_container(told),
    )
    assert first.cluster
    return first.cluster


def cluster_as_json(account: Account, cluster: Cluster) -> dict[str, Any]:
    by_status = Counter(pod.status(account.clock.time()) for pod in cluster.pods)
    compute = {"gpuTypeId": cluster.gpu, "gpuCountPerPod": cluster.gpus_each, "podCount": cluster.nodes}
    placed = {"dataCenterId": cluster.data_center, "network": {"cidr": cluster.network.cidr}} if cluster.pods else {}
    return {
        "id": cluster.id,
        "name": cluster.name,
        "type": cluster.type,
        "compute": compute,
        "pods": {"total": len(cluster.pods), "byStatus": dict(by_status)},
        "createdAt": stamp(cluster.created),
        **placed,
    }


def membership(account: Account, pod: Pod) -> dict[str, Any]:
    if pod.cluster is None:
        return {}
    if account.clock.time() < pod.cluster.ranks:
        return {"cluster": {"id": pod.cluster.id, "rank": None}}
    return {"cluster": {"id": pod.cluster.id, "rank": pod.rank, "ip": pod.cluster.network.ip(pod.rank)}}


def as_json(account: Account, pod: Pod) -> dict[str, Any]:
    now = account.clock.time()
    status = pod.status(now)
    listens = pod.machine and pod.has_runtime(now) and "22/tcp" in pod.ports
    where = pod.machine.address() if pod.machine and listens and pod.publishes == "address" else None
    host, port = where or ("", 0)
    without_ip = [{"private": 22, "public": None, "type": "tcp", "ip": None}] if pod.publishes == "no ip" else []
    runtime = {
        "uptime": int(now - pod.started),
        "gpus": [] if pod.zero_gpus else [{"util": 0, "memoryUtil": 0}] * pod.gpu_count,
        "ports": [{"private": 22, "public": port, "type": "tcp", "ip": host}] if where else without_ip,
    }
    return {
        "id": pod.id,
        "name": pod.name,
        "image": pod.image,
        "args": pod.args,
        "disk": pod.disk,
        "ports": pod.ports,
        "env": pod.env,
        "registry": pod.registry,
        "status": status,
        "actions": ACTIONS.get(status, ["stop", "terminate"]),
        "mounts": pod.mounts,
        "gpu": {"id": pod.gpu, "count": pod.gpu_count},
        "cloud": pod.cloud,
        "dataCenterId": pod.data_center,
        "cudaVersion": pod.cuda,
        "ssh": {
            "proxy": endpoint("ssh.runpod.io", 22, f"{pod.id}-64411eb2"),
            "direct": endpoint(host, port, "root") if where else None,
        },
        "template": None,
        "cost": 0.0 if status == "EXITED" else pod.usd_per_hour,
        "locked": pod.locked,
        "globalNetworking": {"enabled": False},
        "runtime": runtime if pod.has_runtime(now) else None,
        "createdAt": stamp(pod.created),
        "startedAt": stamp(pod.started) if now >= pod.started else None,
        **membership(account, pod),
    }


def endpoint(host: str, port: int, user: str) -> dict[str, Any]:
    return {"host": host, "port": port, "username": user, "command": f"ssh {user}@{host} -p {port}"}


def gpu_as_json(gpu: Gpu, query: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": gpu.id,
        "name": gpu.id.removeprefix("NVIDIA "),
        "pool": None,
        "manufacturer": "NVIDIA",
        "memory": gpu.memory_gib,
        "secure": True,
        "community": False,
        "price": {"secure": gpu.usd_per_hour, "community": 0.0},
        "maxCount": {"secure": gpu.max_count, "community": 0},
    }
    if query.get("include") == "AVAILABILITY":
        if "product" not in query:
            raise Refusal(400, "product is required with include=AVAILABILITY")
        in_stock = bool(gpu.stock) and int(query.get("count", "1")) <= gpu.max_count
        values["availability"] = max(gpu.stock.values(), key=["LOW", "MEDIUM", "HIGH"].index) if in_stock else "NONE"
        if in_stock:
            values["dataCenters"] = [{"id": id, "name": id, "availability": has} for id, has in gpu.stock.items()]
    return values
