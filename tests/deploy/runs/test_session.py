"""One target during one command: the state of its runs, what they cost, and its machines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import CannotTrain, NoMachine, StepFailed, WrongUse, command
from deploy.pod.base.folder import read_json, write_json
from deploy.runs import records, session
from deploy.runs.session import Reach, launching
from deploy.runs.situation import Situation
from deploy.shell import LinkLost, LocalShell
from deploy.specs.gpus import Renting
from deploy.specs.machine import Address, Machine, MachineSpec, Rental
from deploy.specs.settings import RunPod, Settings, Ssh, Target
from tests.deploy.support.rented import Account, Near, Noting, Rented

# A rented machine is a Linux system; here it is a folder of this computer, with its python3.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")


@pytest.fixture
def rented(tmp_path: Path) -> Rented:
    return Rented(tmp_path)


def status(rented: Rented, run_id: str = "a", **told: Any) -> None:
    folder = rented.project / "machines" / "m" / "runs" / run_id
    write_json(folder / "status.json", {"state": "running", "attempt": 1, "heartbeat": time.time(), **told})


# The state of a run


@pytest.mark.parametrize(
    ("told", "state", "seconds"),
    [
        ({"state": "succeeded", "started": 1000.04, "ended": 1002.5}, "succeeded", 2.5),
        ({"state": "succeeded", "started": 1000.0}, "succeeded", None),
        ({"state": "failed", "ended": 1000.0, "reason": "no room"}, "failed", None),
        ({}, "running", None),
    ],
)
def test_the_state_that_the_machine_reports_is_recorded(
    rented: Rented, told: dict[str, Any], state: str, seconds: float | None
) -> None:
    rented.machine()
    record = rented.record(state="running")
    status(rented, **told)
    with Near(rented.settings, rented.account) as at:
        found, seen = at.look(record)
    assert seen is not None
    assert (found.state, found.seconds, found.reason) == (state, seconds, told.get("reason"))
    assert read_json(rented.project / "runs" / "a" / "run.json")["state"] == state


def test_a_run_that_left_nothing_is_lost_unless_it_was_over(rented: Rented) -> None:
    """The status of another attempt counts as none. What a command is starting is not lost."""
    rented.machine()
    status(rented, attempt=2)
    with Near(rented.settings, rented.account) as at:
        record = rented.record(state="succeeded")
        assert at.look(record) == (record, None)
        lost, seen = at.look(rented.record(state="running"))
        assert (lost.state, lost.reason, seen) == ("lost", "its folder on the machine is gone", None)
        gone, _ = at.look(rented.record(machine="elsewhere", state="running"))
        assert (gone.state, gone.reason) == ("lost", "its machine elsewhere is gone")
        starting = rented.record(state="preparing")
        dead, _ = at.look(starting)
        assert (dead.state, dead.reason) == ("failed", "the command that started it ended before the job ran")
        with launching(rented.settings) as note:
            note("a")
            found, seen = at.look(starting)
            assert (found.state, found.reason, seen) == ("preparing", None, None)


@pytest.mark.parametrize(
    ("state", "told", "usd"),
    [
        ("running", {"state": "running", "spend_usd": 0.5}, 6.0),  # every hour since its creation is paid for
        ("running", {"state": "succeeded", "spend_usd": 0.5}, 6.0),  # it was alive until just now
        ("succeeded", {"state": "succeeded", "spend_usd": 0.5}, 0.5),
        ("succeeded", {"state": "succeeded", "spend_usd": 99.0}, 6.0),
        ("succeeded", None, 0.0),
        ("running", None, 6.0),
    ],
)
def test_what_a_run_has_cost(rented: Rented, state: str, told: dict[str, Any] | None, usd: float) -> None:
    """Of three machines for one hour at 2 USD."""
    rented.machine(created=1000.0)
    record = rented.record(state=state, others={"n": "/n", "o": "/o"})
    if told:
        status(rented, **told)
    with Near(rented.settings, rented.account) as at, pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.time, "time", lambda: 1000.0 + 3600)
        found, _ = at.look(record)
    assert found.spend_usd == usd
    assert set(found.spend or {}) <= {"m"}


def test_a_cost_stays_if_the_machine_vanishes(rented: Rented) -> None:
    """The record is from before the cost was written, by a look that raised or by another one."""
    before = rented.record(state="running", spend={"m": 1.0})
    records.spent(rented.settings.runs, before, {"m": 1.5, "n": 0.2})
    lost, _ = Near(rented.settings, rented.account).look(before)
    assert (lost.state, lost.spend) == ("lost", {"m": 1.5, "n": 0.2})
    assert records.get(rented.settings.runs, "a", "rented") == lost


def test_a_run_whose_machine_answers_is_read_there(rented: Rented) -> None:
    """A machine without its folder, or no machine: the copy on the laptop."""
    record = rented.record()
    with Near(rented.settings, rented.account) as at:
        assert at.run(record).machine is None
    rented.machine()
    with Near(rented.settings, rented.account) as at:
        assert at.run(record).machine is None
        rented.ran()
        reached = at.run(record)
        assert (reached.machine is not None, reached.shell) == (True, at.near)
        assert Path(reached.folder.path) == rented.project / "machines" / "m" / "runs" / "a"
        assert at.given_up == set()


@pytest.mark.parametrize(("state", "given_up"), [("stuck", {"m"}), ("armed", set())])
def test_a_guard_that_gave_up_is_noticed(rented: Rented, state: str, given_up: set[str]) -> None:
    rented.options = {"max_hours": 1.0}
    rented.machine()
    rented.guarded(heartbeat=time.time(), state=state, secrets=[])
    rented.ran()
    with Near(rented.settings, rented.account) as at:
        at.run(rented.record())
        assert at.given_up == given_up


def test_the_other_machines_of_a_run(rented: Rented) -> None:
    """In the order of their ranks; those that are gone are left out, and all if the first is gone."""
    for name in ("m", "n", "o"):
        rented.machine(name)
        rented.ran(machine=name)
    others = {name: str(rented.project / "machines" / name / "runs" / "a") for name in ("n", "gone", "o")}
    record = rented.record(others=others)
    with Near(rented.settings, rented.account) as at:
        reached = at.run(record)
        assert [each.record.machine for each in reached.others()] == ["n", "o"]
        assert [each.record.machine for each in reached.others("o")] == ["o"]
        assert all(each.record.others == {} for each in reached.others())
        assert replace(reached, machine=None).others() == []


# Which run may go on


@pytest.mark.parametrize("state", ["stopped", "failed", "expired"])
def test_the_newest_unfinished_run_goes_on(rented: Rented, state: str) -> None:
    for run_id, told in (("a", "stopped"), ("b", state), ("c", "succeeded")):
        rented.record(run_id, state=told)
    with Near(rented.settings, rented.account) as at:
        found = at.unfinished()
        assert (found and found.record.run_id) == "b"
        named = at.unfinished("a")
        assert (named and named.record.run_id) == "a"
        with pytest.raises(WrongUse, match=r"run c is succeeded on target 'rented': only a run") as error:
            at.unfinished("c")
        assert error.value.next_command == command("runs")


def test_a_run_of_another_target_does_not_go_on_here(rented: Rented) -> None:
    rented.record("a", state="stopped", target="far")
    with Near(rented.settings, rented.account) as at:
        assert at.unfinished() is None
        with pytest.raises(WrongUse, match="run a is stopped on target 'far': only a run of 'rented'"):
            at.unfinished("a")


def test_a_target_runs_one_job_at_a_time(rented: Rented) -> None:
    """A lost run may be alive after all; one that was over stays over, and is not asked about."""
    rented.machine()
    rented.record("b", state="succeeded")
    rented.record("a", state="lost")
    with Near(rented.settings, rented.account) as at:
        at.refuse_second()
    status(rented)
    with Near(rented.settings, rented.account) as at, pytest.raises(WrongUse, match="run a is running on") as error:
        at.refuse_second()
    assert error.value.next_command == command("stop --run a")
    status(rented, "b")
    status(rented, state="stopped")
    with Near(rented.settings, rented.account) as at:
        at.refuse_second()


# Machines


@dataclass
class Counting(Account):
    """An account that notes how often it is asked for one machine."""

    found: list[str] = field(default_factory=list)

    def find(self, name: str) -> Machine | None:
        self.found.append(name)
        return super().find(name)


def here(rented: Rented, account: Account) -> Reach:
    at = Reach(rented.settings)
    at.provider = account  # type: ignore[assignment]
    return at


def test_a_machine_is_looked_up_once(tmp_path: Path) -> None:
    """What the list tells is enough for one that can be reached."""
    account = Counting()
    rented = Rented(tmp_path, account)
    rented.machine("m", address=Address("127.0.0.1", 22, first_use=True))
    rented.machine("starts", address=Address(""))
    for listed, asked in ((False, ["m", "starts", "nobody"]), (True, ["starts", "nobody"])):
        account.found.clear()
        with here(rented, account) as at:
            if listed:
                assert [each.name for each in at.machines()] == ["m", "starts"]
            for _ in range(2):
                told = [at.machine(name) for name in ("m", "starts", "nobody")]
                assert told == [account.machines["m"], account.machines["starts"], None]
        assert account.found == asked


def test_the_machine_of_a_target(rented: Rented) -> None:
    family = session.family_name(rented.settings)
    rented.machine("another")
    with here(rented, rented.account) as at:
        assert at.machine_of_target() is None
    rented.machine(f"{family}a")
    rented.machine(f"{family}b")
    with here(rented, rented.account) as at:
        found = at.machine_of_target()
        assert (found and found.name) == f"{family}a"


class Closing(LocalShell):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_each_connection_has_a_limit_and_is_closed_once(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [rented.machine(name, address=None) for name in ("m", "n")]
    opened: list[Closing] = []

    def opens(*_: Any) -> Closing:
        opened.append(Closing())
        return opened[-1]

    monkeypatch.setattr(session, "open_shell", opens)
    monkeypatch.setattr(session.time, "monotonic", lambda: 100.0)
    with here(rented, rented.account) as at:
        first = at.shell(machines[0])
        assert at.shell(machines[0]) is first
        at.renew()
        assert first.give_up_at == float("inf")
        at.limit_s = 20.0
        assert at.shell(machines[1]).give_up_at == 120.0
        at.renew()
        assert first.give_up_at == 120.0
        at.forget("m")
        at.forget("m")
        assert (opened[0].closed, opened[1].closed, at.machine("m")) == (1, 0, None)
    assert [each.closed for each in opened] == [1, 1]


def test_notes_are_private(rented: Rented) -> None:
    """Also if an older version, or a user, made them readable by others."""
    notes = rented.settings.notes
    Reach(rented.settings)
    assert not notes.exists()
    notes.mkdir(mode=0o755)
    Reach(rented.settings)
    assert notes.stat().st_mode & 0o077 == 0


# A machine that was just acquired


class Probed(Noting):
    """A machine whose programs answer what was set."""

    def __init__(self, answers: dict[str, str], *, lost: bool = False) -> None:
        super().__init__()
        self.answers, self.lost = answers, lost

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        if self.lost:
            raise LinkLost("m cannot be reached", evidence=["timed out"])
        if verb == "run":
            said = self.answers["driver" if "driver" in arguments["argv"] else "torch"]
            return (0, said.encode(), b"") if said else (132, b"", b"Illegal instruction")
        return super().call(verb, again=again, **arguments)


GPU = '{"name": "A40", "capability": [8, 6], "memory_bytes": 48000000000}'
FOUND = '{"torch": "2", "cuda": "13", "driver": "1", "listed": 1, "visible": null, "gpus": [%s], "why": null}'


class Acquiring(Account):
    """An account that has a machine checked, as every provider does."""

    def acquire(self, spec: MachineSpec) -> Machine:
        self.say(f"waiting for {spec.name}")  # type: ignore[attr-defined]
        machine = self.machines["m"]
        self.check(machine)  # type: ignore[attr-defined]
        return machine


def acquired(tmp_path: Path, answers: dict[str, str], *, python: str, **about: Any) -> tuple[Near, Any]:
    rented = Rented(tmp_path, Acquiring())
    rented.machine(gpus=about.pop("gpus", 1))
    rented.account.machines["m"] = replace(rented.account.machines["m"], python=python)
    at = Near(rented.settings, rented.account)
    at.near = Probed(answers, **about)
    spec = MachineSpec("m", "m", rented.project)
    return at, lambda: at.acquire(spec, [].append)


@pytest.mark.parametrize(
    ("torch", "gpus", "raised", "words"),
    [
        (FOUND % GPU, 1, None, ""),
        (FOUND % GPU, 2, CannotTrain, "2 GPUs are paid for and torch can use 1"),
        (FOUND % "", 1, CannotTrain, "1 GPU is paid for and torch can use 0"),
        ("", 1, StepFailed, "could not detect which GPUs it can use"),
    ],
)
def test_torch_is_asked_before_a_machine_is_kept(
    tmp_path: Path, torch: str, gpus: int, raised: type[Exception] | None, words: str
) -> None:
    at, acquire = acquired(tmp_path, {"torch": torch}, python=sys.executable, gpus=gpus)
    if raised is None:
        assert acquire() is at.machine("m")
        assert [each.name for each in at.devices["m"].gpus] == ["A40"]
        return
    with pytest.raises(raised, match=words) as error:
        acquire()
    assert not isinstance(error.value, CannotTrain) or raised is CannotTrain
    assert (at.devices, at.machine("m")) == ({}, None)


@pytest.mark.parametrize(
    ("driver", "torch", "prepares", "raised", "words"),
    [
        (FOUND % "", "", False, None, ""),  # torch is asked later
        (FOUND % "", FOUND % GPU, True, None, ""),
        (FOUND.replace('listed": 1', 'listed": 0') % "", FOUND % GPU, True, CannotTrain, "nvidia-smi lists 0"),
        (FOUND % "", "", True, CannotTrain, "could not detect which GPUs it can use"),  # a fault of the host
    ],
)
def test_without_an_environment_the_driver_is_asked_first(
    tmp_path: Path, driver: str, torch: str, prepares: bool, raised: type[Exception] | None, words: str
) -> None:
    at, acquire = acquired(tmp_path, {"driver": driver, "torch": torch}, python="auto")
    made: list[str] = []

    def prepare(machine: Machine) -> tuple[Machine, Path]:
        made.append(machine.name)
        return machine, tmp_path

    at.prepare = prepare if prepares else None
    if raised is None:
        acquire()
        assert (made, list(at.prepared), list(at.devices)) == (["m"] * prepares, ["m"] * prepares, ["m"] * prepares)
        return
    with pytest.raises(raised, match=words):
        acquire()
    assert (at.prepared, at.devices) == ({}, {})


def test_a_machine_that_is_lost_while_it_is_checked_is_no_machine(tmp_path: Path) -> None:
    at, acquire = acquired(tmp_path, {}, python="auto", lost=True)
    with pytest.raises(NoMachine, match="m cannot be reached") as error:
        acquire()
    assert error.value.evidence == ("timed out",)
    assert at.machine("m") is None


def test_a_machine_that_is_lost_while_torch_is_asked_is_no_fault_of_its_host(tmp_path: Path) -> None:
    """Also in an environment that was just made for it: another connection may find it."""

    class Dropping(Probed):
        def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
            if verb == "run" and "driver" not in arguments["argv"]:
                raise LinkLost("m cannot be reached")
            return super().call(verb, again=again, **arguments)

    at, acquire = acquired(tmp_path, {}, python="auto")
    at.near = Dropping({"driver": FOUND % ""})
    at.prepare = lambda machine: (machine, tmp_path)
    with pytest.raises(NoMachine, match="m cannot be reached") as error:
        acquire()
    assert not isinstance(error.value, CannotTrain)


# The machine that would be used again


def test_the_machine_that_would_be_used_again(rented: Rented) -> None:
    """The first of the target that runs and whose price is known, by the list that was read."""
    family = session.family_name(rented.settings)
    rented.machine("another")
    rented.machine(f"{family}a", is_stopped=True)
    rented.machine(f"{family}b", fault="no price")
    with here(rented, rented.account) as at:
        assert at.in_use_again() is None
        at.machines()
        assert at.in_use_again() is None
        rented.machine(f"{family}d")
        rented.machine(f"{family}c")
        at.machines()
        found = at.in_use_again()
        assert (found and found.name) == f"{family}c"


@pytest.mark.parametrize(
    ("target", "address", "words"),
    [
        (
            Target("far", "ssh", "/w", options=Ssh(host="b")),
            Address("b"),
            "set host, user and key in conf/deploy/far.yaml",
        ),
        (
            Target("ssh", "ssh", "/w", options=Ssh(host="gpu-box")),  # as conf/deploy/ssh.yaml has it
            Address("gpu-box"),
            f"make a target of your own host: {command('target add ssh --host HOST')}",
        ),
        (Target("far", "ssh", "/w", options=Ssh(host="b")), None, None),  # this computer
        (Target("far", "local", "root"), Address("b"), None),
    ],
)
def test_what_to_do_about_a_host_that_is_silent(
    rented: Rented, target: Target, address: Address | None, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that the target's file names is mended there."""
    monkeypatch.setattr(session, "open_shell", lambda *_: Closing())
    at = Reach(Settings(rented.project, target))
    usual = Closing().silent_fix
    assert at.shell(rented.machine(address=address)).silent_fix == (words or usual)


# A command on one target, or about one run


def on_this_computer(rented: Rented, *names: str) -> None:
    folder = rented.project / "conf" / "deploy"
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.yaml").write_text("provider: local\nroot: root\n", encoding="utf-8")


def test_a_named_run_decides_its_target(rented: Rented) -> None:
    on_this_computer(rented, "rented", "far")
    rented.record("a")
    rented.record("b")
    rented.record("c", target="far")
    for target, run_id, told in (
        ("rented", None, ("b", "rented")),
        ("rented", "a", ("a", "rented")),
        ("rented", "c", ("c", "far")),
        ("far", None, ("c", "far")),
        ("far", "b", ("b", "rented")),
    ):
        with session.run(rented.project, target, run_id) as reached:
            assert (reached.record.run_id, reached.settings.target.name) == told
    with session.target(rented.project, "far") as at:
        assert at.settings.target.name == "far"


@pytest.mark.parametrize("gave_up", [True, False])
def test_machines_are_looked_after_before_a_run_is_read(rented: Rented, gave_up: bool) -> None:
    """And again if the guard of the run's machine gave up: the run is read anew then."""
    on_this_computer(rented, "rented")
    rented.record("a", state="running")
    seen: list[str | None] = []

    def look_after(at: Reach, name: str | None) -> None:
        seen.append(name)
        changed = records.update(at.settings.runs, at.situation.records[0], reason=f"look {len(seen)}")
        at.situation.note(changed)
        if gave_up:
            at.given_up.add("m")

    with session.run(rented.project, "rented", None, look_after) as reached:
        assert reached.record.reason == f"look {len(seen)}"
    assert seen == ([None, "m"] if gave_up else [None])


def test_what_a_command_knows_already_is_not_read_again(rented: Rented) -> None:
    on_this_computer(rented, "rented")
    situation = Situation(rented.project)
    assert situation.records == []
    rented.record("a")
    with session.target(rented.project, "rented", situation) as at:
        assert at.situation is situation
    with (
        pytest.raises(WrongUse, match="there is no run on target 'rented' yet"),
        session.run(rented.project, "rented", None, None, situation),
    ):
        pass


# What a request says about renting


@dataclass
class Offering(Account):
    rentals: Sequence[Rental] | None = ()

    def offers(self) -> Sequence[Rental] | None:
        return self.rentals


def rental(gpu: str, usd: float, count: int = 1) -> Rental:
    return Rental(gpu, count, 48.0, usd, (), True, "", counts=(1, 2))


def renting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account: Offering, **options: Any) -> Reach:
    """A target that rents pods, from an account in memory."""
    monkeypatch.setattr(session, "PROVIDERS", {"runpod": lambda _: account})
    told = {"gpus": ("NVIDIA A40",), "image": "x", **options}
    return Reach(Settings(tmp_path, Target("far", "runpod", "/w", options=RunPod(**told))))


def test_flags_of_renting_win_over_the_targets_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = Offering(rentals=[rental("NVIDIA A40", 1.0), rental("NVIDIA L4", 0.5)])
    at = renting(tmp_path, monkeypatch, account, spot=True)
    at.rent(Renting())
    assert at.settings.target.options.spot  # type: ignore[attr-defined]
    at.rent(Renting(gpus=("L4:2",), no_spot=True))
    options: Any = at.settings.target.options
    assert (options.gpus, options.gpu_count, options.spot) == (("NVIDIA L4",), 2, False)
    at.rent(Renting(spot=True))
    options = at.settings.target.options
    assert (options.gpus, options.gpu_count, options.spot) == (("NVIDIA A40",), 1, True)
    at.rent(Renting())
    assert at.settings.target.options.gpu_count == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("spot", [True, False])
def test_the_first_request_of_a_command_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spot: bool) -> None:
    at = renting(tmp_path, monkeypatch, Offering(), spot=not spot)
    at.rent(Renting(spot=spot, no_spot=not spot))
    assert at.settings.target.options.spot is spot  # type: ignore[attr-defined]


def test_gpus_above_the_targets_price_are_refused_unless_only_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Offering(rentals=[rental("NVIDIA L4", 3.0)])
    at = renting(tmp_path, monkeypatch, account, max_usd_per_hour=2.0)
    with pytest.raises(WrongUse, match="max_usd_per_hour"):
        at.rent(Renting(gpus=("L4",)))
    at.rent(Renting(gpus=("L4",)), at_any_price=True)
    assert at.settings.target.options.gpus == ("NVIDIA L4",)  # type: ignore[attr-defined]
    pair = renting(tmp_path, monkeypatch, account, gpu_count=2)
    pair.rent(Renting(gpus=("L4",)))
    assert pair.settings.target.options.gpu_count == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("about", "spot", "is_refused"),
    [
        ({"gpu": "NVIDIA A40", "gpus": 1}, False, True),
        ({"gpu": "NVIDIA L4", "gpus": 1}, False, False),
        ({"gpu": "NVIDIA L4", "gpus": 2}, False, True),
        ({"gpu": None}, False, False),
        ({"gpu": "NVIDIA A40", "gpus": 1, "is_stopped": True}, False, True),
        ({"gpu": "NVIDIA A40", "gpus": 1, "is_stopped": True}, True, False),  # removed for a new one
    ],
)
def test_other_gpus_are_not_rented_beside_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any], spot: bool, is_refused: bool
) -> None:
    account = Offering(rentals=[rental("NVIDIA L4", 0.5)])
    at = renting(tmp_path, monkeypatch, account, spot=spot)
    Rented(tmp_path, account).machine("of-another-target", gpu="NVIDIA A40", gpus=1)
    Rented(tmp_path, account).machine(session.family_name(at.settings) + "r", **about)
    if not is_refused:
        at.rent(Renting(gpus=("L4",)))
        return
    with pytest.raises(WrongUse, match=r"--gpus L4: the machine of target 'far' has . x NVIDIA") as error:
        at.rent(Renting(gpus=("L4",)))
    assert error.value.next_command == command("down --on far")
    at.rent(Renting(gpus=("L4",)), at_any_price=True)
