"""The guard of a machine, as the laptop starts and restarts it: what is written there, and what is started."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import write_json
from deploy.pod.base.heartbeat import LOST_AFTER_S
from deploy.pod.base.limits import parse
from deploy.pod.base.paid_time import Meter
from deploy.runs import watchdog
from deploy.shell import LocalShell
from deploy.specs.machine import Machine
from deploy.specs.plan import limits_of
from deploy.specs.settings import RunPod, Settings, Ssh, Target
from deploy.specs.staged import own_folder
from deploy.workspace import environment
from tests.deploy.support.rented import Noting, Rented

# A rented machine is a Linux system; here it is a folder of this computer, with its python3.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")

HOOK = "https://example.org/hook"


@pytest.fixture
def rented(tmp_path: Path) -> Rented:
    return Rented(tmp_path)


def armed(rented: Rented, machine: Machine) -> tuple[str | None, dict[str, Any], list[list[str]]]:
    """What is said, what guard.json has, and what was started."""
    shell = Noting()
    said = watchdog.arm(rented.settings, machine, shell, Path("/code"), 2)
    file = Path(machine.root) / "guard.json"
    return said, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}, shell.spawned


def test_limits_arm_a_guard(rented: Rented) -> None:
    rented.options = {"max_hours": 3.0, "max_usd": 10.0, "sync_to": "/copies"}
    machine = rented.machine()
    said, told, started = armed(rented, machine)
    assert said == "max_hours 3, max_usd 10, copies to /copies"
    assert (told["max_hours"], told["machine"], told["code"]) == (3.0, "m", "/code")
    assert told["watch"] == [str(machine.root / "data"), str(machine.root / "environments")]
    assert ("group" in told, "node" in told, "volume_path" in told, "notify_pct" in told) == (False,) * 4
    assert started == [["python3", "-m", "deploy.pod.guard", str(machine.root)]]


def test_copies_alone_arm_a_guard(rented: Rented) -> None:
    rented.options = {"sync_to": "/copies"}
    said, told, started = armed(rented, rented.machine(address=None, group="g"))
    assert (said, told["group"], told["node"]) == ("copies to /copies", "g", 0)
    assert started[0][0] == sys.executable  # this computer has no other Python for it


def test_without_limits_there_is_no_guard(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "FOR_BOOT", rented.project / "boot")  # of a machine that could end itself
    assert armed(rented, rented.machine()) == (None, {}, [])
    assert not (rented.project / "boot").exists()


def test_a_guard_knows_where_the_providers_volume_is(rented: Rented) -> None:
    options = RunPod(gpus=("a",), image="x", volume="v1", volume_path="/volume")
    target = Target("far", "runpod", "/volume/w", options=options, max_hours=1.0)
    settings, machine = Settings(rented.project, target), rented.machine()
    watchdog.arm(settings, machine, Noting(), Path("/code"), 1)
    told = json.loads((Path(machine.root) / "guard.json").read_text(encoding="utf-8"))
    assert (told["volume_path"], watchdog.volume_path(rented.settings)) == ("/volume", None)


@pytest.mark.parametrize(("price", "said"), [(0.5, "max_usd 10"), (0.0, "max_usd 10, max_usd is NOT enforced")])
def test_a_limit_of_cost_without_a_price_is_not_called_a_guard(rented: Rented, price: float, said: str) -> None:
    target = Target("far", "runpod", "/w", options=RunPod(gpus=("a",), image="x"), max_usd=10.0)
    told = watchdog.arm(Settings(rented.project, target), rented.machine(usd_per_hour=price), Noting(), Path("/c"), 1)
    assert told
    assert told.partition(",")[0] == "max_usd 10"
    assert (said in told, "NOT" in told) == (True, not price)


def test_a_machine_whose_provider_knows_no_start_is_counted_from_the_first_guard(rented: Rented) -> None:
    """Without a start of billing, max_hours and max_usd would have no effect, and a second command would end them."""
    rented.options = {"max_hours": 3.0, "max_usd": 10.0}
    machine = rented.machine(created=None)
    _, first, _ = armed(rented, machine)
    assert first["paid_since"] == pytest.approx(time.time(), abs=60)
    _, again, _ = armed(rented, machine)
    assert again["paid_since"] == first["paid_since"]
    guard = Path(machine.root) / "guard.json"
    for others in ({"machine": "of another day", "paid_since": 1.0}, {"machine": machine.name, "paid_since": 9e9}):
        write_json(guard, others)  # a volume outlives its machines; a clock may have been wrong
        assert armed(rented, machine)[1]["paid_since"] == pytest.approx(time.time(), abs=60)
    _, free, _ = armed(rented, rented.machine("free", created=None, usd_per_hour=0.0))
    assert free["paid_since"] is None


class Elsewhen(LocalShell):
    """A machine whose clock is wrong by `off_s`."""

    def __init__(self, off_s: float) -> None:
        super().__init__()
        self.off_s = off_s

    def call(self, verb: str, **arguments: Any) -> Any:
        answer = super().call(verb, **arguments)
        return answer + self.off_s if verb == "clock" else answer


@pytest.mark.parametrize("off_s", [3600.0, -3600.0, 2.0, -1.7e9])
def test_a_wrong_clock_of_the_machine_shifts_no_limit(rented: Rented, off_s: float) -> None:
    """What its guard counts is the age that this computer knows."""
    machine = environment.settle(rented.machine(created=time.time() - 600), Elsewhen(off_s), rented.project)
    limits = parse(limits_of(rented.settings, machine).to_json())
    paid_s = Meter(limits, Clock(wall=lambda: time.time() + off_s)).paid_s
    assert paid_s == pytest.approx(600, abs=60)


def test_secrets_can_be_read_by_their_owner_only(rented: Rented) -> None:
    rented.options = {"max_hours": 3.0, "notify": HOOK, "notify_pct": (50,)}
    machine = rented.machine()
    _, told, _ = armed(rented, machine)
    assert told["notify_pct"] == [50]
    assert HOOK not in json.dumps(told)
    (file,) = [each for each in Path(machine.root).iterdir() if HOOK in each.read_text(encoding="utf-8")]
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


@pytest.mark.parametrize(
    ("status", "restarted", "state"),
    [
        ({"age_s": 0, "state": "armed"}, False, "armed"),
        ({"age_s": LOST_AFTER_S + 30, "state": "armed"}, True, "armed"),
        (None, True, None),
        ({"age_s": 0, "state": "stuck"}, False, "stuck"),
    ],
)
def test_a_guard_whose_heartbeat_stopped_is_started_again(
    rented: Rented, status: dict[str, Any] | None, restarted: bool, state: str | None
) -> None:
    """Contact resets the idle time, but not of a machine that should be gone, nor of one that costs nothing."""
    rented.options = {"max_hours": 3.0}
    for machine in (rented.machine(), rented.machine("free", usd_per_hour=0.0)):
        rented.guarded(machine.name)
        root = Path(machine.root)
        if status:
            told = {"heartbeat": time.time() - status["age_s"], "state": status["state"], "secrets": []}
            write_json(root / "guard-status.json", told)
        shell = Noting()
        assert watchdog.greet(rented.settings, machine, shell, root) == state
        assert bool(shell.spawned) is restarted
        is_noted = machine.name == "m" and state != "stuck"
        assert Path(watchdog.Root(root).contact).exists() is is_noted


def test_without_limits_no_guard_is_looked_for(rented: Rented) -> None:
    machine, shell = rented.machine(), Noting()
    rented.guarded(state="stuck")
    assert watchdog.greet(rented.settings, machine, shell, Path(machine.root)) is None
    assert shell.spawned == []


def test_a_living_guard_gets_the_secrets_that_it_lacks(rented: Rented) -> None:
    rented.options = {"max_hours": 3.0, "notify": HOOK}
    machine, shell = rented.machine(), Noting()
    rented.guarded()
    root = Path(machine.root)
    secrets = Path(watchdog.Root(root).guard_secrets)
    for has, written in (([watchdog.WEBHOOK], False), ([], True)):
        write_json(root / "guard-status.json", {"heartbeat": time.time(), "state": "armed", "secrets": has})
        assert watchdog.revive(rented.settings, machine, shell, root) == "armed"
        assert secrets.exists() is written
    assert shell.spawned == []


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_file_that_cannot_be_read_is_empty(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "guard.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert watchdog.heard(Noting(), file) == ({}, float("inf"))


def test_which_secrets_a_job_and_the_copies_get(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", *watchdog.S3_SECRETS, "OWN", "EMPTY"):
        monkeypatch.setenv(name, "" if name == "EMPTY" else f"the {name}")
    rented.options = {"secrets": ("OWN", "EMPTY", "UNSET")}

    def names(secrets: dict[str, str]) -> set[str]:
        assert all(value == f"the {name}" for name, value in secrets.items())
        return set(secrets)

    s3 = set(watchdog.S3_SECRETS)
    assert names(watchdog.job_secrets(rented.settings, track="none", data="/x")) == {"OWN"}
    assert names(watchdog.job_secrets(rented.settings, track="wandb", data="/x")) == {"OWN", "WANDB_API_KEY"}
    assert names(watchdog.job_secrets(rented.settings, track="none", data="S3://x")) == {"OWN", *s3}
    assert names(watchdog.own_secrets(rented.settings)) == {"OWN"}
    assert "AWS_ACCESS_KEY_ID" not in watchdog.named_secrets(rented.settings)
    assert {"AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "OWN"} <= set(watchdog.named_secrets(rented.settings))
    rented.options = {"sync_to": "s3://bucket/x", "secrets": ("AWS_ACCESS_KEY_ID",)}
    assert names(watchdog.own_secrets(rented.settings)) == s3
    assert "AWS_ACCESS_KEY_ID" in watchdog.named_secrets(rented.settings)
    assert [watchdog.is_s3(place) for place in ("s3a://x", "gs://x", None)] == [True, False, False]


@pytest.mark.parametrize(("trust", "is_own"), [("own", True), ("rented", False)])
def test_images_in_ram_that_arrive_show_that_a_machine_works(tmp_path: Path, trust: str, is_own: bool) -> None:
    """On a host that others use too only the user's own."""
    machine, shell = Rented(tmp_path).machine(), Noting()
    target = Target("far", "ssh", "/w", options=Ssh(host="box"), stage_to="/ram", max_hours=1.0, trust=trust)
    watchdog.arm(Settings(tmp_path, target), machine, shell, Path("/code"), 1)
    told = json.loads((Path(machine.root) / "guard.json").read_text(encoding="utf-8"))["watch"]
    folder = own_folder(PurePosixPath("/ram"), shell.user()) if is_own else "/ram"
    assert told[2:] == [str(folder)]
    assert is_own is (str(folder) != "/ram")
