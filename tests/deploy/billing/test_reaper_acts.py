"""What the reaper does with each verdict. The machine is a folder of this computer; its report is the real one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deploy.billing.reaper import _ask, reap
from deploy.errors import NoMachine, command
from deploy.pod.base.folder import Root
from deploy.runs import records
from deploy.runs.session import launching
from deploy.shell import LinkLost
from deploy.specs.machine import Address
from deploy.specs.settings import load
from deploy.ui.screen import Screen
from tests.deploy.support.rented import Near, Noting, Rented

# A rented machine is a Linux system; here it is a folder of this computer, with its python3.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")

SEE = f"see {command('ps')}, release it with {command('down --orphans')}"


@pytest.fixture
def rented(tmp_path: Path) -> Rented:
    made = Rented(tmp_path)
    made.machine(hours=11)
    made.record()
    made.plan(limits={"max_hours": 10, "max_usd": 100})
    return made


def said(rented: Rented, capsys: pytest.CaptureFixture[str], given_up: str | None = None) -> str:
    """What the reaper prints. It writes nothing to stdout, which may be a log."""
    with Near(rented.settings, rented.account) as at:
        reap(at, given_up, screen=Screen())
        assert all(at.machine(name) is None for name in rented.account.released)
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if "download" not in line] == []
    return " ".join(told.err.split())


def test_a_machine_past_its_limit_goes_after_its_checkpoint_is_here(
    rented: Rented, capsys: pytest.CaptureFixture[str]
) -> None:
    rented.ran(epochs=2)
    rented.guarded()
    told = said(rented, capsys)
    assert told == "released m after $22.00: past max_hours: 10, and its guard is dead; epoch_001.pt downloaded first"
    assert (rented.account.released, rented.home()) == (["m"], ["epoch_001.pt"])


def test_a_machine_that_its_guard_could_not_release_goes(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    """Only if its guard is stuck, and only the machine that a command has named."""
    rented.machine(hours=1)
    rented.ran()
    rented.guarded(state="stuck")
    assert said(rented, capsys, given_up="another") == ""
    assert said(rented, capsys) == f"m costs $2.00 an hour: its run is over; {SEE}"
    assert rented.account.released == []
    told = said(rented, capsys, given_up="m")
    assert told == "released m after $2.00: its guard could not release it; epoch_000.pt downloaded first"


def test_one_without_a_guard_is_guarded_again(rented: Rented) -> None:
    """A run may be on it. `guard.json` names the code to start."""
    rented.machine(hours=1)
    rented.guarded()
    with Near(rented.settings, rented.account) as at:
        reap(at, "m", screen=Screen())
        (started,) = at.near.spawned
    assert started[1:] == ["-m", "deploy.pod.guard", str(rented.project / "machines" / "m")]
    assert rented.account.released == []


def test_one_that_cannot_report_is_kept(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(rented, capsys) == f"m costs $2.00 an hour: past max_hours: 10; its run is over; {SEE}"
    assert rented.account.released == []


def test_one_far_past_its_limit_goes_whatever_it_reports(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    rented.machine(hours=50.3)
    rented.ran(epochs=1)
    told = said(rented, capsys)
    assert told.startswith("released m after $100.60: past max_usd: 100, a hard limit; what was not downloaded")
    assert rented.home() == ["epoch_000.pt"]


def test_what_cannot_be_downloaded_keeps_a_machine_until_a_hard_limit(
    rented: Rented, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rented.ran(epochs=1)
    (folder / "checkpoints" / "epoch_000.pt").write_bytes(b"damaged")
    rented.guarded()
    assert "the results of run a on m could not be downloaded" in said(rented, capsys)
    assert rented.account.released == []
    rented.machine(hours=50.3)
    with Near(rented.settings, rented.account) as at:
        reap(at, screen=Screen())
    assert rented.account.released == ["m"]


def test_a_machine_of_another_target_is_asked_by_its_own(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    """While a run is being started there, nothing of it ends."""
    folder = rented.project / "conf" / "deploy"
    folder.mkdir(parents=True)
    (folder / "far.yaml").write_text("provider: local\nroot: root\nmax_hours: 10\n", encoding="utf-8")
    rented.record(target="far")
    rented.ran()
    rented.guarded()
    with launching(load(rented.project, "far")):
        assert "past max_hours: 10" in said(rented, capsys)
    assert rented.account.released == []


def test_a_report_is_asked_for_again_after_a_lost_connection(rented: Rented) -> None:
    class Noted(Noting):
        again: bool | None = None

        def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
            if verb == "run":
                self.again = again
            return super().call(verb, again=again, **arguments)

    rented.guarded()
    machine, shell = rented.account.machines["m"], Noted()
    assert (_ask(machine, shell, Root(machine.root)) or {})["guarded"] is False
    assert shell.again is True


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"address": None}, "it has no address"),
        ({"address": Address("")}, "it has no address"),
        ({"is_stopped": True}, None),
    ],
)
def test_one_that_cannot_be_asked_is_reported(
    rented: Rented, capsys: pytest.CaptureFixture[str], about: dict[str, Any], why: str | None
) -> None:
    rented.machine(hours=11, **about)
    told = said(rented, capsys)
    assert (f"past max_hours: 10; its run is over, and it does not answer ({why})" in told) is False
    assert (f"past max_hours: 10, and it does not answer ({why})" in told) is bool(why)
    assert rented.account.released == []


@pytest.mark.parametrize("answer", [LinkLost("it is silent"), (0, b"nonsense", b"")])
def test_one_whose_answer_is_lost_or_damaged_is_reported(
    rented: Rented, answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Silent(Noting):
        def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
            if verb != "run":
                return super().call(verb, again=again, **arguments)
            if isinstance(answer, Exception):
                raise answer
            return answer

    rented.guarded()
    with Near(rented.settings, rented.account) as at:
        at.near = Silent()
        reap(at, screen=Screen())
    told = " ".join(capsys.readouterr().err.split())
    assert "past max_hours: 10, and it does not answer (" in told
    assert ("(it is silent)" in told) is isinstance(answer, Exception)


@pytest.mark.parametrize(("run_state", "epochs", "goes"), [("succeeded", 2, True), ("succeeded", 1, False)])
def test_one_without_an_answer_goes_if_the_end_of_its_runs_is_here(
    rented: Rented, capsys: pytest.CaptureFixture[str], run_state: str, epochs: int, goes: bool
) -> None:
    rented.machine(hours=10.3, address=None)
    rented.record(state=run_state)
    rented.plan(epochs=2, limits={"max_hours": 10})
    rented.checkpoints(rented.project / "runs" / "a", epochs)
    told = said(rented, capsys)
    assert ("the results of its runs are on this laptop" in told) is goes
    assert rented.account.released == (["m"] if goes else [])


def test_one_that_a_run_of_this_laptop_lives_on_needs_an_answer(
    rented: Rented, capsys: pytest.CaptureFixture[str]
) -> None:
    """All its results are here, but its run counts as alive: without an answer it stays."""
    rented.machine(hours=10.3, address=None)
    rented.record(state="running")
    rented.plan(limits={"max_hours": 10})
    rented.checkpoints(rented.project / "runs" / "a", 1)
    assert "and it does not answer" in said(rented, capsys)
    assert rented.account.released == []


def test_while_a_run_is_being_started_nothing_ends(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    rented.ran()
    rented.guarded()
    with launching(rented.settings):
        assert "past max_hours: 10" in said(rented, capsys)
    assert rented.account.released == []


def test_what_costs_nothing_is_not_mentioned(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    rented.machine(hours=11, usd_per_hour=0.0)
    rented.machine("other", hours=0.5)
    for given_up in (None, "other"):
        assert said(rented, capsys, given_up).startswith("other costs $2.00 an hour: no run of this laptop is on it; ")
    assert said(rented, capsys, given_up="m") == ""


def test_an_account_that_does_not_answer_ends_no_command(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    rented.account.fault = NoMachine("the account does not answer")
    assert said(rented, capsys) == ""


def test_a_machine_that_answers_nonsense_ends_no_command(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    root = rented.project / "machines" / "m"
    (root / "guard.json").write_text(json.dumps({"code": str(rented.project / "nothing")}), encoding="utf-8")
    told = said(rented, capsys)
    assert told.startswith("m costs $2.00 an hour: past max_hours: 10; its run is over, and ")
    assert told.endswith(SEE)
    assert rented.account.released == []


def test_a_run_that_was_heard_of_lately_is_not_asked_for(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is due: the machine is not asked, and only its note is printed."""
    rented.machine(hours=1)
    rented.plan(limits={"idle_min": 5})
    rented.ran()
    rented.guarded()
    assert said(rented, capsys) == f"m costs $2.00 an hour: its run is over; {SEE}"
    long_ago = 1_000_000_000
    run = Path(records.home(rented.settings.runs, "a").run)
    os.utime(run, (long_ago, long_ago))
    rented.machine(hours=0.1)  # it has not lived for so long
    assert said(rented, capsys) == f"m costs $2.00 an hour: its run is over; {SEE}"
    rented.machine(hours=1)
    again = "its guard had died and was started again"
    assert said(rented, capsys) == f"m costs $2.00 an hour: its run is over; {again}; {SEE}"
