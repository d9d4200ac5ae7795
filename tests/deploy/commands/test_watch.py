"""`watch` at its limit of cost, with machines that cannot be asked: the emulated account, and its list alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy.commands import watch
from deploy.errors import StepFailed, command
from deploy.pod.base.folder import write_json
from deploy.pod.base.limits import LAPTOP
from deploy.providers.runpod import readiness
from deploy.runs import records
from deploy.runs.records import Record
from deploy.specs.settings import RunPod
from deploy.ui.screen import Screen
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.emulators.runpod_state import Pod

NAME = "sniperface-laptop-runpod-a"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    made = Emulator()
    made.holds_streams = False
    monkeypatch.setenv("RUNPOD_API_BASE_URL", made.url)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setattr(readiness, "ADDRESS_S", 0.0)
    monkeypatch.setattr(watch, "ELSEWHERE_PAUSES_S", (0.01,))
    monkeypatch.setattr(watch, "EVERY_S", 0.01)
    yield made
    made.close()


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """A project with a run that lives on a rented machine."""
    target = tmp_path / "laptop" / "conf" / "deploy" / "runpod.yaml"
    target.parent.mkdir(parents=True)
    target.write_text("provider: runpod\nroot: /workspace/s\ngpus: [NVIDIA A40]\n", encoding="utf-8")
    record = Record("a", "runpod", "runpod", "running", 1, "2026-11-28T10:00:00", None, 1.0, "x", "/x/runs/a", NAME)
    write_json(tmp_path / "laptop" / "runs" / "a" / "run.json", asdict(record))
    return tmp_path / "laptop"


def out_of_reach(account: Emulator, hours: float) -> Pod:
    """A pod that bills, and whose host gives it no address: the guard on it may be dead, too."""
    account.next_pod(publishes="nothing")
    pod = account.account.create(
        name=NAME, image="me/x:1", gpu="NVIDIA A40", gpu_count=1, cloud="SECURE", data_centers=[], disk=40,
        ports=["22/tcp"], env={},
    )  # fmt: skip
    pod.created = pod.booted = account.clock.time() - hours * 3600
    return pod


@pytest.mark.parametrize("faults", [0, 2])
def test_a_machine_out_of_reach_is_released_at_max_usd(
    account: Emulator, laptop: Path, faults: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It costs 0.40 USD an hour. A release that fails is tried again: nobody may be there to type a command."""
    out_of_reach(account, hours=3.0)
    account.fail("403", "^DELETE", times=faults)
    row = watch.watch(laptop, "runpod", "a", Screen(), max_usd=1.0)
    assert account.names == []
    assert (row["state"], row["reason"]) == ("expired", "it reached max_usd and could not be stopped")
    assert row["spend_usd"] == pytest.approx(1.2, abs=0.05)
    assert "this run has cost $1.20 and reached max_usd 1" in capsys.readouterr().out


def test_a_machine_that_its_guard_stopped_keeps_its_disk(account: Emulator, laptop: Path) -> None:
    """With `on_end: stop`, the guard stops it at the same limit, and its disk has the results."""
    out_of_reach(account, hours=3.0).stopped = True
    watch._release_all(laptop, records.get(laptop / "runs", "a", "runpod"), Screen())
    assert account.names == [NAME]


@pytest.mark.parametrize("state", ["succeeded", "lost"])
def test_watch_fails_if_the_machine_still_bills(
    account: Emulator, laptop: Path, monkeypatch: pytest.MonkeyPatch, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only this laptop can release it: a script must see that it did not. A lost run may leave its machine, too."""
    out_of_reach(account, hours=3.0)
    monkeypatch.setattr(RunPod, "release", LAPTOP)
    record = records.update(laptop / "runs", records.get(laptop / "runs", "a", "runpod"), state=state)
    with pytest.raises(StepFailed, match="still bills") as failed:
        watch._over(laptop, record, Screen())
    assert failed.value.next_command == command("down --run a")
    assert f"{NAME} still bills" in capsys.readouterr().err
