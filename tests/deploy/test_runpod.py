"""The provider's four verbs before the emulator: with both APIs, in good times and with each fault."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import image
from deploy.errors import NoMachine, StepFailed, WrongUse
from deploy.machine import Machine
from tests.emulators.clock import START
from tests.emulators.rig import Rig, rig

PROJECT = Path(__file__).parents[2]


@pytest.fixture(params=["v2", "sdk"])
def both(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    yield from rig(request.param, tmp_path, monkeypatch, boot_s=30)


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    yield from rig("v2", tmp_path, monkeypatch, boot_s=30)


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    yield from rig("sdk", tmp_path, monkeypatch, boot_s=30)


def of(rig: Rig, name: str) -> Any:
    return rig.emulator.pod(name)


# Made


def test_a_pod_is_what_the_target_asks_for(both: Rig) -> None:
    machine = both.acquire(gpu_count=2, data_centers=("US-KS-2",), disk_gib=60)
    pod = of(both, both.spec().name)
    assert (pod.gpu, pod.gpu_count, pod.data_center, pod.disk) == ("NVIDIA RTX A4500", 2, "US-KS-2", 60)
    assert (pod.image, pod.ports, pod.cloud, pod.mounts) == ("me/sniperface:1", ["22/tcp"], "SECURE", {})
    assert machine.usd_per_hour == 0.5
    assert (machine.name, machine.id, str(machine.root)) == (pod.name, pod.id, "/workspace/sniperface")


def test_the_environment_of_a_pod_is_the_public_key_alone(both: Rig) -> None:
    machine = both.acquire()
    env = of(both, machine.name).env
    assert list(env) == ["PUBLIC_KEY"]
    assert env["PUBLIC_KEY"].startswith("ssh-ed25519 AAAA")
    assert not set(env["PUBLIC_KEY"]) & set('\r\n"')
    assert machine.address
    assert machine.address.key
    assert Path(machine.address.key).read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")


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
    assert "names no host key" in v2.said[-1]


@pytest.mark.parametrize("status", ["403", "404", "409"])
def test_a_log_that_may_not_be_read_costs_no_pod(v2: Rig, status: str) -> None:
    """A key without that right, or a log that is not there yet; the second look finds it."""
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
    """As `invoke push` names it."""
    for name in (*image.FILES, "pyproject.toml"):
        (both.project / name).parent.mkdir(parents=True, exist_ok=True)
        (both.project / name).write_bytes((PROJECT / name).read_bytes())
    machine = both.acquire(image="registry.example:5000/me/sniperface")
    tag = image.tag(both.project)
    assert of(both, machine.name).image == f"registry.example:5000/me/sniperface:{tag}"


# Candidates


def test_the_next_candidate_is_tried_when_there_is_no_room(both: Rig) -> None:
    both.emulator.no_room(3)
    machine = both.acquire(data_centers=("EU-RO-1", "US-KS-2", "EU-SE-1"))
    # v2 knows the stock: A4500 and A40 are in two of the three each, the fourth of those is had. The other asks
    # everywhere: for A4500 in three, for A40 in one that has none, then in the next.
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
    with pytest.raises(NoMachine, match="perhaps the request itself: disk must be at most 20"):
        both.acquire()


def test_a_forbidden_pool_is_passed_over(both: Rig) -> None:
    both.emulator.refuse(403, "access denied: not authorized for this pool")
    assert of(both, both.acquire().name).gpu == "NVIDIA A40"


@pytest.mark.parametrize(
    ("status", "words", "kind", "told"),
    [
        (402, "insufficient balance to deploy", NoMachine, "balance"),
        (422, "Syntax Error: body breaks the contract", WrongUse, "refuses the request"),
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


# A bad line


def test_too_many_calls_wait_as_long_as_is_asked(v2: Rig) -> None:
    v2.emulator.fail("429", v2.on("create"), retry_after_s=17)
    v2.acquire()
    first, second = (each.time for each in v2.emulator.exchanges if each.what == "POST /v2/pods")
    assert second - first == 17
    assert v2.emulator.counts()["GET /v2/pods"] == 1  # nothing was done, so there is nothing to look for


@pytest.mark.parametrize("verb", ["create", "list", "get", "end"])
@pytest.mark.parametrize("kind", ["502", "cut", "429"])
def test_a_bad_answer_is_asked_again(both: Rig, verb: str, kind: str) -> None:
    both.emulator.fail(kind, both.on(verb), times=2, retry_after_s=3)
    machine = both.acquire()
    both.provider().release(machine)
    assert both.emulator.names == []
    assert len(both.emulator.account.ended) == 1


@pytest.mark.parametrize("kind", ["done-cut", "done-late"])
def test_a_creation_without_an_answer_is_looked_up_by_name(both: Rig, kind: str, monkeypatch: Any) -> None:
    if kind == "done-late" and both.api == "sdk":
        cut_short(monkeypatch)
    both.emulator.fail(kind, both.on("create"))
    machine = both.with_limits(request_s=0.5).acquire()
    assert both.emulator.names == [machine.name]
    assert both.creations == 1


def cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package waits for 30 s; it has no setting for that."""
    import requests

    post = requests.post
    monkeypatch.setattr(requests, "post", lambda *args, **kwargs: post(*args, **{**kwargs, "timeout": 0.5}))


def test_a_creation_that_shows_late_does_not_stay_a_second_pod(both: Rig) -> None:
    both.emulator.next_pod(appears_after_s=1.5)
    both.emulator.fail("done-cut", both.on("create"))
    machine = both.acquire()
    assert both.creations == 2
    assert both.emulator.names == [machine.name]
    assert len(both.emulator.account.ended) == 1


def test_a_creation_that_stays_unclear_is_named_and_found_later(both: Rig) -> None:
    both.emulator.next_pod(appears_after_s=600)
    both.emulator.fail("done-cut", both.on("create"))
    both.emulator.fail("502", both.on("create"), times=99)
    with pytest.raises(NoMachine, match=f"did not say whether it made the pod {both.spec().name}"):
        both.acquire()
    assert both.intents() == [both.spec().name]
    both.emulator.faults.clear()
    both.clock.sleep(600)
    machine = both.acquire("r2")
    assert machine.name == both.spec().name
    assert both.emulator.names == [machine.name]


def test_an_api_that_is_down_for_a_while_costs_no_pod(both: Rig) -> None:
    """While a pod starts, and the calls come back after four minutes."""
    sleep = both.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        both.emulator.down(10 < both.clock.now() < 250)

    both.clock.sleep = slept  # type: ignore[method-assign]
    machine = both.acquire()
    assert both.clock.now() > 250
    assert both.emulator.names == [machine.name]
    assert both.creations == 1


def test_what_cannot_be_given_back_is_named(both: Rig) -> None:
    sleep = both.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        both.emulator.down(both.clock.now() > 10)

    both.clock.sleep = slept  # type: ignore[method-assign]
    with pytest.raises(NoMachine, match=f"pod0001.*{both.spec().name}.*bills on") as caught:
        both.acquire(wait_min=1)
    assert "console.runpod.io" in (caught.value.next_command or "")
    assert both.intents() == [both.spec().name]


# A machine that is not what was asked for


@pytest.mark.parametrize(
    ("oddity", "why"),
    [
        ({"zero_gpus": True}, "without GPUs"),
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


def test_zero_gpus_are_seen_without_the_image_telling(v2: Rig) -> None:
    v2.emulator.prints_keys = False
    v2.emulator.next_pod(zero_gpus=True)
    assert of(v2, v2.acquire().name).gpu == "NVIDIA A40"


def test_running_is_not_ready(both: Rig) -> None:
    """Runtime unknown for a minute, then an SSH server that comes half a minute later."""
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
    assert caught.value.evidence[0] == "booting"
    assert v2.emulator.names == []
    assert 100 < v2.clock.now() <= 120


def test_a_bad_start_is_not_waited_for(v2: Rig) -> None:
    """It would be one on the next machine, too."""
    v2.emulator.next_pod(bad_start="PUBLIC_KEY is not set")
    with pytest.raises(NoMachine, match="did not start well: PUBLIC_KEY is not set") as caught:
        v2.acquire()
    assert caught.value.evidence[:2] == ("booting", "sniperface bad start: PUBLIC_KEY is not set")
    assert v2.emulator.names == []
    assert v2.clock.now() < 60
    assert v2.creations == 1


def test_ctrl_c_gives_back(both: Rig) -> None:
    sleep = both.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        if both.emulator.names:
            raise KeyboardInterrupt

    both.clock.sleep = slept  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        both.acquire()
    assert both.emulator.names == []
    assert both.intents() == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals: run it on Linux or macOS")
def test_ctrl_c_while_it_is_made_gives_back(both: Rig) -> None:
    """The request is under way, RunPod carries it out, and nobody is there for the answer."""
    create = both.emulator.account.create

    def interrupted(**about: Any) -> Any:
        pod = create(**about)
        os.kill(os.getpid(), signal.SIGINT)
        return pod

    both.emulator.account.create = interrupted  # type: ignore[method-assign]
    both.emulator.fail("done-late", both.on("create"))
    with pytest.raises(KeyboardInterrupt):
        both.acquire()
    assert both.emulator.names == []


def killed(rig: Rig, **options: Any) -> None:
    """The laptop's process dies while a pod starts: nothing of it runs any more, not even what gives back."""

    class Killed(BaseException):
        pass

    def die(seconds: float) -> None:
        del seconds
        rig.emulator.down()
        raise Killed

    sleep, rig.clock.sleep = rig.clock.sleep, die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        rig.acquire(**options)
    rig.clock.sleep = sleep  # type: ignore[method-assign]
    rig.emulator.down(False)
    assert rig.emulator.names == [rig.spec().name]
    assert rig.intents() == [rig.spec().name]


def test_after_a_killed_launch_its_pod_is_the_one(both: Rig) -> None:
    killed(both)
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
    assert any("left as it is" in said for said in sdk.said)


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
    for _ in range(3):
        assert v2.provider().find(machine.name) == machine
    assert v2.emulator.counts()["GET /v2/pods/pod0001/logs"] == 1


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
    both.provider().release(Machine("sniperface-x", "runpod", machine.root, "python"))
    assert both.emulator.names == []


def test_release_by_name_ends_every_pod_of_that_name(both: Rig) -> None:
    machine = both.acquire()
    both.provider().release(Machine(machine.name, "runpod", machine.root, "python"))
    assert both.emulator.names == []


def test_a_pod_between_two_states_is_asked_again(v2: Rig) -> None:
    machine = v2.acquire()
    v2.emulator.fail("409", v2.on("end"), times=2)
    v2.provider().release(machine)
    assert v2.emulator.names == []


def test_a_locked_pod_is_named(v2: Rig) -> None:
    v2.emulator.next_pod(locked=True)
    machine = v2.acquire()
    with pytest.raises(StepFailed, match="could not be given back and bills on: pod is locked"):
        v2.provider().release(machine)
    assert v2.intents() == [machine.name]


def test_release_does_not_wait_for_its_turn(both: Rig) -> None:
    """The pace is ours, what bills is the user's."""
    provider = both.provider()
    machine = provider.acquire(both.spec())
    provider.list()
    provider.list()
    before = both.clock.now()
    provider.release(machine)
    assert both.clock.now() == before


# The pace


def test_asking_stays_within_fifteen_a_minute(both: Rig) -> None:
    """Eight candidates refused, then a pod that starts for five minutes."""
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
    with pytest.raises(NoMachine, match="used up for 1812 s"):
        provider.list()
