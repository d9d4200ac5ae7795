"""Pods are found, listed and released within the limit of calls to RunPod."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from deploy.errors import NoMachine, StepFailed
from deploy.specs.machine import Machine
from tests.support.emulators.clock import START, OffClock
from tests.support.emulators.rig import Rig, killed, listed, of


@pytest.fixture
def boot_s() -> float:
    return 30


# Found, listed, released


def test_find_has_the_address_of_now(both: Rig) -> None:
    first = both.acquire()
    both.emulator.restart(first.name)
    second = both.provider().find(first.name)
    assert second
    assert second.address
    assert first.address
    assert second.address.port != first.address.port
    if both.api == "v2":
        assert second.address.host_keys == (of(both, first.name).machine.host_key(),)
        assert second.address.host_keys != first.address.host_keys


def test_host_keys_are_read_once_a_start(v2: Rig) -> None:
    machine = v2.acquire()
    while_it_started = v2.emulator.counts()["GET /v2/pods/pod0001/logs"]
    for _ in range(3):
        assert v2.provider().find(machine.name) == machine
    assert v2.emulator.counts()["GET /v2/pods/pod0001/logs"] == while_it_started


def test_a_look_at_an_api_that_is_down_does_not_take_long(both: Rig) -> None:
    both.emulator.down()
    for look in (both.provider().list, lambda: both.provider().find("x")):
        before = both.clock.now()
        with pytest.raises(NoMachine, match="does not answer"):
            look()
        assert both.clock.now() - before <= 20


def test_find_knows_nothing_of_what_is_gone_or_stopped(both: Rig) -> None:
    assert both.provider().find("sniperface-x-runpod-r1") is None
    machine = both.acquire()
    of(both, machine.name).stopped = True
    assert both.provider().find(machine.name) is None
    both.emulator.account.terminate(machine.id)
    assert both.provider().find(machine.name) is None


def test_a_list_that_lacks_a_machine_does_not_end_its_run(both: Rig) -> None:
    """`watch` would rent a second machine beside it. One that was removed is gone all the same."""
    machine = both.acquire()
    empty = ("^GET /v2/pods$|graphql myself", partial(without_pods, "pods"))
    both.emulator.spoilt.append(empty)
    found = both.provider().find(machine.name)
    assert found
    assert found.id == machine.id
    assert [each.id for each in both.provider().list()] == [machine.id]
    assert both.acquire("r2").id == machine.id
    both.emulator.account.terminate(machine.id)
    assert both.provider().find(machine.name) is None


def without_pods(key: str, answer: Any) -> Any:
    """The answer with an empty list under this key, wherever it is."""
    if isinstance(answer, dict):
        return {name: [] if name == key else without_pods(key, value) for name, value in answer.items()}
    return answer


def test_a_machine_that_was_renamed_by_hand_is_found_and_billed(both: Rig) -> None:
    """It would count as gone, and bill on without a line in `ps`."""
    machine = both.acquire()
    of(both, machine.name).name = "my best pod"
    found = both.provider().find(machine.name)
    assert found
    assert (found.name, found.id) == (machine.name, machine.id)
    assert [bill["machine"] for bill in listed(both)] == [machine.name]
    assert both.acquire("r2").id == machine.id
    assert both.creations == 1
    assert "pod0001 was renamed on RunPod's pages" in "\n".join(both.said)
    both.provider().release(machine)
    assert both.emulator.names == []


@pytest.mark.parametrize("off_s", [3600.0, -3600.0, 20.0])
def test_a_wrong_clock_of_the_laptop_changes_no_age(both: Rig, off_s: float) -> None:
    """After an hour of another system's time zone, the reaper would end a machine an hour too early, or too late."""
    laptop = replace(both, clock=OffClock(both.clock, off_s))
    machine = laptop.acquire()
    both.clock.sleep(600)
    for each in (laptop.provider().find(machine.name), *laptop.provider().list()):
        assert each
        assert each.created
        assert laptop.clock.time() - each.created == pytest.approx(600, abs=120)


@pytest.mark.parametrize("said", [0.0, None])
def test_a_machine_that_runs_without_a_price_has_that_of_its_request(both: Rig, said: float | None) -> None:
    """RunPod has reported 0 for pods that bill. With 0 a machine would have no limit of cost, and look free."""
    both.emulator.spoilt.append(("/v2/pods|graphql (pod|myself)", partial(priced_at, said)))
    machine = both.acquire(gpu_count=2)
    assert machine.usd_per_hour == 0.5
    [bill] = listed(both)
    assert (bill["usd_per_hour"], bill["usd"] > 0) == (0.5, True)
    found = both.provider().find(machine.name)
    assert found
    assert found.usd_per_hour == 0.5


@pytest.mark.parametrize(("in_catalogue", "usd"), [(True, 0.25), (False, 0.0)])
def test_a_machine_of_another_computer_without_a_price_has_that_of_the_catalogue(
    both: Rig, in_catalogue: bool, usd: float
) -> None:
    machine = both.acquire()
    both.emulator.spoilt.append(("/v2/pods|graphql (pod|myself)", partial(priced_at, 0.0)))
    shutil.rmtree(both.project / ".sniperface" / "intents")
    if not in_catalogue:
        del both.emulator.account.gpus["NVIDIA RTX A4500"]
    [bill] = listed(both)
    assert (bill["machine"], bill["usd_per_hour"]) == (machine.name, usd)
    assert ("its price is not known" in bill["note"]) is not in_catalogue


@pytest.mark.parametrize("is_down", [False, True])
def test_a_catalogue_that_cannot_be_read_delays_the_list_once(both: Rig, is_down: bool) -> None:
    """The list is what `ps` and `down` rest on; it may name several machines without a price."""
    both.acquire()
    both.provider()._making.new(both.provider()._pods, both.spec("r2"))
    shutil.rmtree(both.project / ".sniperface" / "intents")
    both.emulator.spoilt.append(("/v2/pods|graphql (pod|myself)", partial(priced_at, 0.0)))
    catalogue = "/v2/catalog|gpuTypes"
    if is_down:
        both.emulator.fail("502", catalogue, times=99)
    else:
        both.emulator.spoilt.append((catalogue, lambda _: {"gpus": 5, "data": {"gpuTypes": 5}}))
    began = both.clock.now()
    machines = both.provider().list()
    assert [(each.usd_per_hour, each.fault) for each in machines] == [(0.0, "RunPod reports no price for it")] * 2
    assert both.clock.now() - began <= both.limits.look_s


def priced_at(usd: float | None, answer: Any) -> Any:
    """The answer with this price of each pod in it."""
    if isinstance(answer, list):
        return [priced_at(usd, each) for each in answer]
    if isinstance(answer, dict):
        return {key: usd if key in ("cost", "costPerHr") else priced_at(usd, value) for key, value in answer.items()}
    return answer


def test_list_is_this_project_with_prices_and_ages(both: Rig) -> None:
    machine = both.acquire()
    both.emulator.account.create(
        name="sniperface-another-runpod-r1", image="i", gpu="NVIDIA A40", gpu_count=1, cloud="SECURE",
        data_centers=[], disk=10, ports=["22/tcp"], env={},
    )  # fmt: skip
    listed = both.provider().list()
    assert [each.name for each in listed] == [machine.name]
    assert listed[0].usd_per_hour == 0.25
    assert listed[0].created
    assert START <= listed[0].created <= START + 40


def test_list_shows_what_has_no_address_and_release_ends_it(both: Rig) -> None:
    killed(both)
    (starting,) = both.provider().list()
    assert not starting.is_here
    assert starting.address
    assert starting.address.host == ""
    both.provider().release(starting)
    assert both.emulator.names == []


def test_release_of_what_is_gone_is_success(both: Rig) -> None:
    machine = both.acquire()
    for _ in range(2):
        both.provider().release(machine)
    both.provider().release(Machine("sniperface-x", machine.root, "python"))
    assert both.emulator.names == []


def test_release_by_name_ends_every_pod_of_that_name(both: Rig) -> None:
    machine = both.acquire()
    both.provider().release(Machine(machine.name, machine.root, "python"))
    assert both.emulator.names == []


def test_a_pod_between_two_states_is_asked_again(v2: Rig) -> None:
    machine = v2.acquire()
    v2.emulator.fail("409", v2.on("end"), times=2)
    v2.provider().release(machine)
    assert v2.emulator.names == []


def test_a_locked_pod_is_named(v2: Rig) -> None:
    v2.emulator.next_pod(locked=True)
    machine = v2.acquire()
    with pytest.raises(StepFailed, match="could not be released and still bills: pod is locked"):
        v2.provider().release(machine)
    assert v2.intents() == [machine.name]


def test_release_does_not_wait_for_its_turn(both: Rig) -> None:
    """A release ignores the limit of calls: the limit is our choice, but the user pays for the pod."""
    provider = both.provider()
    machine = provider.acquire(both.spec())
    provider.list()
    provider.list()
    before = both.clock.now()
    provider.release(machine)
    assert both.clock.now() == before


# The limit of calls


def test_asking_stays_within_fifteen_a_minute(both: Rig) -> None:
    """Several candidates are refused, then a pod takes five minutes to start."""
    both.emulator.no_room(7)
    both.emulator.account.boot_s = 300
    centers = ("EU-RO-1", "US-KS-2", "EU-SE-1", "US-TX-3")
    provider = both.provider(gpus=("NVIDIA RTX A4500", "NVIDIA RTX A5000", "NVIDIA A40"), data_centers=centers)
    if both.api == "v2":
        both.emulator.account.refusals = both.emulator.account.refusals[:5]
    provider.acquire(both.spec())
    assert both.creations >= 6
    assert both.emulator.most_calls_a_minute() <= 15


def test_a_window_that_others_used_up_is_waited_for(v2: Rig) -> None:
    provider = v2.provider()
    provider.list()
    provider._api.pace.hold(40)  # type: ignore[attr-defined]
    before = v2.clock.now()
    provider.list()
    assert v2.clock.now() - before == 40


def test_an_hour_is_not_waited_for(v2: Rig) -> None:
    provider = v2.provider()
    provider.list()
    provider._api.pace.hold(1812)  # type: ignore[attr-defined]
    with pytest.raises(NoMachine, match="exhausted for 1812 s"):
        provider.list()
