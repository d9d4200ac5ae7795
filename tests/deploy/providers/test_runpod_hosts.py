"""An unusable host costs seconds, not twenty minutes: it is released, and the next candidate is tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deploy.errors import NoMachine
from deploy.providers.runpod import signs
from deploy.providers.runpod.api import LogLine
from deploy.specs.settings import load
from tests.support.emulators.hosts import HOSTS, PULLING, Host
from tests.support.emulators.rig import Rig, of

WANTED: dict[str, Any] = {"min_cuda": "12.8", "data_centers": ("EU-RO-1", "US-KS-2")}
REFUSED_WITHIN_S = 30


@pytest.mark.parametrize("name", HOSTS)
def test_an_unfit_host_is_refused_in_seconds(
    v2: Rig, name: str, record_property: Callable[[str, object], None]
) -> None:
    """If the host is the only candidate, the command ends with the reason, and nothing bills.

    benchmarks/unfit_hosts.py reads the recorded seconds.
    """
    host = HOSTS[name]
    v2.emulator.next_pod(**host.oddities)
    with pytest.raises(NoMachine) as caught:
        v2.acquire(**{**WANTED, "data_centers": ("EU-RO-1",), "gpus": ("NVIDIA RTX A4500",)})
    told = "\n".join([caught.value.message, *caught.value.evidence])
    assert host.says in told
    record_property("host", name)
    record_property("refused_s", v2.clock.now())
    assert v2.clock.now() <= REFUSED_WITHIN_S
    assert (v2.emulator.names, v2.intents(), v2.creations) == ([], [], 1)


@pytest.mark.parametrize("host", [host for host in HOSTS.values() if not host.everywhere])
def test_after_a_bad_host_the_next_candidate_comes(v2: Rig, host: Host) -> None:
    v2.emulator.next_pod(**host.oddities)
    machine = v2.acquire(**{**WANTED, "gpus": ("NVIDIA RTX A4500",)})
    assert of(v2, machine.name).data_center == "US-KS-2"
    assert v2.clock.now() <= REFUSED_WITHIN_S
    assert (v2.emulator.names, v2.creations) == ([machine.name], 2)


def test_an_image_that_no_host_can_pull_is_asked_for_once(v2: Rig) -> None:
    v2.emulator.next_pod(**HOSTS["private image"].oddities)
    with pytest.raises(NoMachine, match=r"cannot pull the image me/sniperface:1: .*pull access denied") as caught:
        v2.acquire(**WANTED)
    assert "registry: for a private one" in (caught.value.next_command or "")
    assert v2.creations == 1


@pytest.mark.parametrize("publishes", ["nothing", "no ip"])
def test_a_pod_without_an_address_costs_seconds_by_either_api(both: Rig, publishes: str) -> None:
    both.emulator.next_pod(publishes=publishes)
    machine = both.acquire()
    assert of(both, machine.name).gpu == "NVIDIA A40"
    assert both.clock.now() <= 75  # includes waits for the limit of calls per minute


def test_a_slow_pull_is_waited_for_and_shown(v2: Rig) -> None:
    """The progress of the pull is a sign of life. The messages contain the host's last line."""
    v2.emulator.next_pod(boot_s=500.0, system=PULLING)
    v2.acquire()
    assert v2.clock.now() >= 500
    assert v2.creations == 1
    assert any("waiting for its container" in said and "Downloading 12 MB" in said for said in v2.said)


def starts_after(rig: Rig, seconds: float) -> None:
    """Let the container of a silent pod start late."""
    sleep = rig.clock.sleep

    def slept(pause_s: float) -> None:
        sleep(pause_s)
        if rig.clock.now() > seconds:
            rig.emulator.account.all()[0].has_container = True

    rig.clock.sleep = slept  # type: ignore[method-assign]


ALONE: dict[str, Any] = {"gpus": ("NVIDIA A40",), "data_centers": ("EU-SE-1",)}


def test_silent_s_waits_longer_for_a_first_sign(v2: Rig) -> None:
    """Where logs are late, the advice of the refusal, typed into the target's file, gives them time."""
    v2.emulator.next_pod(**HOSTS["silent"].oddities)
    with pytest.raises(NoMachine) as caught:
        v2.acquire(**ALONE)
    assert "(again; silent_s: 180 in " in (caught.value.next_command or "")
    assert v2.clock.now() <= REFUSED_WITHIN_S
    v2.emulator.next_pod(**HOSTS["silent"].oddities)
    starts_after(v2, 120)
    v2.acquire(**ALONE, silent_s=180)
    assert 120 <= v2.clock.now() <= 150
    assert (v2.creations, len(v2.emulator.names)) == (2, 1)


def test_a_change_of_status_is_a_sign_of_progress(v2: Rig) -> None:
    """The host logs nothing for 30 s, but the pod goes from PROVISIONING to STARTING after 16 s, so it may go on."""
    v2.emulator.next_pod(boot_s=80.0, system=((30.0, "create pod network"),))
    v2.acquire(**ALONE)
    assert v2.clock.now() >= 80
    assert v2.creations == 1


def test_a_pod_in_use_may_be_silent_for_longer(v2: Rig) -> None:
    """It restarts. A refusal would leave it billing beside a second pod."""
    name = v2.acquire(**ALONE).name
    v2.emulator.restart(name)
    pod = of(v2, name)
    pod.has_container, pod.system, began = False, (), v2.clock.now()
    starts_after(v2, began + 120)
    assert v2.acquire("r2", **ALONE).name == name
    assert v2.clock.now() - began >= 120
    assert v2.creations == 1


def test_a_closed_port_names_the_firewall(v2: Rig) -> None:
    v2.emulator.next_pod(**HOSTS["closed port"].oddities)
    with pytest.raises(NoMachine) as caught:
        v2.acquire(**ALONE)
    assert "firewall" in (caught.value.next_command or "")


def test_a_log_that_cannot_be_read_is_no_silence(v2: Rig) -> None:
    """The key may lack access to the log, or the API may fail. A start of five minutes is waited for."""
    v2.emulator.account.runtime_null_s = 300.0
    v2.emulator.fail("502", "/logs$", times=10**6)
    sleep = v2.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        if v2.clock.now() > 290:
            v2.emulator.faults.clear()

    v2.clock.sleep = slept  # type: ignore[method-assign]
    v2.acquire()
    assert v2.creations == 1
    assert v2.clock.now() >= 300


def test_a_pod_in_use_is_not_given_back_for_its_gpu(v2: Rig) -> None:
    """A warm pod is reused even if it lacks the GPU that a new pod must have."""
    first = v2.acquire(gpus=("NVIDIA RTX A4500",))
    assert v2.acquire("r2", gpus=("NVIDIA A40",)).name == first.name


def line(text: str, source: str = "system") -> LogLine:
    return LogLine(text, source)


@pytest.mark.parametrize(
    ("lines", "fault", "everywhere"),
    [
        ([], "", False),
        ([line("1 Pulling from me/sniperface"), line("Status: Downloaded newer image")], "", False),
        ([line("requirement error: x", "container")], "", False),  # a job may print anything
        ([line("requirement error: x")], "requirement error: x", False),
        ([line("toomanyrequests: authentication required")], "toomanyrequests: authentication required", False),
        ([line("error creating container: pull access denied for x")], "error creating container: pull", True),
        ([line("no space left on device"), line("sniperface ready: now", "container")], "", False),
        ([line("sniperface ready: now", "container"), line("no space left on device")], "no space left", False),
    ],
)
def test_what_a_log_says_of_a_start(lines: list[LogLine], fault: str, everywhere: bool) -> None:
    told = signs.read(lines)
    assert told.fault.startswith(fault)
    assert (bool(told.fault), told.everywhere) == (bool(fault), everywhere)


def test_a_line_of_the_host_is_shown_and_not_obeyed() -> None:
    told = signs.read([line("no space left on device \x1b[2J" + "x" * 9999)])
    assert "\x1b" not in told.fault
    assert len(told.fault) < 400


def test_a_data_centre_is_called_as_runpod_calls_it(v2: Rig) -> None:
    """Names in a target's file are converted: for another spelling the API finds no machine, without an error."""
    folder = v2.project / "conf" / "deploy"
    folder.mkdir(parents=True)
    (folder / "r.yaml").write_text(
        "provider: runpod\nroot: /w\nimage: me/x:1\ngpus: [NVIDIA A40]\ndata_centers: [eu-ro-1]\n", encoding="utf-8"
    )
    assert load(v2.project, "r", {}).target.options.data_centers == ("EU-RO-1",)  # type: ignore[union-attr]
    with pytest.raises(NoMachine) as caught:
        v2.acquire(data_centers=("EU-R0-1",))
    assert caught.value.evidence[0].endswith("no stock, did you mean 'EU-RO-1'?")
