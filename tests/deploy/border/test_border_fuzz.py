"""Every parser of the border gets arbitrary JSON and bytes: it returns a value, or raises BadAnswer and nothing else.

The figures of docs/security.md, in minutes:
    BORDER_EXAMPLES=4000 pytest -n 0 --hypothesis-seed=0 tests/deploy/border/test_border_fuzz.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy import border
from deploy.errors import BadAnswer, WrongUse
from deploy.pod.agent.frames import Ended, Misspoken, lengths
from deploy.providers.lambda_cloud import api
from deploy.providers.runpod import answers, events, graphql, identity, specification
from deploy.shell import LocalShell
from deploy.shell.base import Request
from deploy.workspace import dataset, devices, encoded
from deploy.workspace.npy import read_header
from deploy.workspace.sources import MACHINE, Origin

EXAMPLES = int(os.environ.get("BORDER_EXAMPLES", "60"))
WHAT = "box: a file"
STATUS = {
    "state": "running",
    "attempt": 1,
    "heartbeat": 1.5,
    "epoch": 2,
    "step": 3,
    "images_per_s": 9.5,
    "started": 1.0,
}
STATUS |= {"spend_usd": 0.5, "reason": None, "ended": None, "exit_code": 0}
STATUS["gpus"] = [{"utilization_pct": 5, "memory_used_bytes": 1, "memory_bytes": 2}]
NOTE = {"file": "epoch_000.pt", "sha256": "0" * 64, "bytes": 7, "epoch": 0, "step": 3, "epoch_complete": True}
NOTE |= {"fraction": 1.0, "model": {}, "facts": None, "eval": {"accuracy": 0.5, "sets": {"lfw": {"accuracy": 0.9}}}}
EVENT = {"event": "eval", "what": "trained", "accuracy": 0.5, "epoch": 1, "step": 4, "time": 1.0, "loss": 0.25}
STANDING = {"at_work": ["r"], "guarded": True, "state": "armed", "decision": None, "only_copies": {"r": "epoch_000.pt"}}
RESTORABLE = {"checkpoints": [NOTE], "damaged": ["x"], "log_bytes": 5, "spend": {"m": 0.5}}
PROGRESS = {"done_bytes": 1, "all_bytes": 2, "sha256": ["0" * 64]}
DEVICES = {"gpus": [{"name": "A40", "capability": [8, 6], "memory_bytes": 48 << 30}], "listed": 1, "visible": None}
DEVICES |= {"torch": "2.9", "cuda": "12.8", "driver": "570", "why": None}
POD = {"id": "p1", "name": "n", "status": "RUNNING", "cost": 0.5, "gpu": {"id": "A40", "count": 1}, "startedAt": "x"}
POD |= {"runtime": {"uptime": 5, "gpus": [{}], "ports": [{"private": 22, "public": 5, "ip": "1.2.3.4"}]}, "rank": 1}
POD |= {"mounts": {"persistent": {"size": 5}}, "createdAt": "2026-01-01T00:00:00Z", "cluster": {"id": "c1", "rank": 0}}
POD |= {"ssh": {"direct": {"host": "h", "port": 5, "username": "root"}}, "cudaVersion": "12.8", "dataCenterId": "EU"}
CLUSTER = {"id": "c", "name": "n", "type": "TRAINING", "compute": {"podCount": 2, "gpuTypeId": "H100"}}
CLUSTER |= {"pods": {"byStatus": {"RUNNING": 1}}, "createdAt": "2026-01-01T00:00:00Z", "dataCenterId": "EU"}
OFFER = {"id": "A40", "price": {"secure": 0.5}, "maxCount": {"secure": 8}, "memory": 48, "availability": "HIGH"}
OFFER |= {"dataCenters": [{"id": "EU", "availability": "NONE"}]}
VOLUME = {"id": "v1", "name": "n", "size": 5, "dataCenter": "EU", "type": "STANDARD"}
MONEY = {"data": {"myself": {"clientBalance": 1.5, "currentSpendPerHr": 0.5, "spendLimit": 80}}, "errors": [{}]}
SPOT = {"gpuTypes": [{"id": "A40", "secureSpotPrice": 0.5, "lowestPrice": {"minimumBidPrice": 0.25}}]}
SCHEMA = {"components": {"schemas": {"A": {"properties": {"x": {}}, "allOf": [{"$ref": "#/B"}]}}}}
KIND = {"name": "gpu_1x_a10", "gpu_description": "A10 (24 GB PCIe)", "price_cents_per_hour": 75, "specs": {"gpus": 1}}
INSTANCE = {
    "id": "i1",
    "name": "n",
    "status": "active",
    "instance_type": KIND,
    "region": {"name": "us"},
    "ip": "1.2.3.4",
}
INSTANCE |= {"tags": [{"key": "sniperface-machine", "value": "n"}, {"key": "sniperface-created", "value": "5"}]}
TYPE = {"instance_type": KIND, "regions_with_capacity_available": [{"name": "us"}]}
MANIFEST = {
    "rows": 4,
    "block_rows": 2,
    "held_out_rows": 1,
    "blocks": ["0" * 64, "1" * 64],
    "dataset_id": "x",
    "name": "n",
}
MANIFEST |= {"selection": {"fraction": 0.5, "blocks": [0]}, "format": None, "shard": None}


def of_bytes(parse: Callable[[bytes], object]) -> Callable[[Any], object]:
    """A parser of a file or an answer gets the value as JSON."""
    return lambda value: parse(json.dumps(value).encode("utf-8", "surrogatepass"))


def of_line(parse: Callable[[str], object]) -> Callable[[Any], object]:
    return lambda value: parse(json.dumps(value, ensure_ascii=False))


class Files:
    """A machine whose files all have these bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes:  # noqa: ARG002 - every file
        return self.data[offset:][: len(self.data) if limit is None else limit]

    def size(self, path: Any) -> int:  # noqa: ARG002 - every file
        return len(self.data)

    def ahead(self, beginnings: Any) -> Files:  # noqa: ARG002 - nothing is read ahead
        return self


class Said(LocalShell):
    """A machine that answers every question with one value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def attempts(self, requests: list[Request]) -> list[Any]:  # type: ignore[override]
        return [self.value] * len(requests)

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:  # noqa: ARG002 - every verb
        return self.value


def _entries(make: Callable[[Any], Any]) -> Callable[[Any], object]:
    return lambda value: border.entries([value, POD], "the list", make, lambda each: each)


PARSERS: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "document": (STATUS, of_bytes(lambda data: border.document(data, WHAT))),
    "status": (STATUS, lambda value: border.status(border.mapping(value, WHAT), WHAT)),
    "checkpoint_note": (NOTE, of_bytes(lambda data: border.checkpoint_note(data, WHAT))),
    "event": (EVENT, of_bytes(border.event)),
    "events": (EVENT, lambda value: border.Newest().add([each for each in [border.event(json.dumps(value))] if each])),
    "frame": ({"id": 1, "more": False, "value": 5}, of_bytes(border.frame)),
    "standing": (STANDING, of_bytes(lambda data: border.standing(data, WHAT))),
    "restorable": (RESTORABLE, of_line(lambda line: border.restorable(line, WHAT))),
    "progress": (PROGRESS, of_line(lambda line: border.progress(line, WHAT))),
    "devices": (DEVICES, of_line(devices.parse)),
    "names": (["a"], lambda value: border.names(value, WHAT)),
    "name": ("epoch_000.pt", lambda value: border.Name(value, WHAT, like=border.CHECKPOINT)),
    "place": ("report.json", lambda value: border.place(Path("here"), value).path if isinstance(value, str) else None),
    "text": ("words", lambda value: border.text(value, WHAT)),
    "path_text": ("/x", lambda value: border.path_text(value, WHAT)),
    "number": (1.5, lambda value: border.number(value, WHAT)),
    "size": (5, lambda value: border.size(value, WHAT)),
    "sha256": ("0" * 64, lambda value: border.sha256(value, WHAT)),
    "hashes": (["0" * 64], lambda value: border.hashes(value, 1, WHAT, holes=True)),
    "snapshot_state": ({"there": True, "commits": ["0" * 40]}, lambda value: border.snapshot_state(value, WHAT)),
    "address": ("10.0.0.1", lambda value: border.address(value, WHAT)),
    "interface": ("eth0", lambda value: border.interface(value, WHAT)),
    "heard": ([["10.0.0.1", "10.0.0.2", "eth0"]], lambda value: border.heard(value, WHAT)),
    "strings": ({"A": "b"}, lambda value: border.strings(value, WHAT)),
    "dollars": ({"m": 0.5}, lambda value: border.dollars(value, WHAT)),
    "identifier": ("p1", lambda value: border.identifier(value, WHAT)),
    "cut": ("words", lambda value: border.cut(str(value), 20)),
    "RunPod: a pod": (POD, answers.pod),
    "RunPod: pods": ({"pods": [POD]}, lambda value: answers.listed_pods(border.mapping(value, WHAT))),
    "RunPod: a cluster": (CLUSTER, _entries(answers.cluster)),
    "RunPod: an offer": (OFFER, _entries(lambda value: answers.offer(value, "secure"))),
    "RunPod: offers": ([OFFER], lambda value: answers.listed_offers(value, "secure")),
    "RunPod: volumes": ([VOLUME], lambda value: answers.listed_volumes(value, "dataCenter")),
    "RunPod: money": (MONEY, lambda value: answers.funds(border.mapping(value, WHAT))),
    "RunPod: spot": (SPOT, lambda value: graphql.spot_prices(border.mapping(value, WHAT), "SECURE")),
    "RunPod: fields": (SCHEMA, lambda value: specification.fields_of(border.mapping(value, WHAT), "A")),
    "RunPod: log": (["x"], of_bytes(lambda data: identity.read(events.parse([data, b"\n\n"])))),
    "Lambda: an instance": (INSTANCE, _entries(api._instance)),
    "Lambda: a name": (INSTANCE, lambda value: border.entries([value], WHAT, int, lambda each: each, api._name)),  # type: ignore[arg-type, return-value]
    "Lambda: a type": (TYPE, lambda value: api._named_type((WHAT, value))),
    "manifest": (MANIFEST, of_bytes(lambda data: dataset._read_manifest(PurePath("m"), 4, Files(data), encodes=False))),
    "hardware": ({"gpus": 1, "cores": 2, "memory_bytes": 5, "shm_bytes": None}, lambda value: Said(value).hardware()),
    "room": (5, lambda value: Said(value).room(PurePath("/x"), PurePath("/y"))),
    "ahead": (5, lambda value: Said(value).ahead({PurePath("/x"): 4}).size(PurePath("/x"))),
}  # fmt: skip
ODD = st.sampled_from(
    [float("inf"), -float("inf"), float("nan"), 10**4000, -(10**400), 1 << 53, -1, True, None, "", "\ud800",
     "\x1b[2J\u202e", "../../x", "C:\\x", "con", "x" * 5000, [], {}, [[]], {"a": {}}, [None] * 300,
     "2026-13-45T99:99:99Z", 0, 1e308]
)  # fmt: skip
JSON = st.recursive(
    ODD | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
few = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@st.composite
def nearly(draw: st.DrawFn, good: Any) -> Any:
    """A valid value in which some field, at any depth, is another value or is missing."""
    if draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    if isinstance(good, dict) and good:
        key = draw(st.sampled_from(sorted(good)))
        made = {**good, key: draw(nearly(good[key]))}
        return made if draw(st.integers(0, 5)) else {name: each for name, each in made.items() if name != key}
    if isinstance(good, list) and good:
        return [draw(nearly(each)) for each in good] * draw(st.integers(0, 2))
    return draw(ODD | JSON)


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_returns_a_value_or_one_sentence(name: str) -> None:
    good, parse = PARSERS[name]
    parse(good)

    @few
    @given(nearly(good))
    def tried(value: Any) -> None:
        message = ""
        try:
            parse(value)
        except (BadAnswer, WrongUse) as error:
            message = error.message
        assert len(message) < 1000
        assert len(message.splitlines()) <= 1

    tried()


RAW: dict[str, Callable[[bytes], object]] = {
    "document": lambda data: border.document(data, WHAT),
    "event": border.event,
    "frame": border.frame,
    "npy": lambda data: read_header(PurePath("x"), Files(b"\x93NUMPY\x01\x00" + data)),
    "npy 2": lambda data: read_header(PurePath("x"), Files(b"\x93NUMPY\x02\x00" + data)),
    "data set": lambda data: dataset.find(Origin(MACHINE, PurePath("x.npy"), Files(data)), 8),
    "offsets": lambda data: encoded.read_offsets(PurePath("x.jpegs"), Files(data)),
    "lengths": lambda data: lengths(_reader(data)),
    "log": lambda data: list(events.parse([data])),
}


def _reader(data: bytes) -> Callable[[memoryview], int]:
    left = bytearray(data)

    def read(view: memoryview) -> int:
        count = min(len(view), len(left))
        view[:count] = left[:count]
        del left[:count]
        return count

    return read


@pytest.mark.parametrize("name", RAW)
def test_bytes_are_a_value_or_one_sentence(name: str) -> None:
    header = b"\x76\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1, 112, 112, 3), }"

    @few
    @given(st.binary(max_size=300) | st.binary(max_size=40).map(lambda tail: header + tail) | st.text().map(str.encode))
    def tried(data: bytes) -> None:
        try:
            RAW[name](data)
        except (BadAnswer, WrongUse, Ended, Misspoken):
            pass
        except ValueError:
            assert name.startswith("npy")  # its callers make a sentence of it

    tried()


@pytest.mark.parametrize("parse", [border.read_settings, border.read_history, border.read_events, border.verdict])
def test_files_of_a_run_are_read_whatever_they_hold(parse: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "file"
    hard = st.sampled_from(
        [b"a: 0x" + b"f" * 6000, b"0x" + b"f" * 6000 + b": 1", b"? {}\n: 1", b"a: &a [*a]", b"a: !!binary 5", b"<<: 5",
         b"=: =", b"a: 1:1:1:1:1:1:1:1:1:1.5", b"a: 2001-99-99", b"[" * 3000, b"a: 1e999",
         b'{"event": "step", "step": 1e999}\n']
    )  # fmt: skip

    @few
    @given(hard | st.binary(max_size=200) | nearly(EVENT).map(lambda each: json.dumps(each).encode("utf-8", "replace")))
    def tried(data: bytes) -> None:
        path.write_bytes(data)
        parse(path)

    tried()


DEEP = ["[" * depth + "]" * depth for depth in (40, 300, 900, 960, 1500, 4000)]


@pytest.mark.parametrize("deep", DEEP, ids=len)
def test_deep_values_are_refused_before_other_code_walks_through_them(deep: str) -> None:
    """How deep Python's own functions go differs by its version: 3.10, 3.12 and 3.13 failed where 3.11 did not."""
    assert border.event(f'{{"a": {deep}}}') is None
    with pytest.raises(BadAnswer, match=r"levels deep|not a JSON object"):
        border.document(f'{{"a": {deep}}}', WHAT)


@pytest.mark.parametrize("piece", [b"[],", b"0,", b'"a",', b'{"a":1},', b"1.5,"])
def test_many_small_values_are_refused_before_they_take_memory(piece: bytes) -> None:
    data = b'{"a": [' + piece * ((8 << 20) // len(piece)) + b"0]}"
    with pytest.raises(BadAnswer, match="more than 250000 values"):
        border.document(data, WHAT, 16 << 20)
