"""Requests and answers match RunPod's published specification of v2, and the GraphQL fields in use.

Each test of the provider ends with this check (tests/support/emulators/rig.py). The tests here show that the check
finds violations. EXCEPTIONS in tests/support/emulators/contract.py lists where we differ from the specification, and
where it contradicts itself.
"""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from deploy.providers.runpod.pod_request import Wanted, body_of, body_of_cluster
from tests.support.emulators import contract
from tests.support.emulators.rig import Rig, breaches
from tests.support.emulators.runpod import KEY
from tests.support.load import under_load

WORDS = st.text(min_size=1, max_size=20)
PODS, CLUSTERS = "/v2/pods", "/v2/clusters"
PROJECT = Path(__file__).parents[3]


@given(
    st.builds(
        Wanted,
        name=WORDS, image=WORDS, gpu=WORDS, gpu_count=st.integers(1, 64), public_key=WORDS,
        cloud=st.sampled_from(["SECURE", "COMMUNITY"]), data_center=st.none() | WORDS,
        min_cuda=st.none() | st.from_regex(r"[0-9]{1,2}\.[0-9]{1,2}", fullmatch=True), disk_gib=st.integers(1, 9999),
        volume=st.none() | WORDS, volume_path=WORDS, registry=st.none() | WORDS,
    )
)  # fmt: skip
def test_whatever_is_wanted_the_body_is_in_the_contract(wanted: Wanted) -> None:
    body = body_of(wanted)
    assert contract.problems_of_body("POST", PODS, body) == []
    assert body["gpu"]["count"] >= 1


def test_a_whole_life_of_a_pod_is_in_the_contract(v2: Rig) -> None:
    v2.emulator.account.volumes["vol1"] = {
        "name": "faces", "size": 50, "dataCenter": "US-KS-2", "type": "HIGH_PERFORMANCE"
    }  # fmt: skip
    machine = v2.acquire(volume="vol1", registry="reg1", min_cuda="12.4", min_memory_gib=8)
    v2.provider().find(machine.name)
    v2.provider().list()
    list(v2.provider().log(machine))
    v2.provider().release(machine)
    v2.provider().release(machine)
    v2.emulator.keys = {"another"}
    with pytest.raises(Exception, match="API key"):
        v2.provider().list()
    checked = {
        (each.what.replace(machine.id, "{id}").replace("vol1", "{id}"), each.status) for each in v2.emulator.exchanges
    }
    assert checked == {
        ("GET /v2/pods", 200), ("GET /v2/pods", 401), ("GET /v2/network-volumes/{id}", 200),
        ("GET /v2/catalog/gpus", 200), ("POST /v2/pods", 201), ("GET /v2/pods/{id}/logs", 200),
        ("DELETE /v2/pods/{id}", 204), ("DELETE /v2/pods/{id}", 404), ("GET /v2/clusters", 200),
        ("GET /v2/openapi.json", 200),
    }  # fmt: skip
    assert breaches(v2.emulator) == []


def test_memory_is_requested_once_the_live_specification_has_the_field(v2: Rig) -> None:
    """v2 refuses unknown fields, so the request has none that the live specification lacks. Memory is then checked."""

    def gpu_of_request(**options: Any) -> dict[str, Any]:
        v2.provider().release(v2.acquire(gpu_count=2, **options))
        [sent] = [each.body for each in v2.emulator.exchanges if each.what == "POST /v2/pods"][-1:]
        gpu: dict[str, Any] = json.loads(sent)["gpu"]
        return gpu

    assert set(gpu_of_request(min_memory_gib=40)) == {"id", "count"}
    newer = copy.deepcopy(contract.SPECIFICATION)
    about_gpu = newer["components"]["schemas"]["CreateGpuConfig"]["allOf"][1]
    about_gpu["properties"]["minRamPerGpu"] = {"type": "integer", "minimum": 1}
    v2.emulator.account.specification = newer
    assert gpu_of_request(min_memory_gib=40.5)["minRamPerGpu"] == 21
    assert "minRamPerGpu" not in gpu_of_request()


def test_a_whole_life_of_a_cluster_is_in_the_contract(v2: Rig) -> None:
    v2.emulator.next_cluster(ranks_after_s=10)
    first, second = v2.acquire_all()
    v2.provider().find(second.name)
    v2.provider().list()
    list(v2.provider().log(second))
    for machine in (second, first):
        v2.provider().release(machine)
    ids = [(str(first.group), "{id}"), (first.id, "{pod}"), (second.id, "{pod}")]
    checked = set()
    for each in v2.emulator.exchanges:
        what = each.what
        for id, word in ids:
            what = what.replace(id, word)
        checked.add((what, each.status))
    assert checked == {
        ("GET /v2/clusters", 200), ("GET /v2/catalog/gpus", 200), ("POST /v2/clusters", 201),
        ("GET /v2/clusters/{id}/pods", 200), ("GET /v2/pods/{pod}/logs", 200), ("GET /v2/pods", 200),
        ("DELETE /v2/clusters/{id}", 204), ("DELETE /v2/clusters/{id}", 404),
    }  # fmt: skip
    assert breaches(v2.emulator) == []


@given(
    st.builds(
        Wanted,
        name=WORDS, image=WORDS, gpu=WORDS, gpu_count=st.integers(1, 64), public_key=WORDS, nodes=st.integers(2, 250),
        data_center=st.none() | WORDS, disk_gib=st.integers(1, 9999), volume=st.none() | WORDS, volume_path=WORDS,
    )
)  # fmt: skip
def test_whatever_cluster_is_wanted_the_body_is_in_the_contract(wanted: Wanted) -> None:
    assert contract.problems_of_body("POST", CLUSTERS, body_of_cluster(wanted)) == []


def test_a_cluster_has_no_registry_and_no_cloud_in_the_contract() -> None:
    """When this test fails, deploy/providers/runpod/clusters.py need no longer refuse these options."""
    body = body_of_cluster(Wanted("n", "i", "NVIDIA A40", 1, "ssh-ed25519 A", nodes=2))
    assert contract.problems_of_body("POST", CLUSTERS, body) == []
    for more in ({"registry": "reg1"}, {"cloud": "COMMUNITY"}, {"gpu": {"id": "x", "minCudaVersion": "12.4"}}):
        assert contract.problems_of_body("POST", CLUSTERS, {**body, **more}) != []
    belongs = contract.SPECIFICATION["paths"]["/v2/pods/{id}"]["delete"]["responses"]["409"]["description"]
    assert "belongs to a cluster and cannot be terminated" in belongs


@pytest.mark.parametrize(
    "change",
    [
        {"gpuCount": 1},
        {"terminateAfter": "1h"},
        {"gpu": {"id": "NVIDIA A40", "count": 1, "minRAMPerGPU": 40}},
        {"gpu": {"id": "NVIDIA A40", "count": 0}},
        {"gpu": {"id": "NVIDIA A40", "count": 1, "minCudaVersion": "12"}},
        {"mounts": {"network": [{"volumeId": "v"}]}},
        {"mounts": {"volume": "v"}},
        {"env": {"A": 1}},
        {"ports": "22/tcp"},
        {"cloud": "ALL"},
        {"disk": "40"},
        {"name": ""},
        {"image": None},
    ],
    ids=str,
)
def test_the_emulator_refuses_what_v2_refuses(v2: Rig, change: dict[str, Any]) -> None:
    body = {**body_of(Wanted("n", "i", "NVIDIA A40", 1, "ssh-ed25519 A")), **change}
    answer = requests.post(v2.emulator.url + PODS, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=5)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]
    assert v2.emulator.names == []
    v2.emulator.exchanges.clear()  # a breach, on purpose


@pytest.mark.parametrize("path", ["/v2/pods?all=1", "/v2/catalog/gpus?include=STOCK", "/v2/catalog/gpus?count=many"])
def test_the_emulator_refuses_unknown_queries(v2: Rig, path: str) -> None:
    answer = requests.get(v2.emulator.url + path, headers={"Authorization": f"Bearer {KEY}"}, timeout=5)
    assert answer.status_code == 422
    v2.emulator.exchanges.clear()


def test_the_check_sees_an_answer_outside_of_the_contract() -> None:
    kind = {"Content-Type": "application/json"}
    assert contract.problems_of_answer("GET", PODS, 200, kind, b'{"pods": [{"id": "x"}]}')
    assert contract.problems_of_answer("GET", PODS, 200, kind, b"[]")
    assert contract.problems_of_answer("GET", PODS, 200, {"Content-Type": "text/html"}, b"<html>")
    assert contract.problems_of_answer("DELETE", f"{PODS}/x", 204, kind, b"{}")
    assert contract.problems_of_answer("GET", PODS, 402, kind, b"{}")


def test_where_the_specification_is_not_at_one_with_itself_or_us() -> None:
    """Each of contract.EXCEPTIONS is true. A newer copy of the specification that resolves one fails here."""
    paths = contract.SPECIFICATION["paths"]
    create = paths[PODS]["post"]["responses"]
    assert not {"402", "500", "502", "503"} & set(create)
    assert create["201"]["content"]["application/json"]["examples"]["pod"]["value"]["runtime"] == {}
    schemas = contract.SPECIFICATION["components"]["schemas"]
    assert schemas["GpuConfig"]["properties"]["count"]["default"] == 1
    assert "memory" not in schemas["GpuConfig"]["properties"]
    assert len(contract.EXCEPTIONS) == 4


def test_the_examples_of_the_specification_are_in_it_too() -> None:
    """The examples match the schemas that we depend on. A newer copy with other shapes fails here first."""
    checked = 0
    for path, methods in contract.SPECIFICATION["paths"].items():
        for method, about in methods.items():
            if method == "parameters":
                continue
            for status, answer in about["responses"].items():
                content = answer.get("content", {}).get("application/json", {})
                for example in content.get("examples", {}).values():
                    told = json.dumps(example["value"]).encode()
                    kind = {"Content-Type": "application/json"}
                    path_of_one = path.replace("{id}", "x")
                    assert contract.problems_of_answer(method, path_of_one, int(status), kind, told) == []
                    checked += 1
    assert checked > 8


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals: run it on Linux or macOS")
def test_the_emulator_runs_by_itself() -> None:
    argv = [sys.executable, "-m", "tests.support.emulators.runpod", "--pods", "none", "--port", "0"]
    with subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().split()[0].partition("=")[2]
        answer = requests.get(url + PODS, headers={"Authorization": "Bearer any"}, timeout=5)
        assert answer.json() == {"pods": []}
        assert process.stdout.readline() == "200 GET /v2/pods\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(under_load(10)) == 0


@pytest.mark.parametrize(
    "query",
    [
        "{ myself { pods { id gpuUtilization } } }",
        'mutation { podFindAndDeployOnDemand(input: { name: "n", gpuTypeIds: ["x"] }) { id } }',
        'mutation { podFindAndDeployOnDemand(input: { gpuCount: "1" }) { id } }',
        'mutation { podTerminate(input: { podId: "a" }) ',
        'query { pod(input: { podId: "a"b" }) { id } }',
    ],
)
def test_the_emulator_refuses_graphql_that_is_not_in_use(v2: Rig, query: str) -> None:
    answer = requests.post(
        v2.emulator.url + "/graphql", json={"query": query}, headers={"Authorization": f"Bearer {KEY}"}, timeout=5
    )
    assert answer.status_code == 400
    assert answer.json()["errors"]
