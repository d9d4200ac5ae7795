"""Convert RunPod's answers into typed, bounded values. Of a list, an entry that does not fit hides no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from deploy import border
from deploy.errors import BadAnswer
from deploy.providers.runpod.api import UNREADABLE, Cluster, NetworkVolume, Offer, Pod, Unclear
from deploy.providers.runpod.graphql import errors_in
from deploy.providers.runpod.pod_request import Wanted
from deploy.specs.trial import Funds

MOST_USD_PER_HOUR = 100_000.0  # a higher price is a wrong answer


def listed_pods(found: Mapping[str, Any]) -> list[Pod]:
    """Convert a list of pods. One that does not fit keeps its id, its name and its cluster, and says why."""

    def instead(each: border.Unreadable) -> Pod:
        return Pod(each.id, each.name, UNREADABLE, fault=each.why, cluster=clusters.get(each.id))

    pods = found.get("pods")
    told = [each for each in pods if isinstance(each, dict)] if isinstance(pods, list) else []
    groups = {str(each.get("id")): each["cluster"] for each in told if isinstance(each.get("cluster"), dict)}
    clusters = {id: group["id"] for id, group in groups.items() if isinstance(group.get("id"), str)}
    return border.entries(pods, "RunPod's list of pods", pod, instead)


def listed_clusters(found: object) -> list[Cluster]:
    """Convert a list of clusters. One that does not fit keeps its id and its name, and says why."""

    def instead(each: border.Unreadable) -> Cluster:
        return Cluster(each.id, each.name, 0, "", fault=each.why)

    return border.entries(found, "RunPod's list of clusters", cluster, instead)


def pod(values: Any) -> Pod:
    """Convert a Pod of the API's specification. v2 does not report a machine's memory. Raises BadAnswer."""
    said = border.mapping(values, "RunPod: a pod")
    id = border.identifier(said.get("id"), "RunPod: the id of a pod")
    what = f"RunPod: pod {id}"

    def part(key: str, of: Mapping[str, Any] = said) -> dict[str, Any]:
        return border.mapping(of.get(key) or {}, f"{what}, {key}")

    def some(key: str, check: Any, *bounds: float, of: Mapping[str, Any] = said) -> Any:
        return None if of.get(key) is None else check(of[key], f"{what}, {key}", *bounds)

    gpu, runtime, group = part("gpu"), part("runtime"), part("cluster")
    gpus, ports = runtime.get("gpus"), runtime.get("ports") or []
    with border.fitting(f"{what}, runtime"):
        direct = part("direct", part("ssh")) or _ssh_port(ports)
        gpus_seen = None if gpus is None else len(gpus)
    return Pod(
        id=id,
        name=border.text(said.get("name"), f"{what}, name", 200),
        status=border.text(said.get("status"), f"{what}, status", 40),
        usd_per_hour=some("cost", border.number, 0, MOST_USD_PER_HOUR) or 0.0,
        gpu=some("id", border.text, 100, of=gpu),
        gpu_count=some("count", border.whole, 0, 1024, of=gpu) if gpu else 0,
        gpus_seen=gpus_seen,
        data_center=some("dataCenterId", border.text, 100),
        host=some("host", border.text, 253, of=direct),
        port=some("port", border.whole, 0, 65535, of=direct),
        user=some("username", border.text, 100, of=direct) or "root",
        created=unix_time(some("createdAt", border.text, 100)),
        started=some("startedAt", border.text, 100),
        up_s=(some("uptime", border.number, of=runtime) or 0.0) if runtime else None,
        volume_gb=some("size", border.size, of=part("persistent", part("mounts"))) or 0,
        cluster=some("id", border.identifier, of=group),
        rank=some("rank", border.whole, 0, 10_000, of=group),
        cuda=some("cudaVersion", border.text, 40),
    )


def cluster(values: Any) -> Cluster:
    """Convert a Cluster of the API's specification. Raises BadAnswer."""
    said = border.mapping(values, "RunPod: a cluster")
    id = border.identifier(said.get("id"), "RunPod: the id of a cluster")
    what = f"RunPod: cluster {id}"
    compute = border.mapping(said.get("compute"), f"{what}, compute")
    by_status = border.mapping(border.mapping(said.get("pods"), f"{what}, pods").get("byStatus"), f"{what}, byStatus")
    return Cluster(
        id=id,
        name=border.text(said.get("name"), f"{what}, name", 200),
        nodes=border.whole(compute.get("podCount"), f"{what}, podCount", 0, 10_000),
        gpu=border.text(compute.get("gpuTypeId"), f"{what}, gpuTypeId", 100),
        type=border.text(said.get("type"), f"{what}, type", 40),
        running=border.whole(by_status.get("RUNNING", 0), f"{what}, RUNNING", 0, 10_000),
        data_center=border.text(said.get("dataCenterId") or "", f"{what}, dataCenterId", 100) or None,
        created=unix_time(border.text(said.get("createdAt") or "", f"{what}, createdAt", 100)),
    )


def _ssh_port(ports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    for port in ports:
        if port.get("private") == 22 and port.get("public") and port.get("ip"):
            return {"host": port["ip"], "port": port["public"]}
    return {}


def listed_offers(found: object, cloud: str) -> list[Offer]:
    """Convert a catalogue. An entry that does not fit keeps its name, cannot be rented, and says why."""

    def instead(each: border.Unreadable) -> Offer:
        return unreadable_offer(each.name, each.why)

    return border.entries(
        found, "RunPod's catalogue of GPUs", lambda each: offer(each, cloud), instead, lambda each: each["id"]
    )


def listed_volumes(found: object, data_center: str) -> list[NetworkVolume]:
    """Convert a list of volumes. One that does not fit keeps its id and its name, and says why.

    `data_center`: the field with its data centre.
    """

    def make(each: Any) -> NetworkVolume:
        id = border.identifier(each["id"], "RunPod: the id of a volume")
        what = f"RunPod: volume {id}"
        return NetworkVolume(
            id,
            border.text(each.get("name"), f"{what}, name", 200),
            border.whole(each.get("size"), f"{what}, size", 0, 10**9),
            border.text(each.get(data_center), f"{what}, {data_center}", 100),
            None if each.get("type") is None else border.text(each["type"], f"{what}, type", 40),
        )

    def instead(each: border.Unreadable) -> NetworkVolume:
        return NetworkVolume(each.id, each.name, 0, "", fault=each.why)

    return border.entries(found, "RunPod's list of network volumes", make, instead)


def unreadable_offer(gpu: str, why: str) -> Offer:
    return Offer(gpu, 0.0, 0, why_not=f"its entry in the catalogue cannot be read: {why}", fault=why)


def offer(values: Any, cloud: str) -> Offer:
    gpu = border.text(values["id"], "RunPod: the id of a GPU", 100)
    what = f"RunPod: GPU {gpu}"
    stock = values.get("availability")
    centers = {
        border.text(each["id"], f"{what}, dataCenters", 100): each["availability"] != "NONE"
        for each in values.get("dataCenters") or []
    }
    return Offer(
        gpu=gpu,
        usd_per_gpu_hour=border.number(values["price"][cloud], f"{what}, price", 0, MOST_USD_PER_HOUR),
        max_count=border.whole(values["maxCount"][cloud], f"{what}, maxCount", 0, 1024) if values.get(cloud) else 0,
        has_stock=None if stock is None else stock != "NONE",
        data_centers=centers or None,
        memory_gib=border.number(values["memory"], f"{what}, memory", 0, 1e6) if values.get("memory") else None,
        title=border.text(values.get("name") or "", f"{what}, name", 100),
    )


def created(made: object, wanted: Wanted) -> Pod:
    """Convert GraphQL's answer to a creation, which has only the id. Raises Unclear: the pod may exist."""
    try:
        id = border.identifier(border.mapping(made, "a pod").get("id"), "RunPod: the id of a new pod")
    except BadAnswer:
        raise Unclear("RunPod's answer contains no pod") from None
    return Pod(id, wanted.name, "PROVISIONING", gpu=wanted.gpu)


def funds(told: Mapping[str, Any]) -> Funds | str:
    """Convert GraphQL's answer about the money of the account. Returns its reason if it reports no balance."""
    what = "RunPod: the account"
    mine = border.mapping(border.mapping(told.get("data") or {}, what).get("myself") or {}, what)
    if mine.get("clientBalance") is None:
        return errors_in(told) or "GraphQL reports no balance"
    limit = mine.get("spendLimit")
    return Funds(
        border.number(mine["clientBalance"], f"{what}, clientBalance", -1e12, 1e12),
        border.number(mine.get("currentSpendPerHr") or 0, f"{what}, currentSpendPerHr", 0, 1e9),
        None if limit is None else border.number(limit, f"{what}, spendLimit", 0, 1e12),
    )


def unix_time(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None
    except ValueError:
        return None
