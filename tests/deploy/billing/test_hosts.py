"""Images in the RAM of hosts that stay: what is freed, what is kept and why, and which failure is raised."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.billing.hosts import free_ram
from deploy.errors import DeployError, NoMachine, WrongUse, command
from deploy.pod.base.folder import write_json
from deploy.runs.session import launching
from deploy.shell import Shell
from deploy.shell.base import StagedImages
from deploy.specs.machine import Address, Machine, node_name
from deploy.specs.names import machine_name
from deploy.specs.settings import Settings, Ssh, Target
from deploy.ui.screen import Screen
from tests.deploy.support.rented import Account, Near, Noting

# A host is a Linux system; here it is a folder of this computer.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")
GIB = 1 << 30
FREED, OPEN = StagedImages("/dev/shm/u", GIB + GIB // 4, ""), StagedImages("/dev/shm/v", GIB // 2, "open")


class Host(Noting):
    """This computer's shell; says which images were there."""

    def __init__(self, answer: list[StagedImages] | Exception) -> None:
        super().__init__()
        self.answer = answer

    def free_images(self, *_: Any) -> list[StagedImages]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Hosts(Near):
    """A target with a host for each answer."""

    def __init__(self, settings: Settings, *answers: list[StagedImages] | Exception) -> None:
        account = Account()
        self.hosts: dict[str, Host] = {}
        for number, answer in enumerate(answers):
            name = node_name(machine_name(settings, "down", 1), number)
            account.machines[name] = Machine(
                name, settings.project / f"box{number}", "python", address=Address(f"box{number}")
            )
            self.hosts[name] = Host(answer)
        super().__init__(settings, account)

    def shell(self, machine: Machine) -> Shell:
        return self.hosts[machine.name]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    target = Target("box", "ssh", "/tmp/none", stage_to="/dev/shm", options=Ssh(host="box0"))
    return Settings(tmp_path, target)


def test_images_in_use_stay_with_the_reason(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with Hosts(settings, [FREED, OPEN, replace(FREED, folder="/dev/shm/w")], [], [OPEN]) as at:
        told = free_ram(at, Screen(), anyway=True)
    first = {"target": "box", "host": "box0", "freed_gib": 2.5, "freed": ["/dev/shm/u", "/dev/shm/w"]}
    second = {"target": "box", "host": "box2", "freed_gib": 0, "freed": []}
    assert told == [{**each, "kept": ["/dev/shm/v"]} for each in (first, second)]
    printed = capsys.readouterr()
    assert "freed 2.50 GiB of RAM on box0 (/dev/shm/u, /dev/shm/w); the host was not rented" in printed.out
    assert "freed 0.00" not in printed.out
    assert "kept 0.50 GiB in /dev/shm/v on box0: a process uses them" in " ".join(printed.err.split())
    small = replace(FREED, bytes=GIB // 10000)
    with Hosts(settings, [small]) as at:
        assert free_ram(at, Screen(), anyway=True)[0]["freed_gib"] == 0.0
    with Hosts(settings, [replace(FREED, bytes=GIB // 3)]) as at:
        assert free_ram(at, Screen(), anyway=True)[0]["freed_gib"] == 0.333


def test_a_host_that_fails_does_not_keep_the_others(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """The first failure is raised at the end, the others are printed."""
    denied = PermissionError(13, "Permission denied", "/dev/shm/u")
    with Hosts(settings, NoMachine("box0 is down"), denied, [FREED]) as at, pytest.raises(DeployError) as error:
        free_ram(at, Screen(), anyway=True)
    assert error.value.message == "box0 is down"
    printed = capsys.readouterr()
    assert "freed 1.25 GiB of RAM on box2" in printed.out
    assert "error: box1: /dev/shm/u could not be removed: Permission denied" in " ".join(printed.err.split())
    assert "error: box0" not in printed.err


@pytest.mark.parametrize("anyway", [False, True])
def test_the_images_of_another_computers_run_stay(
    settings: Settings, anyway: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    status = {"state": "running", "attempt": 1, "heartbeat": time.time()}
    write_json(settings.project / "box0" / "runs" / "theirs" / "status.json", status)
    with Hosts(settings, [FREED], [FREED]) as at:
        told = free_ram(at, Screen(), anyway=anyway)
    assert [each["host"] for each in told] == (["box0", "box1"] if anyway else ["box1"])
    kept = "kept the images on box0: run theirs of another computer is running on it"
    assert (kept in " ".join(capsys.readouterr().err.split())) is not anyway


def test_nothing_is_freed_while_a_run_is_being_started(settings: Settings) -> None:
    with Hosts(settings, [FREED]) as at, launching(settings), pytest.raises(WrongUse) as error:
        free_ram(at, Screen(), anyway=True)
    assert "a run is being started on target 'box'" in str(error.value)
    assert error.value.next_command == command("status --on box")


@pytest.mark.parametrize("about", [{"stage_to": None}, {"trust": "rented"}])
def test_a_machine_of_the_run_alone_is_left_alone(settings: Settings, about: dict[str, Any]) -> None:
    """It is released as a whole, or its images are not in RAM."""
    with Hosts(replace(settings, target=replace(settings.target, **about)), [FREED]) as at:
        assert free_ram(at, Screen(), anyway=True) == []
