"""The commands on a rented pod without Docker: RunPod is emulated, and its pods are processes behind real SSH servers.

Provision, login, code, environment check, data, training by the supervisor, the guard, download and release are real.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base.folder import read_json, write_json
from tests.deploy.conftest import Project, paced, wait_until
from tests.deploy.support.pods import account_of
from tests.support.emulators.runpod import Emulator
from tests.support.faults import Fault
from tests.support.load import under_load

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs /proc, to end the processes of a pod: run on Linux"
)


@pytest.fixture
def account(project: Project, tmp_path: Path) -> Iterator[Emulator]:
    """The account that the project's target `far` rents from."""
    target(project, root=str(tmp_path / "there"))
    with account_of(project.env, tmp_path / "pods") as emulator:
        yield emulator


def target(project: Project, **values: object) -> None:
    told = {
        "provider": "runpod", "image": "me/x:cuda-0123456789ab", "min_cuda": "12.4", "gpus": ["NVIDIA A40"],
        "device": "cpu", "processes": 2, "max_usd": 5, "idle_min": 20, **values,
    }  # fmt: skip
    (project.path / "conf" / "deploy" / "far.yaml").write_text(json.dumps(told), encoding="utf-8")  # JSON is YAML


def test_a_run_on_a_pod_is_trained_brought_home_and_given_back_in_a_minute(project: Project, account: Emulator) -> None:
    """From one command to a finished job and its checkpoint, then `ps` and `down`. The first pod does not fit."""
    root = read_json(project.path / "conf" / "deploy" / "far.yaml")["root"]
    target(project, root=root, gpus=["NVIDIA RTX A4500", "NVIDIA A40"])
    account.account.gpus["NVIDIA RTX A4500"].usd_per_hour = 7200.0
    account.account.balance_usd = 1e6
    account.next_pod(ends="EXITED")
    began = time.monotonic()
    done = project.json("train", "--on", "far", "--fraction", "0.5", "--yes")
    spend = read_json(project.path / "runs" / done["run_id"] / "run.json")["spend"]
    assert [usd > 0 for name, usd in spend.items() if name.endswith("-refused")] == [True]  # it was paid, too
    assert (done["state"], done["fraction"], done["checkpoint"]["epoch"]) == ("succeeded", 0.5, 2)
    assert Path(done["checkpoint"]["path"]).is_file()
    [bill] = project.json("ps")
    assert bill["target"] == "far"
    assert len(account.names) == 1
    assert project.json("status", "--on", "far")["state"] == "succeeded"
    assert "grüße" in project.invoke("logs", "--on", "far").stdout
    planned = " ".join(project.invoke("train", "--on", "far", "--dry-run").stdout.split())
    assert f"target far: machine {bill['machine']} is there already and is used again;" in planned
    assert "without the training environment" not in planned
    project.invoke("down", "--on", "far")
    assert account.names == []
    wait_until(lambda: project.json("ps") == [])
    assert time.monotonic() - began < under_load(60)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--gpus", "A40", "--spot")], ids=["by file", "by flags"])
def test_a_run_on_a_spot_pod_that_is_stopped_goes_on_on_another(
    project: Project, account: Emulator, fault: Fault, flags: tuple[str, ...]
) -> None:
    """`watch` has its newest checkpoint and continues the run. The plan has the spot price, and a warning."""
    root = read_json(project.path / "conf" / "deploy" / "far.yaml")["root"]
    target(project, root=root, **({"gpus": ["NVIDIA RTX A5000"]} if flags else {"spot": True}))
    words = ("train", "--on", "far", *flags, "--yes", *paced(0.5, 8))
    said = project.invoke(*words, "--dry-run").stdout
    assert "at $0.20 an hour (spot)" in said
    assert "a spot machine may be stopped at any moment; checkpoints on it are lost then" in said
    project.invoke(*words, "--detach")
    [run] = project.json("runs")
    watching = project.start("watch", "--on", "far")
    at_home = project.path / "runs" / run["run_id"] / "checkpoints"
    wait_until(lambda: list(at_home.glob("epoch_*.json")), 60)
    [first] = account.names
    fault.strikes()
    account.preempt(first)
    fault.told(lambda: is_over(project.json("status", "--on", "far")))
    said, errors = watching.communicate(timeout=under_load(120))
    assert (watching.returncode, "Traceback" in errors) == (0, False), (said, errors)
    assert "continuing on another machine" in said
    done = project.json("status", "--on", "far")
    assert (done["state"], done["attempt"], done["epoch"]) == ("succeeded", 2, 7)
    [second] = account.names
    assert second != first
    assert (account.pod(second).spot, account.pod(second).gpu) == (True, "NVIDIA A40")
    fault.machines(project.json("ps"), account.names)
    fault.checkpoints(at_home.parent)


def is_over(status: dict[str, Any]) -> bool:
    """Whether the first attempt is known to be over. `watch` may have begun the next one."""
    return status["state"] == "lost" or status["attempt"] == 2


def test_machines_that_fail_one_after_the_other_are_paid_from_max_usd(project: Project, emulator: Emulator) -> None:
    """Each bills until it is refused. Nobody watches `watch`, so it would go on so for ever."""
    emulator.account.gpus["NVIDIA A40"].usd_per_hour = 7200.0
    emulator.account.balance_usd = 1e6
    emulator.account.oddities += [{"zero_gpus": True}] * 50
    target(project, root="/workspace/x", max_usd=1e5)
    failed = project.invoke("train", "--on", "far", "--fraction", "0.5", "--yes", code=3)
    assert "it has no GPUs" in failed.stderr
    [run] = [path.parent for path in (project.path / "runs").glob("*/run.json")]
    first = read_json(run / "run.json")
    assert first["spend"][first["machine"]] > 0.5
    write_json(run / "run.json", {**first, "state": "lost", "spend": None})
    done = project.invoke("watch", "--on", "far", "--max-usd", "0.5")
    assert "reached max_usd 0.5: it is not continued" in " ".join(done.stdout.split())
    assert (read_json(run / "run.json")["state"], emulator.names) == ("lost", [])
