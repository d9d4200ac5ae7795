"""The provider with the emulator and faults of the connection, the API, the machine and the laptop."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from deploy.errors import NoMachine
from deploy.providers.runpod.create import Making
from tests.support.emulators.rig import Rig, ctrl_c_while_it_is_made, ctrl_c_while_it_starts, killed, listed, of
from tests.support.emulators.runpod_state import NO_ROOM
from tests.support.faults import Fault
from tests.support.interrupts import at_each_line

NO_RUN = {"truth": "no run is on the machine yet", "checkpoints": "no run is on the machine yet"}


@pytest.fixture
def boot_s() -> float:
    return 30


# A bad connection


def test_too_many_calls_wait_as_long_as_is_asked(v2: Rig) -> None:
    v2.emulator.fail("429", v2.on("create"), retry_after_s=17)
    v2.acquire()
    first, second = (each.time for each in v2.emulator.exchanges if each.what == "POST /v2/pods")
    assert second - first == 17
    assert v2.emulator.counts()["GET /v2/pods"] == 1  # nothing was created, so nothing is looked up


@pytest.mark.parametrize("verb", ["create", "list", "get", "end"])
@pytest.mark.parametrize("kind", ["502", "cut", "429"])
def test_a_bad_answer_is_asked_again(both: Rig, verb: str, kind: str) -> None:
    both.emulator.fail(kind, both.on(verb), times=2, retry_after_s=3)
    machine = both.acquire()
    both.provider().release(machine)
    assert both.emulator.names == []
    assert len(both.emulator.account.ended) == 1


@pytest.mark.parametrize("kind", ["done-cut", "done-late"])
def test_a_creation_without_an_answer_is_looked_up_by_name(
    both: Rig, kind: str, monkeypatch: Any, fault: Fault
) -> None:
    if kind == "done-late" and both.api == "sdk":
        cut_short(monkeypatch)
    fault.strikes()
    both.emulator.fail(kind, both.on("create"))
    machine = both.with_limits(request_s=0.5).acquire()
    assert both.emulator.names == [machine.name]
    assert both.creations == 1
    fault.machines(listed(both), both.emulator.names)
    fault.leaves_out(**NO_RUN)


def cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeout of RunPod's package, which has no setting for its 30 s."""
    import requests

    post = requests.post
    monkeypatch.setattr(requests, "post", lambda *args, **kwargs: post(*args, **{**kwargs, "timeout": 0.5}))


def test_a_creation_that_shows_late_does_not_stay_a_second_pod(both: Rig, fault: Fault) -> None:
    fault.strikes()
    both.emulator.next_pod(appears_after_s=1.5)
    both.emulator.fail("done-cut", both.on("create"))
    machine = both.acquire()
    assert both.creations == 2
    assert both.emulator.names == [machine.name]
    assert len(both.emulator.account.ended) == 1
    fault.machines(listed(both), both.emulator.names)
    fault.leaves_out(**NO_RUN)


def test_a_creation_that_shows_after_the_next_one_is_ready_does_not_stay(both: Rig) -> None:
    """A machine may be ready at once, and the first request be listed seconds later."""
    both.emulator.next_pod(appears_after_s=20)
    both.emulator.next_pod(boot_s=0.0)
    both.emulator.fail("done-cut", both.on("create"))
    machine = both.acquire()
    both.clock.sleep(60)
    assert (both.creations, both.emulator.names) == (2, [machine.name])
    assert len(both.emulator.account.ended) == 1


def test_ctrl_c_after_a_second_request_gives_both_back(both: Rig) -> None:
    both.emulator.next_pod(appears_after_s=20)
    both.emulator.fail("done-cut", both.on("create"))
    sleep = both.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        if both.creations == 2 and not both.emulator.account.ended:
            raise KeyboardInterrupt

    both.clock.sleep = slept  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        both.acquire()
    both.clock.sleep = sleep  # type: ignore[method-assign]
    both.clock.sleep(60)
    assert both.emulator.names == []


def test_ctrl_c_before_anything_was_sent_waits_for_no_pod(v2: Rig) -> None:
    """Too many requests: this one was not carried out, so no pod can be listed late."""
    v2.emulator.fail("429", v2.on("create"), retry_after_s=3)
    sleep, pressed = v2.clock.sleep, list[float]()

    def slept(seconds: float) -> None:
        sleep(seconds)
        if seconds == 3 and not pressed:
            pressed.append(v2.clock.now())
            raise KeyboardInterrupt

    v2.clock.sleep = slept  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        v2.acquire()
    assert v2.clock.now() - pressed[0] < 10  # of pauses between two requests


def test_a_network_that_is_lost_after_a_creation_is_no_proof_that_nothing_was_made(both: Rig) -> None:
    """The answer is lost, and then nothing can be sent: the list cannot be read, nor the request repeated."""
    both.emulator.fail("done-cut", both.on("create"))
    sleep = both.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        if both.creations:
            both.emulator.unplug()

    both.clock.sleep = slept  # type: ignore[method-assign]
    with pytest.raises(NoMachine, match=r"did not confirm that it created the pod .*may exist and bill"):
        both.acquire()
    assert both.intents() == [both.spec().name]


def taken_by_the_first(rig: Rig, status: int = 400, words: str = NO_ROOM) -> None:
    """The answer to the first creation is lost. The second is refused, as if the first had taken the last machine."""
    rig.emulator.fail("done-cut", rig.on("create"))
    sleep = rig.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        if rig.creations == 1:
            rig.emulator.account.refusals = [(status, words)]

    rig.clock.sleep = slept  # type: ignore[method-assign]


@pytest.mark.parametrize("gpus", [("NVIDIA RTX A4500", "NVIDIA A40"), ("NVIDIA RTX A4500",)], ids=["another", "none"])
def test_a_creation_that_shows_after_a_refusal_does_not_stay(both: Rig, gpus: tuple[str, ...], fault: Fault) -> None:
    """It is released beside the next candidate's pod, and also when no candidate is left."""
    fault.strikes()
    both.emulator.next_pod(appears_after_s=5)
    taken_by_the_first(both)
    if len(gpus) > 1:
        assert of(both, both.acquire(gpus=gpus).name).gpu == gpus[1]
    else:
        with pytest.raises(NoMachine, match="has no machine"):
            both.acquire(gpus=gpus)
    assert len(both.emulator.names) == len(gpus) - 1
    assert len(both.emulator.account.ended) == 1
    fault.machines(listed(both), both.emulator.names)
    fault.leaves_out(**NO_RUN)


def test_a_creation_before_an_empty_balance_is_named(both: Rig) -> None:
    """The first pod took the last credit: it may exist, so its note stays."""
    both.emulator.next_pod(appears_after_s=600)
    taken_by_the_first(both, 402, "insufficient balance to deploy")
    with pytest.raises(NoMachine, match=r"did not confirm that it created the pod .*insufficient balance"):
        both.acquire()
    assert both.intents() == [both.spec().name]


def test_a_pod_that_the_api_does_not_know_at_first_is_waited_for(v2: Rig) -> None:
    """It bills from the start, so another one would be a second. Also its release would pass for done."""
    v2.emulator.fail("404", v2.on("get"), times=3)
    v2.emulator.fail("404", v2.on("end"))
    machine = v2.acquire()
    assert v2.creations == 1
    assert v2.emulator.names == [machine.name]


def test_ctrl_c_releases_a_pod_that_the_api_does_not_know_yet(v2: Rig) -> None:
    """The 404 of its release would pass for done."""
    v2.emulator.fail("404", v2.on("end"), times=2)
    sleep = v2.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        v2.clock.sleep = sleep  # type: ignore[method-assign]
        raise KeyboardInterrupt

    v2.clock.sleep = slept  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        v2.acquire()
    assert v2.emulator.names == []
    assert len(v2.emulator.account.ended) == 1


def test_a_creation_that_stays_unclear_is_named_and_found_later(both: Rig, fault: Fault) -> None:
    fault.strikes()
    both.emulator.next_pod(appears_after_s=600)
    both.emulator.fail("done-cut", both.on("create"))
    both.emulator.fail("502", both.on("create"), times=99)
    with pytest.raises(NoMachine, match=f"did not confirm that it created the pod {both.spec().name}"):
        both.acquire()
    assert both.intents() == [both.spec().name]
    both.emulator.faults.clear()
    both.clock.sleep(600)
    machine = both.acquire("r2")
    assert machine.name == both.spec().name
    assert both.emulator.names == [machine.name]
    fault.machines(listed(both), both.emulator.names)
    fault.leaves_out(**NO_RUN)


def test_an_api_that_is_down_for_a_while_costs_no_pod(both: Rig, fault: Fault) -> None:
    """The API is down for four minutes while a pod starts."""
    fault.strikes()
    sleep = both.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        both.emulator.down(10 < both.clock.now() < 250)

    both.clock.sleep = slept  # type: ignore[method-assign]
    machine = both.acquire()
    assert both.clock.now() > 250
    assert both.emulator.names == [machine.name]
    assert both.creations == 1
    fault.machines(listed(both), both.emulator.names)
    fault.leaves_out(**NO_RUN)


def test_what_cannot_be_given_back_is_named(both: Rig) -> None:
    sleep = both.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        both.emulator.down(both.clock.now() > 10)

    both.clock.sleep = slept  # type: ignore[method-assign]
    with pytest.raises(NoMachine, match=f"pod0001.*{both.spec().name}.*still bills") as caught:
        both.acquire(wait_min=1)
    assert "console.runpod.io" in (caught.value.next_command or "")
    assert both.intents() == [both.spec().name]


# A machine that does not match the request


@pytest.mark.parametrize(
    ("oddity", "why"),
    [
        ({"zero_gpus": True}, "it has no GPUs"),
        ({"memory_gib": 15.0}, "15 GiB of memory, less than min_memory_gib: 40"),
        ({"usd_per_hour": 3.5}, "3.50 USD an hour, more than max_usd_per_hour: 1"),
        ({"ends": "EXITED"}, "ended while it started"),
        ({"vanishes_after_s": 20.0}, "vanished while it started"),
    ],
    ids=["zero-gpus", "small-memory", "dear", "ended", "vanished"],
)
def test_it_is_given_back_and_the_next_is_tried(both: Rig, oddity: dict[str, Any], why: str) -> None:
    both.emulator.next_pod(**oddity)
    machine = both.acquire(min_memory_gib=40)
    pod = of(both, machine.name)
    assert (pod.gpu, both.creations) == ("NVIDIA A40", 2)
    assert both.emulator.names == [machine.name]
    both.provider().release(machine)
    both.emulator.next_pod(**oddity)
    with pytest.raises(NoMachine) as caught:
        both.acquire(min_memory_gib=40, gpus=("NVIDIA A40",))
    assert why in caught.value.evidence[0]
    assert both.emulator.names == []
    assert both.intents() == []


def test_what_a_machine_cost_that_was_given_back_is_told(v2: Rig) -> None:
    v2.emulator.next_pod(zero_gpus=True, boot_s=600.0)
    provider, wasted = v2.provider(), list[float]()
    provider.waste = wasted.append
    provider.acquire(v2.spec())
    assert wasted == [pytest.approx(0.25 * 620 / 3600, rel=0.05)]  # ten minutes of the first candidate


def test_zero_gpus_are_seen_without_the_image_telling(v2: Rig) -> None:
    v2.emulator.prints_keys = False
    v2.emulator.next_pod(zero_gpus=True)
    assert of(v2, v2.acquire().name).gpu == "NVIDIA A40"


def test_running_is_not_ready(both: Rig) -> None:
    """A RUNNING pod reports no runtime for a minute, and its SSH server answers half a minute later."""
    both.emulator.account.runtime_null_s = 60
    both.emulator.ssh_late_s = 90
    both.acquire()
    assert both.clock.now() >= 30 + 90
    assert any("waiting for its SSH server" in said for said in both.said)
    assert any("waiting for its container" in said for said in both.said)


def test_one_that_does_not_answer_in_time_goes_back_with_its_last_words(v2: Rig) -> None:
    v2.emulator.ssh_late_s = 9999
    with pytest.raises(NoMachine, match="did not answer within wait_min: 2") as caught:
        v2.acquire(wait_min=2)
    assert "booting" in caught.value.evidence
    assert v2.emulator.names == []
    assert 100 < v2.clock.now() <= 120


def test_a_bad_start_is_not_waited_for(v2: Rig) -> None:
    """The start would fail on the next machine, too, so no other machine is tried."""
    v2.emulator.next_pod(bad_start="PUBLIC_KEY is not set")
    with pytest.raises(NoMachine, match="failed to start: PUBLIC_KEY is not set") as caught:
        v2.acquire()
    assert caught.value.evidence[1:3] == ("booting", "sniperface bad start: PUBLIC_KEY is not set")
    assert v2.emulator.names == []
    assert v2.clock.now() < 60
    assert v2.creations == 1


def test_ctrl_c_gives_back(both: Rig) -> None:
    ctrl_c_while_it_starts(both)
    with pytest.raises(KeyboardInterrupt):
        both.acquire()
    assert both.emulator.names == []
    assert both.intents() == []


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals: run it on Linux or macOS")
@pytest.mark.parametrize("appears_after_s", [0.0, 15.0])
def test_ctrl_c_while_it_is_made_gives_back(both: Rig, appears_after_s: float) -> None:
    """Also if it is not listed at once."""
    both.emulator.next_pod(appears_after_s=appears_after_s)
    ctrl_c_while_it_is_made(both, both.on("create"))
    with pytest.raises(KeyboardInterrupt):
        both.acquire()
    both.clock.sleep(60)
    assert both.emulator.names == []


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_what_ends_a_launch_at_any_line_after_it_is_made_gives_back(v2: Rig, raised: type[BaseException]) -> None:
    """Until a machine is handed out, no line is left at which Ctrl-C, or an unexpected error, would let it bill."""
    path = (Making.new, Making._tried, Making._requested, Making._handed_out)
    for line in at_each_line(path, lambda: bool(v2.emulator.names), v2.acquire, raised):
        assert v2.emulator.names == [], line
        lines = line + 1
    assert lines > 5
    assert len(v2.emulator.names) == 1


def test_after_a_killed_launch_its_pod_is_the_one(both: Rig, fault: Fault) -> None:
    killed(both)
    fault.strikes()
    fault.machines(listed(both), both.emulator.names)
    fault.leaves_out(**NO_RUN)
    assert both.acquire("r2").name == both.spec().name
    assert both.creations == 1


def test_after_a_killed_launch_its_bad_pod_goes_back(both: Rig) -> None:
    both.emulator.next_pod(memory_gib=15.0)
    killed(both, min_memory_gib=40)
    machine = both.acquire("r2", min_memory_gib=40)
    assert both.emulator.names == [machine.name]
    assert machine.name == both.spec("r2").name


def test_one_that_was_in_use_is_never_ended_by_other_settings(sdk: Rig) -> None:
    first = sdk.acquire()
    with pytest.raises(NoMachine):
        sdk.acquire("r2", min_memory_gib=999)
    assert sdk.emulator.names == [first.name]
    assert any("unchanged: " in said for said in sdk.said)
