"""Interface to RunPod, the same for both of its APIs: a few verbs, plain values, one small family of errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from deploy.providers.runpod.pod_request import Wanted

BASE_URL_VARIABLE = "RUNPOD_API_BASE_URL"  # RunPod's own package reads it too; tests point it at their server
BASE_URL = "https://api.runpod.io"
SHOWS_S = 30.0  # in which the API may not know a new pod or cluster yet, which it bills all the same
# Statuses of pods that will not start by waiting. Any other status, even an unknown one, counts as alive.
UNREADABLE = "UNREADABLE"  # ours: an entry that does not fit, and that may bill
ENDED = frozenset({"EXITED", "ERROR", "TERMINATED", "DEAD"})


@dataclass(frozen=True)
class Pod:
    id: str
    name: str
    status: str
    usd_per_hour: float = 0.0
    gpu: str | None = None
    gpu_count: int | None = None  # as placed; None: the API does not report it
    gpus_seen: int | None = None  # as the running machine reports it
    memory_gib: float | None = None
    data_center: str | None = None
    host: str | None = None  # with port and user: the direct SSH address; None until it is published
    port: int | None = None
    user: str = "root"
    created: float | None = None  # Unix seconds; None: the API does not report it
    up_s: float | None = None  # since the container started; None: it has not started, or the API does not report it
    volume_gb: int = 0  # of its own volume, which bills while the pod is stopped; not of a network volume
    started: str | None = None  # when the container started, as the API's text; changes at each restart
    cluster: str | None = None  # id of its cluster
    rank: int | None = None  # in its cluster; None until it is assigned
    cuda: str | None = None  # newest version that its host's driver supports; None: the API does not report it
    fault: str | None = None  # why its entry in a list cannot be read; then only id, name and cluster may be known

    @property
    def is_alive(self) -> bool:
        return self.status not in ENDED

    @property
    def is_stopped(self) -> bool:
        """Whether the pod is stopped: its GPUs are released; its own volume is kept and bills."""
        return self.status == "EXITED"

    def __str__(self) -> str:
        about = [self.gpu or "no GPU", self.data_center, f"{self.usd_per_hour:.2f} USD an hour"]
        return f"pod {self.id} ({', '.join(filter(None, about))})"


@dataclass(frozen=True)
class Cluster:
    """Equal pods in one data centre, created and ended together. `members` lists the pods."""

    id: str
    name: str
    nodes: int  # number of pods at its creation
    gpu: str
    type: str = "TRAINING"
    running: int = 0  # number of pods that are RUNNING
    data_center: str | None = None
    created: float | None = None  # Unix seconds
    fault: str | None = None  # as in Pod

    @property
    def is_alive(self) -> bool:
        return True  # RunPod lists only living clusters

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
    has_stock: bool | None = None  # None: the API does not report it
    data_centers: Mapping[str, bool] | None = None  # id -> has stock; None: the API does not report it
    memory_gib: float | None = None  # of one GPU
    why_not: str = ""  # why it cannot be rented, beyond the stock
    title: str = ""  # a shorter name, as RunPod's pages show it
    fault: str | None = None  # why its entry in the catalogue cannot be read; then only the name is known

    @property
    def name(self) -> str:
        return self.gpu


@dataclass(frozen=True)
class NetworkVolume:
    id: str
    name: str
    gb: int
    data_center: str
    kind: str | None = None  # STANDARD or HIGH_PERFORMANCE; None: the API does not report it
    fault: str | None = None  # why its entry in the list cannot be read; then only id and name may be known


@dataclass(frozen=True)
class LogLine:
    text: str
    source: str  # container, or system: messages of the host, such as the image pull


class Api(Protocol):
    """The verbs of both APIs; with v2, each is one request. A verb never retries, and raises ApiError on failure."""

    has_log: bool
    ahead_s: float  # of the API's clock to this computer's, in whole minutes; 0 until it has answered
    names_gpus_by_id: bool  # False: a pod has the display name instead

    def create(self, wanted: Wanted) -> Pod: ...

    def get(self, pod_id: str) -> Pod:
        """Raises Gone when the pod does not exist."""

    def pods(self) -> list[Pod]:
        """List all pods, including those of clusters if the API has clusters."""

    def terminate(self, pod_id: str) -> None: ...

    def offers(
        self, gpus: Sequence[str], count: int, cloud: str, min_cuda: str | None, product: str = "POD"
    ) -> list[Offer]:
        """Return the catalogue, at least for these GPUs. The stock depends on the product."""

    def spot_prices(self, count: int, cloud: str) -> Mapping[str, float]:
        """Return GPU -> US dollars an hour for one GPU of a spot pod with `count` of them."""

    def data_center_of(self, volume: str) -> str: ...

    def volumes(self) -> list[NetworkVolume]:
        """List every network volume of the account."""

    def log(self, pod_id: str, since: str | None, tail: int) -> Iterator[LogLine]:
        """Stream a pod's log from a time on or, without one, its last lines. The stream ends after some silence."""


class ApiError(Exception):
    """`may_exist`: an earlier request for the same thing got no answer, so it may have been carried out."""

    may_exist = False

    def __init__(self, detail: str, errors: Sequence[str] = ()) -> None:
        super().__init__("; ".join([detail, *errors]))
        self.detail = detail
        self.errors = tuple(errors)


class BadRequest(ApiError):
    """413 or 422: the request breaks the contract, and a retry fails too."""


class Refused(ApiError):
    """400: a broken rule, or no capacity for this candidate. At best the text shows which."""


class Forbidden(ApiError):
    """403: this account may not do it."""


class WrongKey(ApiError):
    """401: the API key is not accepted."""


class NoBalance(ApiError):
    """402: the balance is too low."""


class Gone(ApiError):
    """404: it does not exist (any more)."""


class Conflict(ApiError):
    """409: not possible in the pod's present state."""


class TooMany(ApiError):
    """429: nothing was done; retry after `retry_after_s`."""

    def __init__(self, detail: str, retry_after_s: float = 5.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unclear(ApiError):
    """No answer, a 5xx or an unreadable answer: the request may or may not have been carried out."""


class Unreachable(Unclear):
    """There was no connection: nothing was sent, and nothing was done."""


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
