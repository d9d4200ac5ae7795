"""Client for RunPod's REST API v2.

It uses `requests` rather than the standard library. `requests` is installed already (RunPod's and Docker's packages
depend on it), brings certificates that Python on macOS and Windows may lack, and applies the user's proxies. The other
client uses it too, so both work or fail in the same networks.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

import requests

from deploy import border
from deploy.providers import network
from deploy.providers.rented import Key
from deploy.providers.runpod import events, graphql
from deploy.providers.runpod.api import (
    BASE_URL,
    BASE_URL_VARIABLE,
    KINDS,
    UNREADABLE,
    ApiError,
    Cluster,
    Forbidden,
    LogLine,
    NetworkVolume,
    Offer,
    Pod,
    TooMany,
    Unclear,
    Unreachable,
    Wanted,
)
from deploy.providers.runpod.bodies import body_of, body_of_cluster
from deploy.providers.runpod.ratelimit import Limits, Pace
from deploy.providers.runpod.specification import GPU_SCHEMA, MEMORY_FIELD, fields_of
from deploy.specs.trial import Funds

MOST_USD_PER_HOUR = 100_000.0  # a higher price is a wrong answer
FUNDS = "query { myself { clientBalance currentSpendPerHr spendLimit } }"


class RestApi:
    """Client for API v2. It has a pod's log, and so its host keys; only the account's API key can read the log."""

    has_log = True
    names_gpus_by_id = True

    def __init__(self, key: Key, pace: Pace, limits: Limits, environment: Mapping[str, str] = os.environ) -> None:
        self.base = (environment.get(BASE_URL_VARIABLE) or BASE_URL).rstrip("/")
        self.key = key
        self.pace = pace
        self.limits = limits
        self.policy = ""  # the limit of calls, as the newest answer names it
        self._has_memory_field: bool | None = None  # None: not asked yet
        self._session = requests.Session()
        self._session.auth = key.sign  # not a header, because ~/.netrc overrides one

    def create(self, wanted: Wanted) -> Pod:
        if wanted.bid_usd_per_gpu_hour is not None:
            return self._rent_spot(wanted)
        body = body_of(wanted)
        if wanted.min_memory_gib and self._takes_memory():
            body["gpu"] = {**body["gpu"], MEMORY_FIELD: math.ceil(wanted.min_memory_gib / wanted.gpu_count)}
        return _pod(self._json("POST", "/v2/pods", body=body))

    def _rent_spot(self, wanted: Wanted) -> Pod:
        made = self._graphql(graphql.body_of_spot(wanted)).get("podRentInterruptable")
        if not isinstance(made, dict) or not made.get("id"):
            raise Unclear("RunPod's answer contains no pod")
        return Pod(id=str(made["id"]), name=wanted.name, status="PROVISIONING", gpu=wanted.gpu)

    def spot_prices(self, count: int, cloud: str) -> dict[str, float]:
        return graphql.spot_prices(self._graphql(graphql.body_of_prices(count, cloud)), cloud)

    def _graphql(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return graphql.data_of(self._json("POST", "/graphql", body=body))
        except ApiError as error:
            raise type(error)(self.key.mask(error.detail)) from None

    def _takes_memory(self) -> bool:
        """Return whether the live specification has the field for memory. v2 refuses fields that it does not know."""
        if self._has_memory_field is None:
            try:
                self._has_memory_field = MEMORY_FIELD in fields_of(self.specification(), GPU_SCHEMA)
            except ApiError:  # no specification there: the memory is checked after the start alone
                self._has_memory_field = False
        return self._has_memory_field

    def get(self, pod_id: str) -> Pod:
        return _pod(self._json("GET", f"/v2/pods/{_safe(pod_id)}"))

    def pods(self) -> list[Pod]:
        found = self._json("GET", "/v2/pods", query={"includeClusterPods": "true"})
        return _listed_pods(found)

    def terminate(self, pod_id: str) -> None:
        self._send("DELETE", f"/v2/pods/{_safe(pod_id)}", urgent=True)

    def create_cluster(self, wanted: Wanted) -> Cluster:
        return _cluster(self._json("POST", "/v2/clusters", body=body_of_cluster(wanted)))

    def clusters(self) -> list[Cluster]:
        found = self._json("GET", "/v2/clusters").get("clusters")
        return border.entries(found, "RunPod's list of clusters", _cluster, _unreadable_cluster)

    def cluster(self, cluster_id: str) -> Cluster:
        return _cluster(self._json("GET", f"/v2/clusters/{_safe(cluster_id)}"))

    def members(self, cluster_id: str) -> list[Pod]:
        found = _listed_pods(self._json("GET", f"/v2/clusters/{_safe(cluster_id)}/pods"))
        return [replace(each, cluster=cluster_id) for each in found]

    def end_cluster(self, cluster_id: str) -> None:
        self._send("DELETE", f"/v2/clusters/{_safe(cluster_id)}", urgent=True)

    def offers(
        self, gpus: Sequence[str], count: int, cloud: str, min_cuda: str | None, product: str = "POD"
    ) -> list[Offer]:
        """Return the whole catalogue, in one call."""
        del gpus
        asked = {"include": "AVAILABILITY", "product": product, "count": str(count), "cloud": cloud}
        found = self._json(
            "GET", "/v2/catalog/gpus", query={**asked, **({"minCudaVersion": min_cuda} if min_cuda else {})}
        )
        with border.fitting("RunPod's catalogue of GPUs"):
            return [_offer(each, cloud.lower()) for each in found["gpus"]]

    def data_center_of(self, volume: str) -> str:
        found = self._json("GET", f"/v2/network-volumes/{_safe(volume)}")
        return border.text(found.get("dataCenter"), f"RunPod: volume {volume}, dataCenter", 100)

    def volumes(self) -> list[NetworkVolume]:
        found = self._json("GET", "/v2/network-volumes")
        with border.fitting("RunPod's list of network volumes"):
            return [
                NetworkVolume(
                    str(each["id"]), str(each["name"]), int(each["size"]), str(each["dataCenter"]), each["type"]
                )
                for each in found["networkVolumes"]
            ]

    def log(
        self, pod_id: str, since: str | None, cursor: str | None, tail: int, *, live: bool = False
    ) -> Iterator[LogLine]:
        query = {"since": since} if since else {"tail": str(tail)}
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": cursor} if cursor else {})}
        answer = self._send("GET", f"/v2/pods/{_safe(pod_id)}/logs", query=query, headers=headers, stream=True)
        # The answer may start late; once it has started, silence means that all of it was read.
        connection = getattr(answer.raw, "connection", None)
        if connection is not None and connection.sock is not None:
            connection.sock.settimeout(self.limits.live_idle_s if live else self.limits.log_idle_s)
        return _log_lines(answer, None if live else self.limits.log_s)

    def funds(self) -> Funds:
        """Ask GraphQL for the money of the account, which v2 does not report.

        Raises Forbidden without a balance, Unclear for one that is no number.
        """
        told = self._json("POST", "/graphql", body={"query": FUNDS})
        mine = (told.get("data") or {}).get("myself") or {}
        if mine.get("clientBalance") is None:
            reasons = [str(each.get("message", each)) for each in told.get("errors") or [{}] if isinstance(each, dict)]
            raise Forbidden(self.key.mask("; ".join(filter(None, reasons)) or "GraphQL reports no balance"))
        limit = mine.get("spendLimit")
        try:
            numbers = float(mine["clientBalance"]), float(mine.get("currentSpendPerHr") or 0)
            return Funds(*numbers, None if limit is None else float(limit))
        except (TypeError, ValueError, OverflowError):
            raise Unclear("GraphQL reports a balance that is no number") from None

    def specification(self) -> dict[str, Any]:
        """Return the OpenAPI document of this server. Raises Gone if it publishes none."""
        return self._json("GET", "/v2/openapi.json")

    def _json(self, method: str, path: str, **about: Any) -> dict[str, Any]:
        answer = self._send(method, path, **about)
        try:
            values = answer.json()
        except (ValueError, RecursionError):
            raise Unclear(f"{method} {path}: {answer.status_code} without JSON") from None
        if not isinstance(values, dict):
            raise Unclear(f"{method} {path}: {answer.status_code} with unexpected JSON")
        return values

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        urgent: bool = False,
    ) -> requests.Response:
        self.pace.take(urgent=urgent)
        answer, lost = None, Unclear("")
        try:
            answer = self._session.request(
                method, self.base + path, params=query, json=body, headers=headers, stream=stream,
                timeout=(min(self.limits.connect_s, self.limits.request_s), self.limits.request_s),
                allow_redirects=False,
            )  # fmt: skip
        except OSError as error:  # covers every network error of requests
            kind = Unreachable if network.was_never_sent(error) else Unclear
            lost = kind(f"{method} {path} at {self.base}: {self.key.mask(network.in_words(error))}")
        if answer is None:  # raised outside `except`, because the cause holds the request and its headers
            raise lost
        self._listen_to(answer.headers.get("RateLimit", ""))
        self.policy = answer.headers.get("RateLimit-Policy") or self.policy
        if answer.status_code >= 300:
            with answer:
                raise _refusal(answer, f"{method} {path}", self.key)
        return answer

    def _listen_to(self, rate_limit: str) -> None:
        """Apply a header such as `"minute";r=0;t=12, "hour";r=2800;t=1812`: r calls are left for t seconds."""
        for left, seconds in re.findall(r"r=(\d+);\s*t=(\d+)", rate_limit):
            if int(left) == 0:
                self.pace.hold(int(seconds))


def _log_lines(answer: requests.Response, limit_s: float | None) -> Iterator[LogLine]:
    end = time.monotonic() + (float("inf") if limit_s is None else limit_s)

    def chunks() -> Iterator[bytes]:
        # One byte at a time: a larger size may block until that much has arrived.
        for chunk in answer.iter_content(chunk_size=1):
            yield chunk
            if time.monotonic() > end:
                return

    with answer:
        try:
            yield from events.parse(chunks())
        except OSError:  # silence or a cut: both end this stream
            return


def _listed_pods(found: Mapping[str, Any]) -> list[Pod]:
    """Convert a list of pods. One that does not fit keeps its id, its name and its cluster, and says why."""

    def instead(each: border.Unreadable) -> Pod:
        return Pod(each.id, each.name, UNREADABLE, fault=each.why, cluster=clusters.get(each.id))

    pods = found.get("pods")
    told = [each for each in pods if isinstance(each, dict)] if isinstance(pods, list) else []
    groups = {str(each.get("id")): each["cluster"] for each in told if isinstance(each.get("cluster"), dict)}
    clusters = {id: group["id"] for id, group in groups.items() if isinstance(group.get("id"), str)}
    return border.entries(pods, "RunPod's list of pods", _pod, instead)


def _unreadable_cluster(each: border.Unreadable) -> Cluster:
    return Cluster(each.id, each.name, 0, "", fault=each.why)


def _pod(values: Any) -> Pod:
    """Convert a Pod of the API's specification. v2 does not report a machine's memory. Raises BadAnswer."""
    said = border.mapping(values, "RunPod: a pod")
    id = border.identifier(said.get("id"), "RunPod: the id of a pod")
    what = f"RunPod: pod {id}"

    def part(key: str, of: Mapping[str, Any] = said) -> dict[str, Any]:
        return border.mapping(of.get(key) or {}, f"{what}, {key}")

    def some(key: str, check: Any, *bounds: float, of: Mapping[str, Any] = said) -> Any:
        return None if of.get(key) is None else check(of[key], f"{what}, {key}", *bounds)

    gpu, runtime, cluster = part("gpu"), part("runtime"), part("cluster")
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
        cluster=some("id", border.identifier, of=cluster),
        rank=some("rank", border.whole, 0, 10_000, of=cluster),
        cuda=some("cudaVersion", border.text, 40),
    )


def _cluster(values: Any) -> Cluster:
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


def _offer(values: Mapping[str, Any], cloud: str) -> Offer:
    stock = values.get("availability")
    centers = {each["id"]: each["availability"] != "NONE" for each in values.get("dataCenters") or []}
    return Offer(
        gpu=str(values["id"]),
        usd_per_gpu_hour=float(values["price"][cloud]),
        max_count=int(values["maxCount"][cloud]) if values.get(cloud) else 0,
        has_stock=None if stock is None else stock != "NONE",
        data_centers=centers or None,
        memory_gib=float(values["memory"]) if values.get("memory") else None,
        title=str(values.get("name") or ""),
    )


def unix_time(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None
    except ValueError:
        return None


def _refusal(answer: requests.Response, what: str, key: Key) -> ApiError:
    try:
        problem = answer.json()
        detail, errors = str(problem["detail"]), [str(each) for each in problem.get("errors") or []]
    except (ValueError, KeyError, TypeError, OSError):
        return Unclear(f"{what}: {answer.status_code} {answer.reason} without an error message")
    told = key.mask(detail), [key.mask(each) for each in errors]
    if answer.status_code == 429:
        after = answer.headers.get("Retry-After", "")
        return TooMany(told[0], float(after) if after.isdigit() else 5.0)
    kind = KINDS.get(answer.status_code, Unclear)
    return kind(told[0] if kind is not Unclear else f"{what}: {answer.status_code}: {told[0]}", told[1])


def _safe(part: str) -> str:
    return quote(part, safe="")
