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
from functools import cached_property, partial
from typing import Any
from urllib.parse import quote

import requests

from deploy import border
from deploy.errors import BadAnswer
from deploy.providers import network
from deploy.providers.rented import Key
from deploy.providers.runpod import answers, events, graphql
from deploy.providers.runpod.api import (
    BASE_URL,
    BASE_URL_VARIABLE,
    KINDS,
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
)
from deploy.providers.runpod.pod_request import Wanted, body_of, body_of_cluster
from deploy.providers.runpod.ratelimit import Limits, Pace
from deploy.providers.runpod.specification import GPU_SCHEMA, MEMORY_FIELD, fields_of
from deploy.shell.background import Work
from deploy.specs.trial import Funds

ANSWER_BYTES = 8 << 20
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
        self.ahead_s = 0.0
        self.policy = ""  # the limit of calls, as the newest answer names it
        self._session = requests.Session()
        self._session.auth = key.sign  # not a header, because ~/.netrc overrides one

    def create(self, wanted: Wanted) -> Pod:
        if wanted.bid_usd_per_gpu_hour is not None:
            return answers.created(self._graphql(graphql.body_of_spot(wanted)).get("podRentInterruptable"), wanted)
        body = body_of(wanted)
        if wanted.min_memory_gib and self._takes_memory:
            body["gpu"] = {**body["gpu"], MEMORY_FIELD: math.ceil(wanted.min_memory_gib / wanted.gpu_count)}
        return answers.pod(self._json("POST", "/v2/pods", body=body))

    def spot_prices(self, count: int, cloud: str) -> dict[str, float]:
        return graphql.spot_prices(self._graphql(graphql.body_of_prices(count, cloud)), cloud)

    def _graphql(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return graphql.data_of(self._json("POST", "/graphql", body=body))
        except ApiError as error:
            raise type(error)(self.key.mask(error.detail)) from None

    @cached_property
    def _takes_memory(self) -> bool:
        """Whether the live specification has the field for memory. v2 refuses fields that it does not know."""
        try:
            return MEMORY_FIELD in fields_of(self.specification(), GPU_SCHEMA)
        except ApiError:  # no specification there: the memory is checked after the start alone
            return False

    def get(self, pod_id: str) -> Pod:
        return answers.pod(self._json("GET", f"/v2/pods/{_safe(pod_id)}"))

    def pods(self) -> list[Pod]:
        found = self._json("GET", "/v2/pods", query={"includeClusterPods": "true"})
        return answers.listed_pods(found)

    def terminate(self, pod_id: str) -> None:
        self._send("DELETE", f"/v2/pods/{_safe(pod_id)}", urgent=True).close()

    def create_cluster(self, wanted: Wanted) -> Cluster:
        return answers.cluster(self._json("POST", "/v2/clusters", body=body_of_cluster(wanted)))

    def clusters(self) -> list[Cluster]:
        return answers.listed_clusters(self._json("GET", "/v2/clusters").get("clusters"))

    def cluster(self, cluster_id: str) -> Cluster:
        """Raises Gone when the cluster does not exist."""
        return answers.cluster(self._json("GET", f"/v2/clusters/{_safe(cluster_id)}"))

    def members(self, cluster_id: str) -> list[Pod]:
        """List the pods of a cluster. Raises Gone when the cluster does not exist."""
        found = answers.listed_pods(self._json("GET", f"/v2/clusters/{_safe(cluster_id)}/pods"))
        return [replace(each, cluster=cluster_id) for each in found]

    def end_cluster(self, cluster_id: str) -> None:
        self._send("DELETE", f"/v2/clusters/{_safe(cluster_id)}", urgent=True).close()

    def offers(
        self, gpus: Sequence[str], count: int, cloud: str, min_cuda: str | None, product: str = "POD"
    ) -> list[Offer]:
        """Return the whole catalogue, in one call."""
        del gpus
        asked = {"include": "AVAILABILITY", "product": product, "count": str(count), "cloud": cloud}
        found = self._json(
            "GET", "/v2/catalog/gpus", query={**asked, **({"minCudaVersion": min_cuda} if min_cuda else {})}
        )
        return answers.listed_offers(found.get("gpus"), cloud.lower())

    def data_center_of(self, volume: str) -> str:
        found = self._json("GET", f"/v2/network-volumes/{_safe(volume)}")
        return border.text(found.get("dataCenter"), f"RunPod: volume {volume}, dataCenter", 100)

    def volumes(self) -> list[NetworkVolume]:
        return answers.listed_volumes(self._json("GET", "/v2/network-volumes").get("networkVolumes"), "dataCenter")

    def log(self, pod_id: str, since: str | None, tail: int) -> Iterator[LogLine]:
        query, headers = {"since": since} if since else {"tail": str(tail)}, {"Accept": "text/event-stream"}
        answer = self._send("GET", f"/v2/pods/{_safe(pod_id)}/logs", query=query, headers=headers)
        # The answer may start late; once it has started, silence means that all of it was read.
        connection = getattr(answer.raw, "connection", None)
        if connection is not None and connection.sock is not None:
            connection.sock.settimeout(self.limits.log_idle_s)
        return _log_lines(answer, self.limits.log_s)

    def funds(self) -> Funds:
        """Ask GraphQL for the money of the account, which v2 does not report.

        Raises Forbidden without a balance, Unclear for one that is no number.
        """
        try:
            found = answers.funds(self._json("POST", "/graphql", body={"query": FUNDS}))
        except BadAnswer as error:
            raise Unclear(self.key.mask(error.message)) from None
        if isinstance(found, str):
            raise Forbidden(self.key.mask(found))
        return found

    def specification(self) -> dict[str, Any]:
        """Return the OpenAPI document of this server. Raises Gone if it publishes none."""
        return self._json("GET", "/v2/openapi.json")

    def _json(self, method: str, path: str, **about: Any) -> dict[str, Any]:
        what = f"{method} {path}"
        answer = self._send(method, path, **about)
        try:
            said = f"{what}: the answer {answer.status_code}"
            return border.document(body_of_answer(answer, self.limits.request_s), said, ANSWER_BYTES, odd=float)
        except BadAnswer as error:
            raise Unclear(error.message) from None
        except OSError as error:  # the connection broke while the answer came
            why = self.key.mask(network.in_words(error))
        raise Unclear(f"{what} at {self.base}: {why}")  # outside `except`: the cause holds the request

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        urgent: bool = False,
    ) -> requests.Response:
        """Return an answer whose body was not read yet."""
        self.pace.take(urgent=urgent)
        answer, lost = None, Unclear("")
        try:
            asked = partial(
                self._session.request, method, self.base + path, params=query, json=body, headers=headers, stream=True,
                timeout=(min(self.limits.connect_s, self.limits.request_s), self.limits.request_s),
                allow_redirects=False,
            )  # fmt: skip
            answer = Work(asked).result(2 * self.limits.request_s)
        except OSError as error:  # covers every network error of requests
            kind = Unreachable if network.was_never_sent(error) else Unclear
            lost = kind(f"{method} {path} at {self.base}: {self.key.mask(network.in_words(error))}")
        if answer is None:  # raised outside `except`, because the cause holds the request and its headers
            raise lost
        self._listen_to(answer.headers.get("RateLimit", ""))
        self.policy = answer.headers.get("RateLimit-Policy") or self.policy
        if answer.status_code >= 300:
            raise _refusal(answer, f"{method} {path}", self.key, self.limits.request_s)
        self.ahead_s = network.ahead_s(answer.headers.get("Date"), self.pace.clock.time(), self.ahead_s)
        return answer

    def _listen_to(self, rate_limit: str) -> None:
        """Apply a header such as `"minute";r=0;t=12, "hour";r=2800;t=1812`: r calls are left for t seconds."""
        for left, seconds in re.findall(r"\br=([0-9]{1,9});\s*t=([0-9]{1,6})\b", rate_limit[:1000]):
            if int(left) == 0:
                self.pace.hold(int(seconds))


def post(url: str, limit_s: float, **about: Any) -> requests.Response:
    """Post a request, and return its answer before its body is read. Raises OSError, also after 2 * `limit_s`."""
    asked = {**about, "stream": True, "timeout": limit_s, "allow_redirects": False}
    return Work(partial(requests.post, url, **asked)).result(2 * limit_s)


def _log_lines(answer: requests.Response, limit_s: float) -> Iterator[LogLine]:
    end = time.monotonic() + limit_s

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


def body_of_answer(answer: requests.Response, limit_s: float) -> bytes:
    """Read the body of an answer, and close it. One byte over ANSWER_BYTES ends it, so that its reader refuses it."""

    def read() -> bytes:
        data = bytearray()
        with answer:  # here: to close it elsewhere would wait for this read
            for chunk in answer.iter_content(1 << 16):
                data += chunk
                if len(data) > ANSWER_BYTES:
                    break
        return bytes(data)

    return Work(read).result(2 * limit_s)


def _refusal(answer: requests.Response, what: str, key: Key, limit_s: float) -> ApiError:
    try:
        problem = border.document(body_of_answer(answer, limit_s), what, ANSWER_BYTES)
        if "detail" not in problem:
            raise BadAnswer(what)
        told = problem["detail"]
        detail = border.text(told if isinstance(told, str) else "without an error message", what)
        listed = problem.get("errors")
        errors = [border.cut(str(each), 300) for each in listed[:20]] if isinstance(listed, list) else []
    except (BadAnswer, OSError):
        reason = border.text(answer.reason or "", "reason", 100)
        return Unclear(f"{what}: {answer.status_code} {reason} without an error message")
    detail, errors = key.mask(detail), [key.mask(each) for each in errors]
    if answer.status_code == 429:
        after = answer.headers.get("Retry-After", "")
        return TooMany(detail, float(after) if re.fullmatch("[0-9]{1,6}", after) else 5.0)
    kind = KINDS.get(answer.status_code, Unclear)
    return kind(detail if kind is not Unclear else f"{what}: {answer.status_code}: {detail}", errors)


def _safe(part: str) -> str:
    return quote(part, safe="")
