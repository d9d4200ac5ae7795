"""`doctor --rent`: what the trial of a machine reports, what forbids it, and that the machine ends whatever happens."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.commands import doctor, rental
from deploy.errors import DeployError, WrongUse
from deploy.runs.session import Reach
from deploy.specs.settings import load
from deploy.specs.trial import Finding, Funds, Offer, low_balance, refusal
from deploy.ui.screen import Screen
from tests.deploy.conftest import SOURCE, Project, wait_until
from tests.deploy.support.pods import PATIENT, ProcessPod
from tests.support.emulators.rig import Rig, rig
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.load import under_load

TARGET = "provider: runpod\nimage: me/x:1\ngpus: [NVIDIA A40]\nroot: {root}\nmin_cuda: '12.4'\n"
ENDS = "the machine ends itself"
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: the pod's programs start with /bin/sh")


def with_one_gpu(folder: Path, url: Callable[[], str]) -> Callable[[Any], ProcessPod]:
    """Make pods that are processes behind a real SSH server. nvidia-smi there lists one GPU."""

    def made(pod: Any) -> ProcessPod:
        machine = ProcessPod(pod, folder, url())
        smi = machine.bin / "nvidia-smi"
        smi.write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA RTX A4500, 580.65.06'\n")
        smi.chmod(0o755)
        return machine

    return made


@pytest.fixture
def account(project: Project, tmp_path: Path) -> Iterator[Emulator]:
    """An account with such pods, for commands."""
    emulator = Emulator(pods=with_one_gpu(tmp_path / "pods", lambda: emulator.url))
    emulator.holds_streams = False
    text = TARGET.format(root=tmp_path / "there")
    (project.path / "conf" / "deploy" / "far.yaml").write_text(text, encoding="utf-8")
    project.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY, "no_proxy": "*"}
    yield emulator
    emulator.close()


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """The same for functions, with a fake clock."""
    made: list[Rig] = []
    pods = with_one_gpu(tmp_path / "pods", lambda: made[0].emulator.url)
    for each in rig("v2", tmp_path, monkeypatch, pods=pods):
        made.append(each)
        yield each.with_limits(**PATIENT)


def try_out(rig: Rig, *, yes: bool = True, **target: Any) -> dict[str, Finding]:
    """Run the trial with the clock of the rig. Returns what was found."""
    provider = rig.provider(min_cuda="12.4")
    target.setdefault("root", str(rig.project / "there"))
    provider.settings = replace(provider.settings, target=replace(provider.settings.target, **target))
    with Reach(provider.settings) as at:
        at.provider = provider
        return {each.what: each for each in [*doctor._account(at), *rental.try_out(at, Screen(), yes=yes)]}


def failure(rig: Rig, **about: Any) -> str:
    with pytest.raises(DeployError) as caught:
        try_out(rig, **about)
    return f"{type(caught.value).__name__}: {caught.value.message}"


@posix
def test_the_trial_reports_what_the_account_allows_and_leaves_nothing(
    real: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cheapest GPU of the catalogue is rented. The pod ends itself with its own key."""
    told = try_out(real)
    [pod] = real.emulator.account.ended
    assert (pod.gpu, pod.gpu_count, pod.mounts) == ("NVIDIA RTX A4500", 1, {})
    assert "__doctor-" in pod.name
    assert pod.env["SNIPERFACE_UNATTENDED_MIN"] == "5"
    assert (real.emulator.names, real.intents()) == ([], [])
    assert told[ENDS].level == "ok"
    assert told["the pod's key reads own pod"].found == "200 OK"
    assert told["the pod's key reads account by GraphQL"].found == "200 OK"
    assert "RUNPOD_API_KEY" in told["RUNPOD_ variables in the pod"].found
    assert told["GPUs by nvidia-smi"].found == "1, driver 580.65.06"
    assert told["request fields in RunPod's live specification"].found == "all that are sent"
    assert told["requests for memory and CPU cores"].found == "minRamPerGpu: no, minVcpuCountPerGpu: no"
    assert told["price"].found.startswith("without its disk: 0.2500 USD an hour")
    assert told["balance"].found.startswith("25.00 USD; 0.00 USD an hour bills now")
    assert told["host key in the log of the pod"].level == "ok"
    assert told["limit of API calls"].found == '"minute";q=60;w=60'
    printed = capsys.readouterr().out
    assert "at most 0.13 USD for 29 minutes" in printed
    assert f"- {ENDS}: yes" in printed


@posix
def test_a_pod_whose_key_may_do_nothing_is_released_from_here(real: Rig) -> None:
    real.emulator.pod_key_may = "^$"
    told = try_out(real)
    assert told[ENDS].level == "problem"
    assert "403 Forbidden" in told[ENDS].found
    assert told["the pod's key reads all pods"].found == "403 Forbidden"
    assert (real.emulator.names, real.intents()) == ([], [])


@posix
def test_a_price_with_the_disk_and_a_newer_specification_are_reported(real: Rig) -> None:
    """The figures decide which of the open questions has which answer."""
    real.emulator.next_pod(usd_per_hour=0.25 + 20 * 0.10 / 730)
    fields = {"minRamPerGpu": {}, "id": {}, "count": {}}
    schemas = {"CreateGpuConfig": {"properties": fields}, "CreatePodRequest": {"properties": {"name": {}}}}
    real.emulator.account.specification = {"components": {"schemas": schemas}}
    told = try_out(real)
    assert told["price"].found.startswith("with its disk: 0.2527 USD")
    assert told["requests for memory and CPU cores"].found == "minRamPerGpu: yes, minVcpuCountPerGpu: no"
    assert told["request fields in RunPod's live specification"].level == "problem"
    assert "minCudaVersion" in told["request fields in RunPod's live specification"].found


@posix
def test_the_command_prints_one_document(project: Project, account: Emulator) -> None:
    done = project.invoke("doctor", "--on", "far", "--rent", "--json")
    told = {each["what"]: each for each in json.loads(done.stdout)}
    assert {"python", "git", "balance", ENDS} <= set(told)
    assert told[ENDS]["found"].startswith("yes")
    assert account.names == []


@pytest.mark.parametrize(
    ("balance", "limit", "target", "why"),
    [
        (0.10, 80, {}, "balance of 0.10 USD is below one hour"),
        (9.0, 0, {}, "above the account's limit 0"),
        (9.0, 80, {"max_usd": 0.01}, "more than max_usd: 0.01"),
    ],
)
def test_nothing_is_rented_that_the_money_forbids(
    v2: Rig, balance: float, limit: int, target: dict[str, Any], why: str
) -> None:
    v2.emulator.account.balance_usd, v2.emulator.account.spend_limit_usd_per_hour = balance, limit
    told = failure(v2, **target)
    assert told.startswith("NoMachine: nothing was rented")
    assert why in told
    assert v2.creations == 0


def test_a_cost_above_confirm_usd_needs_consent(v2: Rig) -> None:
    """Without a terminal, --yes is the consent; the message has the price and the most that it can cost."""
    told = failure(v2, yes=False, confirm_usd=0.01)
    assert told.startswith("WrongUse: renting NVIDIA RTX A4500")
    assert "0.25 USD an hour, at most 0.13 USD for 29 minutes: give --yes" in told
    assert v2.creations == 0


def test_limits_of_the_target_hold_for_the_trial(v2: Rig) -> None:
    options = replace(v2.provider().options, max_usd_per_hour=0.2)
    assert "has no machine for target 'runpod' now" in failure(v2, options=options)
    assert v2.creations == 0


FAULTS = {
    "no room": lambda rig: rig.emulator.no_room(99),
    "no money": lambda rig: rig.emulator.refuse(402, "insufficient balance", 99),
    "never answers": lambda rig: [rig.emulator.next_pod(boot_s=10**6) for _ in range(9)],
    "unfit": lambda rig: [rig.emulator.next_pod(zero_gpus=True) for _ in range(9)],
    "login": lambda _: None,  # a greeter is no SSH server
    "facts": lambda rig: rig.emulator.fail("502", rig.on("get"), times=99),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_at_any_step_releases_the_pod(v2: Rig, fault: str) -> None:
    FAULTS[fault](v2)
    told = failure(v2)
    assert told.startswith(("NoMachine: ", "StepFailed: ", "LinkLost: ", "BadAnswer: ")), told
    assert (v2.emulator.names, v2.intents()) == ([], []), told
    assert bool(v2.emulator.account.ended) == (fault not in ("no room", "no money"))


@pytest.mark.parametrize("publishes", ["nothing", "address"])
def test_a_closed_terminal_does_not_prevent_the_release(
    v2: Rig, monkeypatch: pytest.MonkeyPatch, publishes: str
) -> None:
    """Each message fails once a pod exists: while it starts, and while it is asked."""
    v2.emulator.next_pod(publishes=publishes)
    say = Screen.say

    def closed(screen: Screen, text: str) -> None:
        if v2.emulator.account.pods:
            raise BrokenPipeError(32, "Broken pipe")
        say(screen, text)

    monkeypatch.setattr(Screen, "say", closed)
    with pytest.raises((DeployError, OSError)):
        try_out(v2)
    assert (v2.emulator.names, v2.intents()) == ([], [])
    assert v2.emulator.account.ended


def test_bad_hosts_do_not_make_the_trial_longer(v2: Rig) -> None:
    """Hosts that pull for three minutes and then fail: after five minutes no further one is requested."""
    for _ in range(9):
        pulls = (1.0, "create container me/x"), (180.0, "failed to register layer: no space left on device")
        v2.emulator.next_pod(has_container=False, system=pulls)
    assert failure(v2).startswith("NoMachine: RunPod has no machine")
    assert v2.creations == 2
    assert v2.emulator.names == []


def test_ctrl_c_releases_the_pod(v2: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also once the pod answers, before and during the login."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rental, "_look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        try_out(v2)
    assert (v2.emulator.names, v2.intents(), len(v2.emulator.account.ended)) == ([], [], 1)


@posix
def test_a_laptop_that_ends_in_the_middle_releases_the_pod(project: Project, account: Emulator) -> None:
    """SIGTERM while the machine answers questions; the answers that were seen are printed."""
    account.fail("done-late", "graphql pod$", times=1)  # the pod's own question: it hangs until the pod ends
    process = project.start("doctor", "--on", "far", "--rent", "--yes")
    wait_until(lambda: any(each.fault for each in account.exchanges), 30)
    process.send_signal(signal.SIGTERM)
    told, complaint = process.communicate(timeout=under_load(60))
    assert (process.returncode, account.names) == (143, []), told + complaint
    assert "login with the project's key: yes" in told
    assert len(account.account.ended) == 1


def test_a_target_that_rents_nothing_is_wrong_use() -> None:
    with Reach(load(SOURCE, "local", {})) as at, pytest.raises(WrongUse, match="target 'local' rents nothing"):
        rental.try_out(at, Screen(), yes=True)
    with pytest.raises(WrongUse, match="--yes accepts the cost of --rent"):
        rental.doctor(SOURCE, "local", Screen(), rent=False, yes=True)


@pytest.mark.parametrize(
    ("funds", "max_usd", "why"),
    [
        (None, None, None),
        (Funds(10.0, 0.0, 80.0), 50.0, None),
        (Funds(0.3, 0.0), None, None),
        (Funds(0.29, 0.0), None, "balance of 0.29 USD"),
        (Funds(10.0, 79.9, 80.0), None, "account's limit 80"),
        (None, 0.05, "more than max_usd: 0.05"),
    ],
)
def test_what_forbids_a_trial(funds: Funds | None, max_usd: float | None, why: str | None) -> None:
    told = refusal(Offer("a GPU", 0.3, 20.0), funds, max_usd)
    assert (told is None) if why is None else (why in str(told))


def test_how_long_a_balance_lasts() -> None:
    assert Funds(10.0, 1.5).hours(0.5) == 5.0
    assert Funds(-1.0, 1.5).hours(0.5) == 0.0
    assert Funds(1.0, 0.0).hours(0.0) == float("inf")


def test_a_run_that_the_balance_does_not_last_for_is_warned_of() -> None:
    """Without a volume or a copy, the checkpoints of the machine are lost at 0 USD."""
    funds = Funds(3.0, 0.5)
    assert low_balance(funds, 0.5, 3.0, is_copied=False) is None
    told = low_balance(funds, 0.5, 3.1, is_copied=False)
    assert told is not None
    assert "balance of 3.00 USD lasts for 3.0 hours of this run, which is expected to take 3.1" in told
    assert "set volume or sync_to" in told
    assert "sync_to" not in str(low_balance(funds, 0.5, 3.1, is_copied=True))
    assert low_balance(funds, 2.0, None, is_copied=True) is None
    assert low_balance(funds, 3.0, None, is_copied=True) is not None


def test_a_plan_says_that_the_balance_is_low(project: Project) -> None:
    emulator = Emulator()
    try:
        emulator.account.balance_usd = 0.3
        text = TARGET.format(root="/workspace/x")
        (project.path / "conf" / "deploy" / "far.yaml").write_text(text, encoding="utf-8")
        project.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY, "no_proxy": "*"}
        done = project.invoke("train", "--on", "far", "--dry-run")
        assert "warning: the balance of 0.30 USD lasts for 0.7 hours" in " ".join(done.stdout.split())
        assert emulator.counts()["POST /v2/pods"] == 0
    finally:
        emulator.close()
