"""What the provider asks of RunPod, whichever API answers: few verbs, plain values, one small family of refusals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

BASE_URL_VARIABLE = "RUNPOD_API_BASE_URL"  # as RunPod's own package reads it; a test's server stands behind it
BASE_URL = "https://api.runpod.io"
# What will not come back by waiting. Any other word, also one that RunPod invents tomorrow, is a pod that lives.
ENDED = frozenset({"EXITED", "ERROR", "TERMINATED", "DEAD"})


@dataclass(frozen=True)
class Wanted:
    """One pod, or a cluster of equal ones, of one GPU type: the API places exactly that, the fallbacks are ours."""

    name: str
    image: str
    gpu: str
    gpu_count: int
    public_key: str
    cloud: str = "SECURE"
    data_center: str | None = None
    min_cuda: str | None = None
    disk_gib: int = 40
    volume: str | None = None
    volume_path: str = "/workspace"
    registry: str | None = None
    nodes: int = 1  # how many pods; more than one is a cluster


@dataclass(frozen=True)
class Pod:
    id: str
    name: str
    status: str
    usd_per_hour: float = 0.0
    gpu: str | None = None
    gpu_count: int | None = None  # as placed; None where the API does not say
    gpus_seen: int | None = None  # as the running machine reports it
    memory_gib: float | None = None
    data_center: str | None = None
    host: str | None = None  # with port and user: where SSH is reached directly; None until it is published
    port: int | None = None
    user: str = "root"
    created: float | None = None  # Unix seconds; None where the API does not say
    up_s: float | None = None  # since the container started; None where it did not yet, or the API does not say
    volume_gb: int = 0  # of its own, which bills while it is stopped; not of a network volume
    started: str | None = None  # when the container started, in the API's own words: another one after a restart
    cluster: str | None = None  # id of the cluster that it belongs to
    rank: int | None = None  # its place in that; None until it is given one
    cuda: str | None = None  # the newest that its host's driver has; None where the API does not say

    @property
    def is_alive(self) -> bool:
        return self.status not in ENDED

    @property
    def is_stopped(self) -> bool:
        """Its GPUs are given back, its own volume is kept, and costs."""
        return self.status == "EXITED"

    def __str__(self) -> str:
        about = [self.gpu or "no GPU", self.data_center, f"{self.usd_per_hour:.2f} USD an hour"]
        return f"pod {self.id} ({', '.join(filter(None, about))})"


@dataclass(frozen=True)
class Cluster:
    """Equal pods in one data centre, made and ended together; the pods themselves are asked for separately."""

    id: str
    name: str
    nodes: int  # how many it was made with
    gpu: str
    type: str = "TRAINING"
    running: int = 0  # how many of them are RUNNING
    data_center: str | None = None
    created: float | None = None  # Unix seconds

    @property
    def is_alive(self) -> bool:
        return True  # there is no other kind in the list

    @property
    def status(self) -> str:
        return "RUNNING" if self.running == self.nodes else "STARTING"

    def __str__(self) -> str:
        about = [f"{self.nodes} x {self.gpu}", self.data_center]
        return f"cluster {self.id} ({', '.join(filter(None, about))})"


@dataclass(frozen=True)
class Offer:
    """A GPU type in the catalogue."""

    gpu: str
    usd_per_gpu_hour: float
    max_count: int
    has_stock: bool | None = None  # None: the API does not say
    data_centers: Mapping[str, bool] | None = None  # id -> has stock; None: the API does not say
    memory_gib: float | None = None  # of one GPU


@dataclass(frozen=True)
class NetworkVolume:
    id: str
    name: str
    gb: int
    data_center: str
    kind: str | None = None  # STANDARD or HIGH_PERFORMANCE; None: the API does not say


@dataclass(frozen=True)
class LogLine:
    text: str
    source: str = "container"  # or system: the host's own words, such as the pull of the image
    ts: str = ""  # RFC 3339
    id: str = ""


class Api(Protocol):
    """Each verb is one request, and raises what went wrong as an ApiError. None of them repeats anything."""

    has_log: bool
    names_gpus_by_id: bool  # else a pod tells the name that people read

    def create(self, wanted: Wanted) -> Pod: ...

    def get(self, pod_id: str) -> Pod:
        """Gone when there is no such pod."""

    def pods(self) -> list[Pod]:
        """Those of clusters too, where the API knows clusters."""

    def terminate(self, pod_id: str) -> None: ...

    def offers(
        self, gpus: Sequence[str], count: int, cloud: str, min_cuda: str | None, product: str = "POD"
    ) -> list[Offer]:
        """The catalogue, at least what it says of these GPUs; the stock is another one for each product."""

    def data_center_of(self, volume: str) -> str: ...

    def volumes(self) -> list[NetworkVolume]:
        """Every network volume of the account."""

    def log(
        self, pod_id: str, since: str | None, cursor: str | None, tail: int, *, live: bool = False
    ) -> Iterator[LogLine]:
        """The stream of a pod's log, which ends when nothing comes for a while; a live one waits longer for it."""


class ClusterApi(Api, Protocol):
    """Instant Clusters. A pod of one cannot be ended alone: pods of clusters are made and ended with them."""

    def create_cluster(self, wanted: Wanted) -> Cluster: ...

    def clusters(self) -> list[Cluster]: ...

    def cluster(self, cluster_id: str) -> Cluster:
        """Gone when there is no such cluster."""

    def members(self, cluster_id: str) -> list[Pod]:
        """Gone when there is no such cluster."""

    def end_cluster(self, cluster_id: str) -> None: ...


class ApiError(Exception):
    def __init__(self, detail: str, errors: Sequence[str] = ()) -> None:
        super().__init__("; ".join([detail, *errors]))
        self.detail = detail
        self.errors = tuple(errors)


class BadRequest(ApiError):
    """422: the request breaks the contract, and will each time."""


class Refused(ApiError):
    """400: a rule broken, or no room for this candidate; only the text tells, if anything does."""


class Forbidden(ApiError):
    """403: not for this account."""


class WrongKey(ApiError):
    """401."""


class NoBalance(ApiError):
    """402."""


class Gone(ApiError):
    """404."""


class Conflict(ApiError):
    """409: not in the pod's present state."""


class TooMany(ApiError):
    """429: nothing was done; ask again after so many seconds."""

    def __init__(self, detail: str, retry_after_s: float = 5.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unclear(ApiError):
    """No answer, a 5xx, or something that is not an answer: it may or may not have been done."""


class Unreachable(Unclear):
    """There was no connection, so nothing was asked and nothing was done."""


KINDS: Mapping[int, type[ApiError]] = {
    400: Refused,
    401: WrongKey,
    402: NoBalance,
    403: Forbidden,
    404: Gone,
    409: Conflict,
    413: BadRequest,
    422: BadRequest,
}
