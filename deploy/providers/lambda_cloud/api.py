"""Client for the REST API of Lambda Cloud, version 1.10: typed, bounded answers, and one error for each outcome.

Facts from its specification (https://cloud.lambda.ai/api/v1/openapi.json, https://docs-api.lambda.ai/api/cloud):

- `Authorization: Bearer KEY`. A key belongs to the account: there is none for a single machine.
- A success is {"data": ...}, a failure {"error": {"code", "message", "suggestion"}}. Only the code is stable.
- One request a second, one launch in 12 seconds.
- `GET /instance-types` lists prices in cents an hour, and the regions with capacity. A launch may still be refused,
  with 400 and `instance-operations/launch/insufficient-capacity`.
- `POST /instance-operations/launch` starts one machine, with exactly one SSH key that the account knows by name. The
  request has no idempotency key. A name has at most 64 characters, so the machine's full name is in a tag.
- An instance is booting, active, unhealthy, terminating, terminated or preempted. `ip` appears while it boots. Neither
  its creation time nor a host key is reported: the first is in a tag of ours, the second is pinned at the first login.
- Machines have no time limit, and cannot be stopped: a bill ends when the machine is terminated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, NoAccount, WrongUse
from deploy.providers import network
from deploy.providers.rented import Clock, Key
from deploy.shell.background import Work
from deploy.specs.machine import HOST

BASE_URL_VARIABLE, BASE_URL = "LAMBDA_API_BASE_URL", "https://cloud.lambda.ai"
KEY_VARIABLE = "LAMBDA_API_KEY"
WHERE_TO_GET = f"make one at https://cloud.lambda.ai/api-keys/cloud-api, then set {KEY_VARIABLE}"
NO_CAPACITY = "instance-operations/launch/insufficient-capacity"
QUOTA, DUPLICATE, INACTIVE = "global/quota-exceeded", "global/duplicate", "global/account-inactive"
NAME_TAG, CREATED_TAG = "sniperface-machine", "sniperface-created"  # keys match [a-z][a-z0-9-:]+, values have up to 128
NAME_CHARACTERS, TAG_CHARACTERS = 64, 128
ENDED = frozenset({"terminating", "terminated", "preempted"})  # no longer billed, or about to end by itself
CALL_EVERY_S, LAUNCH_EVERY_S = 1.0, 12.0
CONNECT_S, ANSWER_S = 5.0, 30.0
ANSWER_BYTES = 8 << 20
_MEMORY = re.compile(r"\((\d{1,4}) ?GB\b")  # "A10 (24 GB PCIe)"


class ApiError(Exception):
    """A refused or lost call. `code`: Lambda's, empty without an answer. `status`: of HTTP, 0 without an answer."""

    def __init__(self, words: str, *, status: int = 0, code: str = "", after_s: float = 0.0) -> None:
        super().__init__(words)
        self.status = status
        self.code = code
        self.after_s = after_s

    @property
    def is_unclear(self) -> bool:
        """Whether the call may have been carried out: no answer, or the server failed."""
        return self.status == 0 or self.status >= 500

    @property
    def is_passing(self) -> bool:
        """Whether the same call may succeed later."""
        return self.is_unclear or self.status == 429

    @property
    def is_gone(self) -> bool:
        return self.status == 404


class NeverSent(ApiError):
    """There was no connection: nothing was carried out."""


@dataclass(frozen=True)
class InstanceType:
    """A kind of machine that Lambda offers."""

    name: str
    gpu: str  # "A10 (24 GB PCIe)"
    gpus: int
    usd_per_hour: float  # of the whole machine
    memory_gib: float | None  # of one GPU; None where its description has none
    regions: tuple[str, ...] = ()  # with capacity
    fault: str | None = None  # why its entry in the catalogue cannot be read; then only the name is known


@dataclass(frozen=True)
class Instance:
    """A machine of the account."""

    id: str
    name: str  # the full name in our tag, else the one that the account shows
    status: str
    type: InstanceType
    region: str
    host: str | None = None
    created: float | None = None  # Unix seconds by the API's clock
    fault: str | None = None  # why its entry in the list cannot be read; then only id and name may be known

    @property
    def is_alive(self) -> bool:
        return self.status not in ENDED

    def __str__(self) -> str:
        return f"{self.type.name} in {self.region} ({self.id}, {self.type.usd_per_hour:.2f} USD an hour)"


def load_key() -> Key:
    """Return the account's key. Raises NoAccount without one, WrongUse for one that cannot be sent."""
    told = os.environ.get(KEY_VARIABLE, "").strip()
    if not told:
        raise NoAccount(f"Lambda Cloud needs an API key: {KEY_VARIABLE} is not set", next_command=WHERE_TO_GET)
    if not re.fullmatch(r"[!-~]+", told):
        raise WrongUse(f"the API key in {KEY_VARIABLE} has characters invalid in a key", next_command=WHERE_TO_GET)
    return Key(told)


class LambdaApi:
    """One method a call; none retries. Each raises ApiError, and BadAnswer for an answer that does not fit."""

    def __init__(self, key: Key, clock: Clock, environment: Mapping[str, str] = os.environ) -> None:
        self.base = (environment.get(BASE_URL_VARIABLE) or BASE_URL).rstrip("/")
        self.key = key
        self.clock = clock
        self.ahead_s = 0.0  # of the API's clock to this computer's, in whole minutes; 0 until it has answered
        self.answer_s = ANSWER_S  # for each read of an answer; twice as long for the whole
        self._free_at = {"call": 0.0, "launch": 0.0}  # monotonic seconds
        import requests  # here: it takes a tenth of a second, and commands on other targets do not need it

        self._session = requests.Session()
        self._session.auth = key.sign  # not a header, because ~/.netrc overrides one

    def types(self) -> list[InstanceType]:
        """List the catalogue. A type that does not fit keeps its name, and says why."""
        found = border.mapping(self._call("GET", "instance-types"), "Lambda: instance-types")

        def instead(each: border.Unreadable) -> InstanceType:
            return InstanceType(each.name, "", 0, 0.0, None, fault=each.why)

        return border.entries(list(found.items()), "Lambda: instance-types", _named_type, instead, lambda pair: pair[0])

    def instances(self) -> list[Instance]:
        """List all machines. One that does not fit keeps its id and its name, and says why."""
        return border.entries(self._call("GET", "instances"), "Lambda: instances", _instance, _unreadable, _name)

    def instance(self, id: str) -> Instance:
        return _instance(self._call("GET", f"instances/{id}"))

    def launch(self, name: str, type: str, region: str, key_name: str, image_family: str | None) -> str:
        """Start one machine and return its id. Raises BadAnswer if it is not one."""
        tags = {NAME_TAG: name, CREATED_TAG: f"{self.clock.time() + self.ahead_s:.0f}"}
        body: dict[str, Any] = {
            "region_name": region,
            "instance_type_name": type,
            "ssh_key_names": [key_name],
            "name": name[:NAME_CHARACTERS],
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        if image_family:
            body["image"] = {"family": image_family}
        said = border.mapping(self._call("POST", "instance-operations/launch", body), "Lambda: launch")
        ids = _list(said.get("instance_ids"), "Lambda: launch, instance_ids")
        if len(ids) != 1:
            raise BadAnswer(f"Lambda: launch answers with {len(ids)} machines instead of one")
        return border.identifier(ids[0], "Lambda: the id of a machine")

    def terminate(self, id: str) -> None:
        self._call("POST", "instance-operations/terminate", {"instance_ids": [id]}, urgent=True)

    def key_names(self) -> dict[str, str]:
        """Return public key (type and base64) -> its name in the account. Skips entries that do not fit."""
        told = _list(self._call("GET", "ssh-keys"), "Lambda: keys")
        found: dict[str, str] = {}
        for each in told:
            line, name = (each.get("public_key"), each.get("name")) if isinstance(each, dict) else (None, None)
            if isinstance(line, str) and isinstance(name, str) and len(line) + len(name) < 10_000:
                found[" ".join(line.split()[:2])] = name
        return found

    def add_key(self, name: str, public_key: str) -> None:
        self._call("POST", "ssh-keys", {"name": name, "public_key": public_key})

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, urgent: bool = False) -> Any:
        self._keep_pace("launch" if path.endswith("/launch") else "call", urgent=urgent)
        what, lost = f"{method} {path}", None
        data, status = b"", 0
        headers: dict[str, str] = {}
        try:
            data, status, headers = Work(lambda: self._ask(method, path, body)).result(2 * self.answer_s)
        except OSError as error:  # covers every network error of requests
            kind = NeverSent if network.was_never_sent(error) else ApiError
            lost = kind(f"{what} at {self.base}: {self.key.mask(network.in_words(error))}")
        if lost is not None:  # raised outside `except`, because the cause holds the request and its headers
            raise lost
        if status >= 300:
            raise self._refusal(data, status, headers, what)
        try:
            said = border.document(data, f"Lambda: {what}", ANSWER_BYTES)
        except BadAnswer as error:  # the page of a proxy, or half an answer: the same call may succeed later
            raise ApiError(error.message) from None
        date = next((value for name, value in headers.items() if name.lower() == "date"), None)
        self.ahead_s = network.ahead_s(date, self.clock.time(), self.ahead_s)
        if "data" not in said:
            raise BadAnswer(f"Lambda: {what} answers without data")
        return said["data"]

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[bytes, int, dict[str, str]]:
        """Return the body of the answer, its status and its headers."""
        data = b""
        with self._session.request(
            method, f"{self.base}/api/v1/{path}", json=body, timeout=(CONNECT_S, self.answer_s), allow_redirects=False,
            stream=True,
        ) as answer:  # fmt: skip
            for chunk in answer.iter_content(1 << 16):
                data += chunk
                if len(data) > ANSWER_BYTES:
                    raise BadAnswer(f"Lambda: {method} {path} answers with more than {ANSWER_BYTES} bytes")
            return data, answer.status_code, dict(answer.headers)

    def _refusal(self, data: bytes, status: int, headers: Mapping[str, str], what: str) -> ApiError:
        try:
            error = border.mapping(border.document(data, what).get("error"), what)
            code, words = border.text(error.get("code"), what, 100), border.text(error.get("message"), what, 300)
        except BadAnswer:
            code, words = "", "without an error message"
        after = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
        wait_s = min(float(after), 120.0) if re.fullmatch("[0-9]{1,6}", after) else 0.0
        told = self.key.mask(f"{what}: {status}: {words}" + (f" ({code})" if code else ""))
        return ApiError(told, status=status, code=code, after_s=wait_s)

    def _keep_pace(self, kind: str, *, urgent: bool) -> None:
        """Wait as the API's limits ask. An urgent call never waits: a machine that bills is released at once."""
        now = self.clock.now()
        wait_s = max(self._free_at["call"], self._free_at[kind]) - now
        if wait_s > 0 and not urgent:
            self.clock.sleep(wait_s)
        now = self.clock.now()
        self._free_at["call"] = now + CALL_EVERY_S
        if kind == "launch":
            self._free_at["launch"] = now + LAUNCH_EVERY_S


def _list(value: object, what: str) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > border.LISTED_MOST:
        raise BadAnswer(f"{what} is no list of at most {border.LISTED_MOST} entries")
    return value


def _named_type(pair: tuple[str, Any]) -> InstanceType:
    what = f"Lambda: instance type {border.text(pair[0], 'name', 80)}"
    said = border.mapping(pair[1], what)
    regions = [border.mapping(each, what) for each in _list(said.get("regions_with_capacity_available"), what)]
    return _type(said.get("instance_type"), what, tuple(border.text(each.get("name"), what, 40) for each in regions))


def _type(value: object, what: str, regions: tuple[str, ...] = ()) -> InstanceType:
    said = border.mapping(value, what)
    specs = border.mapping(said.get("specs"), f"{what}, specs")
    gpu = border.text(said.get("gpu_description"), f"{what}, gpu_description", 80)
    memory = _MEMORY.search(gpu)
    return InstanceType(
        name=border.text(said.get("name"), f"{what}, name", 80),
        gpu=gpu,
        gpus=border.whole(specs.get("gpus"), f"{what}, gpus", 0, 1024),
        usd_per_hour=border.whole(said.get("price_cents_per_hour"), f"{what}, price_cents_per_hour", 0, 10**7) / 100,
        memory_gib=float(memory[1]) if memory else None,
        regions=regions,
    )


def _unreadable(each: border.Unreadable) -> Instance:
    return Instance(each.id, each.name, "unreadable", InstanceType("unknown", "", 0, 0.0, None), "", fault=each.why)


def _name(value: Any) -> object:
    """Return the name of an instance that does not fit: in our tag, else the one that the account shows."""
    tags = value.get("tags")
    told = [each.get("value") for each in tags if each.get("key") == NAME_TAG] if isinstance(tags, list) else []
    return told[0] if told else value.get("name")


def _instance(value: object) -> Instance:
    said = border.mapping(value, "Lambda: an instance")
    id = border.identifier(said.get("id"), "Lambda: the id of a machine")
    what = f"Lambda: instance {id}"
    tags = {}
    for each in _list(said.get("tags") or [], f"{what}, tags"):
        if isinstance(each, dict) and each.get("key") in (NAME_TAG, CREATED_TAG):
            tags[each["key"]] = border.text(each.get("value"), f"{what}, tag {each['key']}", TAG_CHARACTERS)
    created, host = tags.get(CREATED_TAG, ""), said.get("ip")
    return Instance(
        id=id,
        name=tags.get(NAME_TAG) or border.text(said.get("name") or "", f"{what}, name", TAG_CHARACTERS),
        status=border.text(said.get("status"), f"{what}, status", 40),
        type=_type(said.get("instance_type"), f"{what}, instance_type"),
        region=border.text(border.mapping(said.get("region"), f"{what}, region").get("name"), f"{what}, region", 40),
        # Without a usable address it can still be released.
        host=host if isinstance(host, str) and HOST.fullmatch(host) else None,
        created=float(created) if re.fullmatch("[0-9]{1,11}", created) else None,
    )
