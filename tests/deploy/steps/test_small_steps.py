"""Steps of a few lines: a look at a host, code that may travel, a command at the end, flags of a continued run."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import NoMachine, WrongUse
from deploy.pod.base.folder import remove
from deploy.runs.session import Reach, Reached
from deploy.shell import LocalShell, Shell
from deploy.specs.machine import Hardware, Machine
from deploy.specs.plan import make
from deploy.specs.request import Request
from deploy.specs.settings import RunPod, Settings, Ssh, Target
from deploy.specs.trial import Funds
from deploy.steps import notify
from deploy.steps.code_check import check_code, prove_code
from deploy.steps.consent import warn_of_balance, warn_of_preemption
from deploy.steps.continuing import carry_on
from deploy.steps.look import LIMIT_S, look_at_host
from deploy.ui.screen import Screen
from tests.deploy.conftest import git
from tests.deploy.specs.test_plan import FACTS
from tests.deploy.support.rented import Account, Near, Rented

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join("".join(capsys.readouterr()).split())


# A look at a host


class Host(LocalShell):
    """A host whose programs answer at once: a Python that prints what a probe of it would print."""

    def __init__(self, python: Path, answer: str) -> None:
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n", encoding="utf-8")
        python.chmod(0o755)


class Looking(Reach):
    """A target whose one host is a folder of this computer."""

    def __init__(self, settings: Settings, account: Account, host: LocalShell) -> None:
        super().__init__(settings)
        self.provider = account  # type: ignore[assignment]
        self.host = host
        self.asked = 0

    def machine(self, name: str) -> Machine | None:
        del name
        return next(iter(self.provider.list()), None)

    def shell(self, machine: Machine) -> Shell:
        del machine
        self.asked += 1
        return self.host


GPU = '{"name": "A40", "capability": [8, 6], "memory_bytes": 48000000000}'
FOUND = '{"torch": "2", "cuda": "13", "driver": "1", "listed": %s, "visible": null, "gpus": [%s], "why": null}'


def looking(tmp_path: Path, answer: str = FOUND % (1, GPU), **about: Any) -> Looking:
    rented = Rented(tmp_path)
    rented.account.machines["m"] = replace(rented.machine(), python=str(tmp_path / "bin" / "python"))
    told = {"options": Ssh(host="box"), **about}
    settings = Settings(tmp_path, Target("far", "ssh", "/w", **told))
    return Looking(settings, rented.account, Host(tmp_path / "bin" / "python", answer))


UNKNOWN = replace(FACTS, hardware=None)


@posix
def test_a_host_that_is_free_to_ask_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = looking(tmp_path)
    facts = look_at_host(at, UNKNOWN, Screen())
    assert facts.hardware is not None
    assert (facts.hardware.gpus, facts.hardware.gpu, at.limit_s, LIMIT_S) == (1, "A40", 20.0, 20.0)
    assert facts.user is not None  # a host of several users
    assert said(capsys) == ""
    alone = looking(tmp_path, trust="rented")
    assert look_at_host(alone, UNKNOWN, Screen()) is UNKNOWN


@posix
def test_a_host_that_cannot_train_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = look_at_host(looking(tmp_path, FOUND % (2, GPU)), UNKNOWN, Screen())
    assert facts.hardware is not None
    assert "warning: this run would not start: the machine has 2 GPUs and torch can use 1" in said(capsys)


@posix
def test_a_host_that_does_not_answer_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert look_at_host(looking(tmp_path, "no document"), UNKNOWN, Screen()) is UNKNOWN
    assert "warning: target 'far' could not be looked at: " in said(capsys)

    class Broken(Looking):
        def shell(self, machine: Machine) -> Shell:
            del machine
            raise OSError("no route to the host")

    at = looking(tmp_path)
    broken = Broken(at.settings, at.provider, at.host)  # type: ignore[arg-type]
    assert look_at_host(broken, UNKNOWN, Screen()) is UNKNOWN
    assert "could not be looked at: no route to the host" in said(capsys)


@posix
@pytest.mark.parametrize(
    "facts", [{"hardware": Hardware(gpus=0, cores=8)}, {"usd_per_hour": 1.0}, {"usd_per_hour": None}]
)
def test_a_machine_that_is_known_or_costs_something_is_left_alone(tmp_path: Path, facts: dict[str, Any]) -> None:
    at, told = looking(tmp_path), replace(UNKNOWN, **facts)
    assert look_at_host(at, told, Screen()) is told
    assert at.asked == 0
    at.provider.machines.clear()  # type: ignore[attr-defined]
    assert look_at_host(at, UNKNOWN, Screen()) is UNKNOWN


# Code that may travel


def test_the_first_credential_is_named_before_code_travels(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    for name in ("a.pem", "b.pem", "code.py"):
        (tmp_path / name).write_text("x\n", encoding="utf-8")
    git(tmp_path, "add", ".")
    rented = Settings(tmp_path, Target("far", "ssh", "/w", options=Ssh(host="box"), trust="rented"))
    own = replace(rented, target=replace(rented.target, trust="own"))
    for check in (check_code, prove_code):
        with pytest.raises(WrongUse, match=r"^a\.pem looks like a credential"):
            check(rented)
    assert check_code(own) == ("a.pem", "b.pem")
    assert prove_code(own) == prove_code(own) is not None
    remove(tmp_path / ".git")
    assert prove_code(own) is None


# A command at the end of a run


@posix
def test_the_command_at_the_end_gets_the_runs_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rented = Rented(tmp_path, options={"notify_command": 'echo "$SNIPERFACE_RUN, $SNIPERFACE_TEXT" > told'})
    notify.run_notify_command(rented.settings, rented.record(reason="done"), Screen())
    assert (tmp_path / "told").read_text(encoding="utf-8") == "a, run a succeeded: done\n"
    assert said(capsys) == ""
    rented.options = {}
    notify.run_notify_command(rented.settings, rented.record("b"), Screen())
    assert (tmp_path / "told").read_text(encoding="utf-8").startswith("a, ")


@posix
@pytest.mark.parametrize("command", ["exit 3", "sleep 60"])
def test_a_command_that_fails_is_told(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notify.LIMIT_S == 30.0  # as docs/machines.md says
    monkeypatch.setattr(notify, "LIMIT_S", 0.1)
    rented = Rented(tmp_path, options={"notify_command": command})
    notify.run_notify_command(rented.settings, rented.record(), Screen())
    assert "notify_command failed: " in said(capsys)
    gone = replace(rented.settings, project=tmp_path / "gone")
    notify.run_notify_command(gone, rented.record(), Screen())
    assert "notify_command failed: " in said(capsys)


HOSTILE = "he said \"done\" & calc | %PATH% ^ !x! $(id) `id` 'a' \u2018b\u2019 <c> \\d; 90%"


@posix
def test_cmd_gets_the_command_as_it_was_typed_and_obeys_no_word_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows starts a program by one line, which here is the name of a file. cmd expands variables, then reads."""
    line = tmp_path / "cmd " / "d " / "s " / 'c "msg * "a b" & echo %SNIPERFACE_TEXT%"'
    line.parent.mkdir(parents=True)
    line.write_text('#!/bin/sh\nprintf %s "$SNIPERFACE_TEXT" > told\n', encoding="utf-8")
    line.chmod(0o755)
    monkeypatch.setattr(sys, "platform", "win32")
    rented = Rented(tmp_path, options={"notify_command": 'msg * "a b" & echo %SNIPERFACE_TEXT%'})
    notify.run_notify_command(rented.settings, rented.record(reason=HOSTILE), Screen())
    assert said(capsys) == ""
    told = (tmp_path / "told").read_text(encoding="utf-8")
    assert " ".join(told.split()) == "run a succeeded: he said done calc PATH x (id) id a b c d 90"


# Flags of a continued run


def continued(tmp_path: Path, request: Request, *, own: bool = True, **was: Any) -> tuple[Request, Any]:
    rented = Rented(tmp_path)
    rented.machine()
    record = replace(rented.record(state="stopped"), attempt=3)
    plan = make(rented.settings, Request(**was), FACTS, tryout=False).to_json()
    rented.plan(request={**plan["request"]}, resume=plan["resume"])
    at = Near(rented.settings, rented.account)
    return carry_on(Reached(at, record, LocalShell(), at.run(record).home, None), request, from_its_own=own)


def test_a_run_continues_with_its_own_request(tmp_path: Path) -> None:
    told, goes_on = continued(tmp_path, Request(resume="auto"), fraction=0.5, overrides=("a=1",), env=("B=1",))
    assert (told.fraction, told.overrides, told.env, told.resume, told.given) == (
        0.5,
        ("a=1",),
        ("B=1",),
        "auto",
        set(),
    )
    assert asdict(goes_on) == {"run_id": "a", "attempt": 4, "resume": "auto"}
    with pytest.raises(WrongUse, match="--fraction 1 contradicts run a, which --resume auto would continue"):
        continued(tmp_path, Request(given=frozenset({"fraction"})), fraction=0.5)


@pytest.mark.parametrize(
    ("own", "was", "resume"),
    [(True, "none", "auto"), (False, "none", "auto"), (True, "mine.pt", "auto"), (False, "mine.pt", "mine.pt")],
)
def test_a_run_from_the_users_checkpoint_begins_there_until_it_has_one(
    tmp_path: Path, own: bool, was: str, resume: str
) -> None:
    _, goes_on = continued(tmp_path, Request(resume="auto"), own=own, resume=was)
    assert goes_on.resume.endswith(resume)


def test_a_run_may_continue_on_other_machines(tmp_path: Path) -> None:
    told, _ = continued(tmp_path, Request(nodes=2, given=frozenset({"nodes"})), nodes=4)
    assert told.nodes == 2
    told, _ = continued(tmp_path, Request(nodes=2), nodes=4)  # not given: a default
    assert told.nodes == 4
    for asked, kept in (
        (Request(spot=True), (True, False)),
        (Request(no_spot=True), (False, True)),
        (Request(), (True, False)),
    ):
        told, _ = continued(tmp_path, asked, spot=True)
        assert (told.spot, told.no_spot) == kept


# Warnings about money


@dataclass
class Trying:
    answer: Any

    def funds(self) -> Funds | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@dataclass
class Paid(Account):
    trying: Trying | None = None
    asked: list[str] = field(default_factory=list)

    def trial(self) -> Trying | None:
        self.asked.append("trial")
        return self.trying


@pytest.mark.parametrize(
    ("answer", "minutes", "options", "words"),
    [
        (Funds(10.0, 0.0), 300.0, {}, ""),  # 5 hours for 5 hours
        (Funds(10.0, 0.0), 301.0, {}, "warning: the balance of 10.00 USD lasts for 5.0 hours of this run"),
        (Funds(1.9, 0.0), None, {}, "at 0 USD the machine ends with its checkpoints: add credit"),
        (Funds(1.9, 0.0), None, {"sync_to": "/x"}, "hours of this run; at 0 USD the machine ends"),
        (Funds(2.0, 0.0), None, {}, ""),
        (None, 300.0, {}, ""),
        (NoMachine("no key"), 300.0, {}, ""),
    ],
)
def test_a_balance_that_ends_before_the_run(
    tmp_path: Path, answer: Any, minutes: float | None, options: dict[str, Any], words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rented = Rented(tmp_path, Paid(trying=Trying(answer)), options)
    plan = make(rented.settings, Request(), FACTS, tryout=False)
    plan = replace(plan, usd_per_hour=2.0, expected_minutes=minutes)
    with Near(rented.settings, rented.account) as at:
        warn_of_balance(at, plan, Screen())
        told = said(capsys)
        assert (words in told) if words else told == ""
        assert ("with its checkpoints" in told) is (bool(words) and not options)
        warn_of_balance(at, replace(plan, usd_per_hour=0.0), Screen())
        assert (said(capsys), rented.account.asked) == ("", ["trial"])  # type: ignore[attr-defined]
        rented.account.trying = None  # type: ignore[attr-defined]
        warn_of_balance(at, plan, Screen())
        assert said(capsys) == ""


@pytest.mark.parametrize(
    ("spot", "about", "words"),
    [
        (False, {}, ""),
        (True, {}, "at any moment; checkpoints on it are lost then: set volume or sync_to; "),
        (True, {"sync_to": "/x"}, "at any moment; "),
    ],
)
def test_a_machine_that_the_provider_may_end(
    tmp_path: Path, spot: bool, about: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target("far", "runpod", "/w", options=RunPod(gpus=("a",), image="x", spot=spot), **about)
    warn_of_preemption(Settings(tmp_path, target), Screen())
    told = said(capsys)
    assert (words in told) if words else told == ""
    assert ("are lost then" in told) is (spot and not about)
