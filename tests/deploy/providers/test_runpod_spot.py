"""Spot pods: requested by GraphQL at the lowest bid, and replaced when RunPod stops them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.errors import DeployError, NoMachine, WrongUse
from tests.support.emulators.rig import Rig, listed, of

SPOT: dict[str, Any] = {"spot": True, "gpus": ("NVIDIA A40",)}


def test_a_spot_pod_costs_its_bid_and_is_reached_like_any_other(v2: Rig) -> None:
    provider = v2.provider(**SPOT, min_cuda="12.8", data_centers=("EU-SE-1",), disk_gib=50)
    assert provider.price() == 0.20
    machine = provider.acquire(v2.spec())
    pod = of(v2, machine.name)
    assert (pod.spot, pod.usd_per_hour, pod.cuda, pod.data_center, pod.disk) == (True, 0.20, "12.8", "EU-SE-1", 50)
    assert machine.usd_per_hour == 0.20
    assert machine.address
    assert machine.address.host_keys
    assert pod.env.keys() == {"PUBLIC_KEY", "SNIPERFACE_UNATTENDED_MIN"}
    assert v2.emulator.counts()["POST /v2/pods"] == 0
    provider.release(machine)
    assert v2.emulator.names == []


def test_several_gpus_bid_for_each(v2: Rig) -> None:
    machine = v2.acquire(**SPOT, gpu_count=4)
    [sent] = [each for each in v2.emulator.exchanges if each.what.endswith("podRentInterruptable")]
    told = json.loads(sent.body)["variables"]["pod"]
    assert (told["bidPerGpu"], told["gpuCount"]) == (0.20, 4)
    assert machine.usd_per_hour == 0.80


def test_a_gpu_without_a_spot_price_is_named_and_the_next_is_tried(v2: Rig) -> None:
    provider = v2.provider(spot=True, gpus=("NVIDIA RTX A5000", "NVIDIA A40"))
    assert of(v2, provider.acquire(v2.spec()).name).gpu == "NVIDIA A40"
    [why] = [each.why_not for each in provider.offers() if each.gpu == "NVIDIA RTX A5000"]
    assert why == "RunPod has no spot price for it now"
    v2.emulator.account.terminate(v2.emulator.account.all()[0].id)
    with pytest.raises(NoMachine) as caught:
        v2.acquire("r2", spot=True, gpus=("NVIDIA GeForce RTX 3070",))
    assert caught.value.evidence == ("NVIDIA GeForce RTX 3070: RunPod has no spot price for it now",)


def test_a_bid_that_is_no_longer_enough_is_a_refusal(v2: Rig) -> None:
    provider = v2.provider(**SPOT)
    assert provider.price() == 0.20
    provider.offers()
    v2.emulator.no_room(1)
    with pytest.raises(NoMachine, match="RunPod has no machine"):
        provider.acquire(v2.spec())
    assert (v2.emulator.names, v2.intents()) == ([], [])


def test_a_creation_without_an_answer_makes_no_second_pod(v2: Rig) -> None:
    v2.emulator.fail("done-cut", "podRentInterruptable")
    machine = v2.acquire(**SPOT)
    assert (v2.emulator.names, v2.creations) == ([machine.name], 1)


def test_a_stopped_spot_pod_is_gone_and_its_place_is_taken_by_another(v2: Rig) -> None:
    """It is listed without a price, and removed when the next one is requested."""
    first = v2.acquire(**SPOT)
    v2.emulator.preempt(first.name)
    assert v2.provider(**SPOT).find(first.name) is None
    assert [each["usd_per_hour"] for each in listed(v2)] == [0.0]
    second = v2.acquire("r2", **SPOT)
    assert v2.emulator.names == [second.name]
    assert any("which RunPod has stopped" in said for said in v2.said)


def test_what_does_not_go_with_spot_is_wrong_use_and_costs_nothing(both: Rig) -> None:
    wrong = {"registry": {"registry": "reg1"}} if both.api == "v2" else {"api: v2": {}}
    for words, options in wrong.items():
        with pytest.raises(WrongUse) as caught:
            both.acquire(**SPOT, **options)
        assert words in f"{caught.value.message} {caught.value.next_command}"
    if both.api == "v2":
        with pytest.raises(WrongUse, match="set spot: false"):
            both.acquire_all(**SPOT)
    assert (both.emulator.names, both.intents(), both.creations) == ([], [], 0)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"data": None, "errors": [{"message": "Unauthorized: access denied"}]}, "no permission"),
        ({"data": {"gpuTypes": None}}, "no spot price"),
        ({"data": {"gpuTypes": [{"id": "NVIDIA A40", "lowestPrice": None, "secureSpotPrice": None}]}}, "no spot price"),
        ([], "not a JSON object"),
    ],
)
def test_an_odd_answer_is_one_sentence(v2: Rig, monkeypatch: pytest.MonkeyPatch, answer: Any, says: str) -> None:
    from tests.support.emulators import runpod_graphql

    monkeypatch.setattr(runpod_graphql, "answer", lambda *_: (200, answer))
    with pytest.raises(DeployError) as caught:
        v2.acquire(**SPOT)
    assert says in " ".join([caught.value.message, *caught.value.evidence])
    assert v2.creations == 0
