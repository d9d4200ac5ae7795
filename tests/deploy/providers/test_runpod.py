"""The provider with the emulator: it creates pods by both APIs, and chooses between candidates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import NoMachine, WrongUse
from deploy.providers import image
from tests.support.emulators.rig import GPUS, Rig, of

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def boot_s() -> float:
    return 30


# Created


def test_a_pod_is_what_the_target_asks_for(both: Rig) -> None:
    machine = both.acquire(gpu_count=2, data_centers=("US-KS-2",), disk_gib=60)
    pod = of(both, both.spec().name)
    assert (pod.gpu, pod.gpu_count, pod.data_center, pod.disk) == ("NVIDIA RTX A4500", 2, "US-KS-2", 60)
    assert (pod.image, pod.ports, pod.cloud, pod.mounts) == ("me/sniperface:1", ["22/tcp"], "SECURE", {})
    assert machine.usd_per_hour == 0.5
    assert (machine.name, machine.id, str(machine.root)) == (pod.name, pod.id, "/workspace/sniperface")


def test_the_environment_of_a_pod_is_the_public_key_and_its_switch(both: Rig) -> None:
    machine = both.acquire()
    env = of(both, machine.name).env
    assert (list(env), env["SNIPERFACE_UNATTENDED_MIN"]) == (["PUBLIC_KEY", "SNIPERFACE_UNATTENDED_MIN"], "15")
    assert env["PUBLIC_KEY"].startswith("ssh-ed25519 AAAA")
    assert not set(env["PUBLIC_KEY"]) & set('\r\n"')
    assert machine.address
    assert machine.address.key
    assert Path(machine.address.key).read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")


def test_the_package_is_imported_without_a_look_at_the_processor() -> None:
    """It takes a second and two processes, and nothing shows what it finds."""
    ask = (
        "from deploy.providers.runpod import sdk; print(sdk._package().__name__); import cpuinfo, sys; "
        "print(sys.modules['runpod.serverless.utils.rp_debugger'].PROCESSOR, cpuinfo.get_cpu_info.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", ask], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["runpod", "not looked up get_cpu_info"]


def test_host_keys_come_from_the_log_of_v2(v2: Rig) -> None:
    machine = v2.acquire()
    assert machine.address
    assert machine.address.host_keys == (of(v2, machine.name).machine.host_key(),)


def test_without_a_log_host_keys_stay_empty(sdk: Rig) -> None:
    machine = sdk.acquire()
    assert machine.address
    assert machine.address.host_keys == ()


def test_an_image_that_prints_no_keys_is_told(v2: Rig) -> None:
    v2.emulator.prints_keys = False
    machine = v2.acquire()
    assert machine.address
    assert machine.address.host_keys == ()
    assert "has no host key" in v2.said[-1]


@pytest.mark.parametrize("status", ["403", "404", "409"])
def test_a_log_that_may_not_be_read_costs_no_pod(v2: Rig, status: str) -> None:
    """The key may lack access to the log, or the log may not exist yet. A second read may find the host keys."""
    v2.emulator.fail(status, "logs")
    machine = v2.acquire()
    assert machine.address
    assert machine.address.host_keys == (of(v2, machine.name).machine.host_key(),)
    v2.emulator.fail(status, "logs", times=99)
    v2.emulator.restart(machine.name)
    again = v2.provider().find(machine.name)
    assert again
    assert again.address
    assert again.address.host_keys == ()


def test_acquire_twice_is_one_pod(both: Rig) -> None:
    first = both.acquire()
    again = both.acquire("r2")
    assert (first.id, first.address) == (again.id, again.address)
    assert both.emulator.names == [both.spec().name]
    assert both.creations == 1


def test_only_whole_words_are_a_family(both: Rig) -> None:
    """`runpod2` is another target than `runpod`."""
    other = both.spec().family + "2-r1"
    both.emulator.account.create(
        name=other, image="i", gpu="NVIDIA A40", gpu_count=1, cloud="SECURE", data_centers=[], disk=10,
        ports=["22/tcp"], env={},
    )  # fmt: skip
    assert both.acquire().name == both.spec().name
    assert sorted(both.emulator.names) == sorted([both.spec().name, other])


def test_the_intent_is_noted_before_the_request_and_gone_after_release(both: Rig) -> None:
    seen: list[list[str]] = []
    create = both.emulator.account.create

    def looked(**about: Any) -> Any:
        seen.append(both.intents())
        return create(**about)

    both.emulator.account.create = looked  # type: ignore[method-assign]
    machine = both.acquire()
    assert seen == [[machine.name]]
    note = json.loads((both.project / ".sniperface" / "intents" / f"{machine.name}.json").read_text())
    assert note["pod"] == machine.id
    assert note["handed_out"]
    both.provider().release(machine)
    assert both.intents() == []
    assert both.emulator.names == []


def test_a_network_volume_is_mounted_in_its_own_data_center(both: Rig) -> None:
    volume = {"name": "faces", "size": 50, "dataCenter": "US-KS-2", "type": "STANDARD"}
    both.emulator.account.volumes["vol1"] = volume
    pod = of(both, both.acquire(volume="vol1").name)
    assert pod.data_center == "US-KS-2"
    assert pod.mounts == {"network": [{"volumeId": "vol1", "path": "/workspace"}]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"volume": "vol9"}, "no network volume 'vol9'"),
        ({"volume": "vol1", "cloud": "COMMUNITY"}, "SECURE cloud only"),
        ({"volume": "vol1", "data_centers": ("EU-RO-1",)}, "is in US-KS-2"),
    ],
)
def test_a_volume_that_cannot_be_mounted_is_refused_first(both: Rig, options: dict[str, Any], words: str) -> None:
    volume = {"name": "faces", "size": 50, "dataCenter": "US-KS-2", "type": "STANDARD"}
    both.emulator.account.volumes["vol1"] = volume
    with pytest.raises(WrongUse, match=words):
        both.acquire(**options)
    assert both.creations == 0


def test_registry_credentials_and_cuda_floor_are_asked_for(v2: Rig) -> None:
    pod = of(v2, v2.acquire(registry="reg1", min_cuda="12.4").name)
    assert pod.registry == "reg1"
    body = next(json.loads(each.body) for each in v2.emulator.exchanges if each.what == "POST /v2/pods")
    assert body["gpu"] == {"id": "NVIDIA RTX A4500", "count": 1, "minCudaVersion": "12.4"}


def test_the_sdk_says_what_it_cannot_do(sdk: Rig) -> None:
    with pytest.raises(WrongUse, match="registry credentials"):
        sdk.acquire(registry="reg1")
    with pytest.raises(WrongUse, match=r"image_name: .* has a quote"):
        sdk.acquire(image='me/x:1", dockerArgs: "sh')
    with pytest.raises(WrongUse, match=r"gpus: .* has a quote"):
        sdk.acquire(gpus=('NVIDIA "A40',))
    assert sdk.creations == 0
    assert sdk.intents() == []


def test_a_cuda_floor_is_a_list_for_the_sdk(sdk: Rig) -> None:
    sdk.acquire(min_cuda="12.8")
    body = next(each.body.decode() for each in sdk.emulator.exchanges if "podFind" in each.what)
    assert r"allowedCudaVersions: [\"12.8\", \"12.9\", \"13.0\"" in body


def test_an_image_without_a_tag_has_the_one_of_its_environment(both: Rig) -> None:
    """The tag equals the tag that `invoke push` uses."""
    for name in image.FILES:
        (both.project / name).parent.mkdir(parents=True, exist_ok=True)
        (both.project / name).write_bytes((PROJECT / name).read_bytes())
    machine = both.acquire(image="registry.example:5000/me/sniperface")
    tag = image.tag(both.project)
    assert of(both, machine.name).image == f"registry.example:5000/me/sniperface:{tag}"


# Candidates


def test_the_next_candidate_is_tried_when_there_is_no_room(both: Rig) -> None:
    both.emulator.no_room(3)
    machine = both.acquire(data_centers=("EU-RO-1", "US-KS-2", "EU-SE-1"))
    # v2 reports the stock: A4500 and A40 are each in two of the three data centres, and the fourth request succeeds.
    # The SDK does not: it requests A4500 in all three, then A40 in one without stock and in the next one.
    tried = {"v2": ("EU-SE-1", "NVIDIA A40", 4), "sdk": ("US-KS-2", "NVIDIA A40", 5)}[both.api]
    pod = of(both, machine.name)
    assert (pod.data_center, pod.gpu, both.creations) == tried
    assert both.emulator.names == [both.spec().name]


def test_no_room_anywhere_is_told_candidate_by_candidate(both: Rig) -> None:
    both.emulator.no_room(9)
    with pytest.raises(NoMachine) as caught:
        both.acquire(gpus=("NVIDIA RTX A4500", "NVIDIA A40", "NVIDIA H100 80GB HBM3", "NVIDIA A4O"))
    error = caught.value
    assert error.exit_code == 3
    told = "\n".join(error.evidence)
    assert "NVIDIA H100 80GB HBM3: 2.69 USD an hour is above max_usd_per_hour: 1" in told
    assert "NVIDIA A4O: RunPod has no GPU of this name" in told
    assert "NVIDIA RTX A4500: There are no longer any instances" in told
    assert "NVIDIA A40: There are no longer any instances" in told
    assert "max_usd_per_hour" in (error.next_command or "")
    assert both.intents() == []


def test_a_misspelt_gpu_of_v2_has_the_right_one_beside_it(v2: Rig) -> None:
    with pytest.raises(NoMachine) as caught:
        v2.acquire(gpus=("NVIDIA RTX A450O",))
    assert "did you mean 'NVIDIA RTX A4500'?" in caught.value.evidence[0]


def test_what_has_no_stock_is_not_asked_for(v2: Rig) -> None:
    with pytest.raises(NoMachine) as caught:
        v2.acquire(gpus=("NVIDIA GeForce RTX 3070", "NVIDIA A40"), data_centers=("EU-RO-1",))
    assert caught.value.evidence == ("NVIDIA GeForce RTX 3070: no stock", "NVIDIA A40, EU-RO-1: no stock")
    assert v2.creations == 0


def test_the_ceiling_is_for_the_whole_machine(both: Rig) -> None:
    machine = both.acquire(gpus=("NVIDIA A40", "NVIDIA RTX A5000"), gpu_count=3, max_usd_per_hour=0.9)
    assert machine.usd_per_hour == pytest.approx(0.81)
    both.provider().release(machine)
    with pytest.raises(NoMachine) as caught:
        both.acquire("r2", gpus=("NVIDIA RTX A4500",), gpu_count=8, max_usd_per_hour=9)
    assert "its largest machine has 4 GPUs" in caught.value.evidence[0]


def test_a_rule_that_every_candidate_breaks_is_told_as_one(both: Rig) -> None:
    both.emulator.refuse(400, "disk must be at most 20 for this image", 2)
    with pytest.raises(NoMachine, match="the request may be wrong: disk must be at most 20"):
        both.acquire()


def test_a_rule_is_told_as_one_beside_a_gpu_without_stock(both: Rig) -> None:
    both.emulator.refuse(400, "disk must be at most 20 for this image", 2)
    with pytest.raises(NoMachine, match="the request may be wrong: disk must be at most 20"):
        both.acquire(gpus=(*GPUS, "NVIDIA H1"))


def test_a_key_that_may_only_read_is_told_as_one(both: Rig) -> None:
    """To try later, or more GPUs, would not help."""
    both.emulator.refuse(403, "forbidden: this key may only read", 2)
    with pytest.raises(NoMachine, match="forbids each request") as caught:
        both.acquire(gpus=(*GPUS, "NVIDIA H1"))
    assert caught.value.next_command
    assert "read and write for pods" in caught.value.next_command


def test_a_forbidden_pool_is_passed_over(both: Rig) -> None:
    both.emulator.refuse(403, "access denied: not authorized for this pool")
    assert of(both, both.acquire().name).gpu == "NVIDIA A40"


@pytest.mark.parametrize(
    ("status", "words", "kind", "told"),
    [
        (402, "insufficient balance to deploy", NoMachine, "balance"),
        (422, "Syntax Error: body breaks the contract", WrongUse, "rejects the request"),
    ],
)
def test_what_no_candidate_changes_ends_at_once(
    both: Rig, status: int, words: str, kind: type[Exception], told: str
) -> None:
    both.emulator.refuse(status, words, 5)
    with pytest.raises(kind, match=told):
        both.acquire()
    assert both.creations == 1
    assert both.intents() == []


def test_a_wrong_key_ends_at_once(both: Rig) -> None:
    both.emulator.keys = {"another"}
    with pytest.raises(WrongUse, match="does not accept the API key"):
        both.acquire()
    assert len(both.emulator.exchanges) == 1
