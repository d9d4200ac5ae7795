"""What only RunPod's GraphQL API has: spot pods, their prices, and the meaning of its error texts. Pure, no I/O.

v2 can read and end a spot pod, but not request one. RunPod's documentation has not described spot pods since May 2026,
and it announces the end of GraphQL for early 2027. The fields are those of RunPod's GraphQL specification; values are
sent as variables, so that no text can change the query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deploy import border
from deploy.errors import WrongUse
from deploy.providers.runpod.api import ApiError, BadRequest, Forbidden, Gone, NoBalance, Refused, TooMany, Unclear
from deploy.providers.runpod.pod_request import Wanted

# GraphQL always answers 200: only the text of an error shows what failed.
SENTENCES: Sequence[tuple[str, type[ApiError]]] = (
    (r"too many requests|rate limit", TooMany),
    (r"something went wrong|internal server error|timed? ?out|try again later", Unclear),
    (r"balance|insufficient funds|add (more )?funds|spend(ing)? limit", NoBalance),
    (r"pod .*not found|not found.* pod|pod does not exist", Gone),
    (r"forbidden|not authori[sz]ed|no access|access denied", Forbidden),
    (
        r"syntax error|cannot query field|is not defined by|unknown argument|expected (value|type)|required type",
        BadRequest,
    ),
)
NEWEST_CUDA = (13, 9)
PRICES = """
query Spot($price: GpuLowestPriceInput) {
  gpuTypes { id secureSpotPrice communitySpotPrice lowestPrice(input: $price) { minimumBidPrice } }
}
"""
RENT = "mutation Spot($pod: PodRentInterruptableInput!) { podRentInterruptable(input: $pod) { id } }"


def error_of(sentence: str) -> ApiError:
    kind = next((kind for words, kind in SENTENCES if re.search(words, sentence, re.IGNORECASE)), Refused)
    return kind(sentence)


def versions_from(floor: str) -> list[str]:
    """List every version from `floor` to NEWEST_CUDA, a future one: GraphQL accepts only an exact list."""
    major, minor = (int(part) for part in f"{floor}.0".split(".")[:2])
    pairs = ((a, b) for a in range(major, NEWEST_CUDA[0] + 1) for b in range(10))
    return [f"{a}.{b}" for a, b in pairs if (major, minor) <= (a, b) <= NEWEST_CUDA]


def body_of_prices(count: int, cloud: str) -> dict[str, Any]:
    return {"query": PRICES, "variables": {"price": {"gpuCount": count, "secureCloud": cloud == "SECURE"}}}


def spot_prices(data: Mapping[str, Any], cloud: str) -> dict[str, float]:
    """Return GPU -> US dollars an hour and GPU: the lowest accepted bid now, else the spot price of the list.

    A price that does not fit is left out, so that its GPU cannot be rented.
    """

    def priced(each: Any) -> tuple[str, float]:
        bid = (each.get("lowestPrice") or {}).get("minimumBidPrice") or each.get(f"{cloud.lower()}SpotPrice") or 0
        gpu = border.text(each["id"], "RunPod: the id of a GPU", 100)
        return gpu, border.number(bid, f"RunPod: GPU {gpu}, spot price", 0, 1e5)

    listed = data.get("gpuTypes")
    found = border.entries(listed or [], "RunPod's spot prices", priced, lambda _: ("", 0.0), lambda each: each["id"])
    return {gpu: price for gpu, price in found if price > 0}


def body_of_spot(wanted: Wanted) -> dict[str, Any]:
    """Build the request for a spot pod. Raises WrongUse for what the API does not support with it."""
    if wanted.registry:
        raise WrongUse("spot: true does not support registry credentials: make the image public, or set spot: false")
    told = {
        "bidPerGpu": wanted.bid_usd_per_gpu_hour,
        "cloudType": wanted.cloud,
        "gpuTypeId": wanted.gpu,
        "gpuCount": wanted.gpu_count,
        "name": wanted.name,
        "imageName": wanted.image,
        "containerDiskInGb": wanted.disk_gib,
        "volumeInGb": 0,
        "ports": "22/tcp",
        "env": [{"key": key, "value": value} for key, value in wanted.env.items()],
        "supportPublicIp": True,
        "startSsh": False,
        "dockerArgs": wanted.args,
        "dataCenterId": wanted.data_center,
        "networkVolumeId": wanted.volume,
        "volumeMountPath": wanted.volume_path if wanted.volume else None,
        "allowedCudaVersions": versions_from(wanted.min_cuda) if wanted.min_cuda else None,
    }
    return {"query": RENT, "variables": {"pod": {key: value for key, value in told.items() if value is not None}}}


def data_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data of an answer. Raises the ApiError that its error text means."""
    data, errors = answer.get("data"), errors_in(answer)
    if errors or not isinstance(data, dict):
        raise error_of(errors or "something went wrong: GraphQL answers without data")
    return data


def errors_in(answer: Mapping[str, Any]) -> str:
    told = answer.get("errors")
    listed = [each for each in told[:5] if isinstance(each, dict)] if isinstance(told, list) else []
    return "; ".join(border.cut(str(each.get("message", each)), 300) for each in listed)
