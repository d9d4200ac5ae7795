"""Client for the GraphQL functions of RunPod's own package, as of 1.12: the fallback if v2 changes.

It offers less than v2. It has no log, so host keys are unknown and the first connection to each pod pins them. It has
no stock in the catalogue, no registry credentials and no minimum CUDA version, only a list of the allowed ones. The
package pastes values into the query unescaped, so values that would change the query are refused. It is imported on
first use, because the import takes long.

The package limits neither how long an answer takes nor its size, so its requests go through `Bounded`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, WrongUse
from deploy.providers import network
from deploy.providers.rented import Key
from deploy.providers.runpod import answers
from deploy.providers.runpod.api import (
    UNREADABLE,
    ApiError,
    Gone,
    LogLine,
    NetworkVolume,
    Offer,
    Pod,
    Unclear,
    Unreachable,
    WrongKey,
)
from deploy.providers.runpod.graphql import error_of, versions_from
from deploy.providers.runpod.pod_request import Wanted
from deploy.providers.runpod.ratelimit import Limits, Pace
from deploy.providers.runpod.rest import ANSWER_BYTES, body_of_answer, post

UNAUTHORIZED = 401


@dataclass(frozen=True)
class Answer:
    """What the package reads of an answer."""

    status_code: int
    value: dict[str, Any]

    def json(self) -> dict[str, Any]:
        return self.value


@dataclass(frozen=True)
class Bounded:
    """Takes the place of `requests` in the package's `api.graphql`. Each answer has limits of time, size and depth."""

    limit_s: float  # for the headers, and for the body

    def post(self, url: str, **about: Any) -> Answer:
        """Post a request. Raises OSError if the answer does not end in time, BadAnswer for one that is not usable."""
        answer = post(url, self.limit_s, **about)
        if answer.status_code == UNAUTHORIZED:
            answer.close()
            return Answer(UNAUTHORIZED, {})
        said = f"RunPod's answer {answer.status_code}"
        return Answer(
            answer.status_code, border.document(body_of_answer(answer, self.limit_s), said, ANSWER_BYTES, odd=float)
        )


class SdkApi:
    """Client for RunPod's package. It does not report when a pod was created; the laptop's note does."""

    has_log = False
    ahead_s = 0.0  # it reports no times
    names_gpus_by_id = False

    def __init__(self, key: Key, pace: Pace, limits: Limits) -> None:
        self.key = key
        self.pace = pace
        self.limits = limits

    def create(self, wanted: Wanted) -> Pod:
        """Create a pod. Raises WrongUse for options that only v2 has, Unclear for an answer without a pod."""
        if wanted.registry:
            raise WrongUse("api: sdk does not support registry credentials", next_command="set api: v2")
        values = {
            "name": wanted.name,
            "image_name": wanted.image,
            "gpu_type_id": wanted.gpu,
            "cloud_type": wanted.cloud,
            "data_center_id": wanted.data_center,
            "ports": "22/tcp",
            "env": wanted.env,
            "docker_args": wanted.args,
            "network_volume_id": wanted.volume,
            "volume_mount_path": wanted.volume_path,
            "allowed_cuda_versions": versions_from(wanted.min_cuda) if wanted.min_cuda else None,
        }
        refuse_unsafe(values)
        made = self._call(
            # It makes two calls; the first checks that the GPU exists.
            lambda sdk: sdk.create_pod(
                **values, gpu_count=wanted.gpu_count, container_disk_in_gb=wanted.disk_gib, start_ssh=False
            ),
            calls=2,
        )
        return answers.created(made, wanted)

    def get(self, pod_id: str) -> Pod:
        """Return a pod. Raises Gone if it does not exist."""
        refuse_unsafe({"id": pod_id})
        values = self._call(lambda sdk: sdk.get_pod(pod_id, api_key=self.key.reveal()))
        if values is None:
            raise Gone(f"pod {pod_id} not found")
        with border.fitting(f"RunPod: pod {pod_id}"):
            return self._pod(values)

    def pods(self) -> list[Pod]:
        found = self._call(lambda sdk: sdk.get_pods(api_key=self.key.reveal()))
        return border.entries(found, "RunPod's list of pods", self._pod, _unreadable)

    def terminate(self, pod_id: str) -> None:
        """End a pod, and look whether it has ended. Raises Unclear if not."""
        refuse_unsafe({"id": pod_id})
        self._call(lambda sdk: sdk.terminate_pod(pod_id), urgent=True)
        # terminate_pod ignores its answer: a refusal without GraphQL errors, such as a 429, would pass for success.
        left = self._call(lambda sdk: sdk.get_pod(pod_id, api_key=self.key.reveal()), urgent=True)
        if left and left.get("desiredStatus") != "TERMINATED":
            raise Unclear(f"pod {pod_id} still exists")

    def offers(
        self, gpus: Sequence[str], count: int, cloud: str, min_cuda: str | None, product: str = "POD"
    ) -> list[Offer]:
        """Return offers at list prices, with one call per GPU. Stock is not reported."""
        del min_cuda, product
        found = []
        for gpu in gpus:
            refuse_unsafe({"gpus": gpu})
            try:
                values = self._call(lambda sdk: sdk.get_gpu(gpu, count, api_key=self.key.reveal()))  # noqa: B023 - called at once
            except Gone:
                continue
            try:
                with border.fitting(f"RunPod: GPU {gpu}"):
                    found.append(_offer(gpu, values, cloud.lower()))
            except BadAnswer as error:
                found.append(answers.unreadable_offer(gpu, error.message))
        return found

    def spot_prices(self, count: int, cloud: str) -> dict[str, float]:
        """Raise WrongUse: this API has no spot pods."""
        del count, cloud
        raise WrongUse("api: sdk does not support spot: true", next_command="set api: v2")

    def data_center_of(self, volume: str) -> str:
        """Return the data centre of a network volume.

        Raises Gone if it does not exist, BadAnswer if its entry cannot be read.
        """
        for each in self.volumes():
            if each.id == volume and each.fault:
                raise BadAnswer(each.fault)
            if each.id == volume:
                return each.data_center
        raise Gone(f"network volume {volume} not found")

    def volumes(self) -> list[NetworkVolume]:
        """List the network volumes. Their kind, which decides the price, is not reported."""
        found = self._call(lambda sdk: sdk.get_user(api_key=self.key.reveal())["networkVolumes"]) or []
        return answers.listed_volumes(found, "dataCenterId")

    def log(self, pod_id: str, since: str | None, tail: int) -> Iterator[LogLine]:
        del pod_id, since, tail
        return iter(())

    def _pod(self, values: dict[str, Any]) -> Pod:
        runtime = values.get("runtime")
        ports = (runtime or {}).get("ports") or []
        ssh: dict[str, Any] = next((each for each in ports if each["privatePort"] == 22 and each.get("isIpPublic")), {})
        status = border.text(values["desiredStatus"], "RunPod: the status of a pod", 40)
        id = border.identifier(values["id"], "RunPod: the id of a pod")
        what = f"RunPod: pod {id}"

        def some(key: str, check: Any, *bounds: float, of: dict[str, Any] = values) -> Any:
            return None if of.get(key) is None else check(of[key], f"{what}, {key}", *bounds)

        return Pod(
            id=id,
            name=border.text(values["name"], f"{what}, name", 200),
            status="STARTING" if status == "RUNNING" and runtime is None else status,
            usd_per_hour=some("costPerHr", border.number, 0, answers.MOST_USD_PER_HOUR) or 0.0,
            gpu=some("gpuDisplayName", border.text, 100, of=values.get("machine") or {}),
            gpu_count=some("gpuCount", border.whole, 0, 1024),
            memory_gib=some("memoryInGb", border.number, 0, 1e6) or None,
            host=some("ip", border.text, 253, of=ssh),
            port=some("publicPort", border.whole, 0, 65535, of=ssh),
            up_s=some("uptimeSeconds", border.number, -1e11, 1e11),
            volume_gb=int(some("volumeInGb", border.number, 0, 1e9) or 0),
        )

    def _call(self, ask: Callable[[Any], Any], *, calls: int = 1, urgent: bool = False) -> Any:
        runpod = _package()
        from runpod.api import graphql
        from runpod.error import AuthenticationError, QueryError

        self.pace.take(calls, urgent=urgent)
        graphql.requests = Bounded(self.limits.request_s)
        runpod.api_key = self.key.reveal()  # not every function takes the key as an argument
        problem: ApiError
        try:
            return ask(runpod)
        except AuthenticationError:
            problem = WrongKey("RunPod does not know the API key")
        except QueryError as error:
            problem = error_of(self.key.mask(str(error.message)))
        except BadAnswer as error:  # an HTML page, or too much: the package checks no status but 401
            problem = Unclear(self.key.mask(error.message))
        except (OSError, LookupError, TypeError, AttributeError) as error:  # no network, or JSON without the field
            kind = Unreachable if network.was_never_sent(error) else Unclear
            problem = kind(f"RunPod's API gave no valid answer: {self.key.mask(_lost(error))}")
        except ValueError as error:  # no such GPU
            problem = Gone(self.key.mask(str(error)))
        raise problem  # raised outside `except`, because the cause holds the request and the answer


def _package() -> Any:
    """Import RunPod's package, but let it not look up the name of this processor, which nothing here shows.

    That takes two thirds of the import's seconds, and other processes.
    """
    import cpuinfo

    look_up = cpuinfo.get_cpu_info
    cpuinfo.get_cpu_info = lambda: {"brand_raw": "not looked up"}
    try:
        import runpod
    finally:
        cpuinfo.get_cpu_info = look_up
    return runpod


def _offer(gpu: str, values: dict[str, Any], cloud: str) -> Offer:
    what = f"RunPod: GPU {gpu}"
    most = border.whole(values.get("maxGpuCount") or 0, f"{what}, maxGpuCount", 0, 1024)
    return Offer(
        gpu,
        border.number(values.get(f"{cloud}Price") or 0, f"{what}, {cloud}Price", 0, answers.MOST_USD_PER_HOUR),
        most if values.get(f"{cloud}Cloud") else 0,
        memory_gib=border.number(values.get("memoryInGb") or 0, f"{what}, memoryInGb", 0, 1e6) or None,
        title=border.text(values.get("displayName") or "", f"{what}, displayName", 100),
    )


def _unreadable(each: border.Unreadable) -> Pod:
    return Pod(each.id, each.name, UNREADABLE, fault=each.why)


def refuse_unsafe(values: dict[str, Any]) -> None:
    """Raise WrongUse for text that would end or break the query string it is pasted into."""
    for name, value in values.items():
        several = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for text in several:
            if isinstance(text, str) and re.search(r'["\\\x00-\x1f\x7f]', text):
                raise WrongUse(
                    f"{name}: {text!r} has a quote, a backslash or a line end, which api: sdk does not support"
                )


def _lost(error: Exception) -> str:
    """Describe why there is no usable answer."""
    if isinstance(error, OSError):
        return network.in_words(error)
    return f"the answer has an unexpected format ({type(error).__name__})"
