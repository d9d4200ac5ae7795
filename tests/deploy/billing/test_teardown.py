"""What is downloaded before a machine is released, and what keeps a machine that nothing else uses."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.billing import teardown
from deploy.billing.teardown import bring_all_home, is_home, release_idle, run_of_another_laptop, stop_run
from deploy.commands import watch
from deploy.errors import NoMachine, StepFailed, command
from deploy.pod.base.folder import write_json
from deploy.pod.base.heartbeat import LOST_AFTER_S
from deploy.shell import LinkLost
from deploy.specs.machine import Address, Machine
from deploy.ui.screen import Screen
from tests.deploy.support.rented import Account, Near, Noting, Rented

# A rented machine is a Linux system; here it is a folder of this computer, with its python3.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")


@pytest.fixture
def rented(tmp_path: Path) -> Rented:
    made = Rented(tmp_path)
    made.machine()
    made.plan()
    return made


def alive(rented: Rented, run_id: str, heartbeat_age_s: float = 0.0, state: str = "running") -> None:
    """A run whose supervisor reports, and never ends."""
    folder = rented.project / "machines" / "m" / "runs" / run_id
    told = {"state": state, "attempt": 1, "heartbeat": time.time() - heartbeat_age_s}
    write_json(folder / "status.json", told)


def test_everything_that_only_the_machine_has_is_brought(rented: Rented) -> None:
    """Not what another machine has, nor a run that is only being prepared: it has nothing yet."""
    rented.record()
    rented.ran()
    rented.record("elsewhere", "other")
    rented.record("next", state="preparing")
    rented.ran("next")
    with Near(rented.settings, rented.account) as at:
        bring_all_home(at, rented.account.machines["m"], Screen(), anyway=False)
    assert (rented.home(), rented.home("elsewhere"), rented.home("next")) == (["epoch_000.pt"], [], [])


@pytest.mark.parametrize("anyway", [False, True])
def test_a_run_that_does_not_end_keeps_the_machine_unless_anyway(
    rented: Rented, anyway: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(teardown, "STOP_SLACK_S", 0.4)
    rented.record(state="running")
    alive(rented, "a")
    folder = rented.project / "machines" / "m" / "runs" / "a"
    (folder / "train.log").write_text("the last line\n", encoding="utf-8")
    machine = rented.account.machines["m"]
    with Near(rented.settings, rented.account) as at:
        if not anyway:
            with pytest.raises(StepFailed, match="the machine was kept") as failed:
                bring_all_home(at, machine, Screen(), anyway=False)
            assert failed.value.next_command == command("down --run a --anyway")
            return
        bring_all_home(at, machine, Screen(), anyway=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert "run a to make a checkpoint and end (up to 0 s)" in printed
    assert "the results of run a could not be downloaded and are lost (run a did not end within 0 s" in printed
    assert (folder / "stop.request").exists()


def test_a_run_is_asked_to_end_and_its_end_is_noted(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word of its plan about it, the grace period is the usual one. All machines of the run are asked."""
    monkeypatch.setattr(teardown, "STOP_SLACK_S", 0.4)
    rented.machine("n")
    other = rented.ran(machine="n")
    record = rented.record(state="running", others={"n": str(other)})
    alive(rented, "a")
    with Near(rented.settings, rented.account) as at:
        with pytest.raises(StepFailed, match="run a did not end within 0 s") as failed:
            stop_run(at.run(record), Screen())
        assert failed.value.next_command == command("status --run a")
        assert (other / "stop.request").exists()
        rented.ran(state="stopped")
        assert stop_run(at.run(record), Screen()).record.state == "stopped"


def test_a_download_that_hangs_delays_a_release_only_for_so_long(
    rented: Rented, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(teardown, "ANYWAY_S", 0.5)
    monkeypatch.setattr(teardown, "STOP_SLACK_S", 20)
    rented.record(state="running")
    alive(rented, "a")
    before, began = set(threading.enumerate()), time.monotonic()
    with Near(rented.settings, rented.account) as at:
        bring_all_home(at, rented.account.machines["m"], Screen(), anyway=True)
        hanging = set(threading.enumerate()) - before
        assert [each.daemon for each in hanging] == [True] * len(hanging)  # it delays no end of the command either
        assert 0.5 <= time.monotonic() - began < 15
        rented.ran(state="stopped")  # lets the thread end
        for each in hanging:
            each.join(30)  # what it prints is of this test
            assert not each.is_alive()
    assert "the results on m were not downloaded within 0 s: they are lost" in " ".join(capsys.readouterr().out.split())


def test_a_download_in_time_is_waited_for(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    rented.record()
    rented.ran()
    with Near(rented.settings, rented.account) as at:
        bring_all_home(at, rented.account.machines["m"], Screen(), anyway=True)
    assert rented.home() == ["epoch_000.pt"]
    assert "lost" not in capsys.readouterr().out


def test_what_a_gone_machine_had_is_missed_only_if_it_is_not_here(rented: Rented) -> None:
    """A stopped machine holds the results. Of a run on several machines, only rank 0's has results to miss."""
    machine = rented.machine(is_stopped=True)
    record = rented.record(others={"n": "/n"})
    rented.machine("n", is_stopped=True)
    with Near(rented.settings, rented.account) as at:
        bring_all_home(at, rented.account.machines["n"], Screen(), anyway=False)
        with pytest.raises(StepFailed, match="does not answer"):
            bring_all_home(at, machine, Screen(), anyway=False)
        rented.checkpoints(rented.project / "runs" / "a", 1)
        bring_all_home(at, machine, Screen(), anyway=False)
        assert is_home(at, record)


@pytest.mark.parametrize(
    ("state", "epochs", "session", "expected"),
    [
        ("succeeded", 3, "tmux", True),
        ("succeeded", 4, "tmux", True),
        ("succeeded", 2, "tmux", False),
        ("succeeded", 0, "tmux", False),
        ("stopped", 3, "tmux", False),
        ("failed", 0, None, True),  # it never began
    ],
)
def test_when_the_end_of_a_run_is_here(
    rented: Rented, state: str, epochs: int, session: str | None, expected: bool
) -> None:
    record = rented.record(state=state, session=session)
    rented.plan(epochs=3)
    rented.checkpoints(rented.project / "runs" / "a", epochs)
    with Near(rented.settings, rented.account) as at:
        assert is_home(at, record) is expected


@pytest.fixture
def released(rented: Rented, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Release the machines of run `a`. Returns what was printed."""

    def release() -> str:
        def target(project: Path, name: str) -> Near:
            assert (project, name) == (rented.project, "rented")
            return Near(rented.settings, rented.account)

        monkeypatch.setattr(teardown, "target", target)
        release_idle(rented.project, rented.record(others=others), Screen())
        return " ".join("".join(capsys.readouterr()).split())

    others: dict[str, str] = {}
    release.others = others  # type: ignore[attr-defined]
    return release


def test_the_machines_of_a_run_that_is_over_go(rented: Rented, released) -> None:  # type: ignore[no-untyped-def]
    """Each one; what is gone already or costs nothing is passed over, and comes first here."""
    rented.machine("free", usd_per_hour=0.0)
    rented.machine("n")
    released.others.update({"gone": "/g", "free": "/f", "n": str(rented.ran(machine="n"))})
    rented.ran()
    assert "released m: it cannot release itself released n: it cannot release itself" in released()
    assert (rented.account.released, rented.home()) == (["m", "n"], ["epoch_000.pt"])


@pytest.mark.parametrize(("state", "is_kept"), [("running", True), ("succeeded", False), ("preparing", False)])
def test_a_machine_with_another_live_run_stays(rented: Rented, released, state: str, is_kept: bool) -> None:  # type: ignore[no-untyped-def]
    """A run that no command starts any more does not live. The next machine of the run goes all the same."""
    rented.ran()
    rented.machine("n")
    released.others.update({"n": str(rented.ran(machine="n"))})
    rented.record("b", state=state)
    assert ("kept m: run b is on it" in released()) is is_kept
    assert rented.account.released == (["n"] if is_kept else ["m", "n"])


def test_a_machine_with_a_run_of_another_laptop_stays(rented: Rented, released) -> None:  # type: ignore[no-untyped-def]
    rented.ran()
    alive(rented, "theirs")
    assert "kept m: run theirs is on it" in released()
    assert rented.account.released == []


def test_a_machine_whose_results_cannot_be_brought_stays(rented: Rented, released) -> None:  # type: ignore[no-untyped-def]
    folder = rented.ran()
    (folder / "checkpoints" / "epoch_000.pt").write_bytes(b"damaged")
    rented.machine("n")
    released.others.update({"n": str(rented.ran(machine="n"))})
    rented.plan()
    said = released()
    assert f"the machine was kept; m still bills: {command('down --run a --anyway')}" in said
    assert "released n" not in said
    assert rented.account.released == []


class Silent(Account):
    """A provider whose API does not answer the first `times` questions about a machine."""

    times = 0

    def find(self, name: str) -> Machine | None:
        self.times -= 1
        if self.times >= 0:
            raise NoMachine("the provider does not answer")
        return super().find(name)


@pytest.mark.parametrize(("times", "is_released"), [(1, True), (9, False)])
def test_watch_asks_again_for_a_machine_that_cannot_release_itself(
    rented: Rented, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: int, is_released: bool
) -> None:
    """It would bill until somebody comes, because the API was down for a moment at the end of the run."""
    rented.ran()
    account = Silent(rented.account.machines)
    account.times = times
    monkeypatch.setattr(teardown, "target", lambda *_: Near(rented.settings, account))
    monkeypatch.setattr(watch, "ELSEWHERE_PAUSES_S", (0.01, 0.01))
    assert watch._release_idle(rented.project, rented.record(), Screen()) is is_released
    assert account.released == (["m"] if is_released else [])
    assert "the provider does not answer; m still bills" in capsys.readouterr().err


def test_a_machine_that_cannot_be_released_keeps_no_other(rented: Rented, released) -> None:  # type: ignore[no-untyped-def]
    class Refusing(Account):
        def release(self, machine: Machine) -> None:
            if machine.name == "m":
                raise NoMachine("the account does not answer")
            super().release(machine)

    rented.account = Refusing(rented.account.machines)
    rented.ran()
    rented.machine("n")
    released.others.update({"n": str(rented.ran(machine="n"))})
    said = released()
    assert f"the account does not answer; m still bills: {command('down --run a')}" in said
    assert "released n: it cannot release itself" in said
    assert rented.account.released == ["n"]


@pytest.mark.parametrize(
    ("state", "age_s", "known", "expected"),
    [
        ("running", 0.0, False, "theirs"),
        ("restarting", 0.0, False, "theirs"),
        ("running", LOST_AFTER_S + 60, False, None),
        ("succeeded", 0.0, False, None),
        ("running", 0.0, True, None),
    ],
)
def test_a_run_of_another_laptop_is_one_that_lives_and_is_not_known(
    rented: Rented, state: str, age_s: float, known: bool, expected: str | None
) -> None:
    rented.ran("an-older-one")
    alive(rented, "theirs", age_s, state)
    if known:
        rented.record("theirs")
    with Near(rented.settings, rented.account) as at:
        assert run_of_another_laptop(at, rented.account.machines["m"]) == expected


@pytest.mark.parametrize("error", [LinkLost("it is silent"), OSError("no such folder")])
def test_a_machine_that_fails_when_it_is_asked_has_no_known_run_of_another_laptop(
    rented: Rented, error: Exception
) -> None:
    class Failing(Noting):
        def call(self, verb: str, *, again: bool = True, **_: Any) -> Any:  # noqa: ARG002
            raise error

    alive(rented, "theirs")
    with Near(rented.settings, rented.account) as at:
        at.near = Failing()
        assert run_of_another_laptop(at, rented.account.machines["m"]) is None


def test_a_machine_that_cannot_be_asked_has_no_known_run_of_another_laptop(rented: Rented) -> None:
    alive(rented, "theirs")
    for about in ({"address": None}, {"address": Address("")}, {"is_stopped": True}):
        machine = rented.machine(**about)  # type: ignore[arg-type]
        with Near(rented.settings, rented.account) as at:
            assert run_of_another_laptop(at, machine) is None
