"""The next command releases machines that cost money for nothing.

The pods of the emulated account are real containers. They cannot reach its API, so no guard can release its own
machine. Only the training is a stub.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import Project, wait_until
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.emulators.runpod_pods import Container
from tests.support.images.engine import docker

pytestmark = pytest.mark.slow
ROOT = "/workspace/sniperface"
# This command restarted the guard, or the supervisor of the run did so seconds earlier.
MENDED = (
    "past max_hours: 10; "
    "(its guard had died and was started again|run .* is running on it, and its guard has to end the run)"
)
ENDLESS = ("--set", "train.step_s=0.2", "--set", "train.epochs=500")


@dataclass
class Rented:
    """A project with a target `runpod` that has one pod for 0.25 USD an hour."""

    project: Project
    emulator: Emulator

    def target(self, **values: object) -> None:
        told = {
            "provider": "runpod", "image": "me/sniperface:1", "gpus": ["NVIDIA RTX A4500"], "root": ROOT,
            "stage_to": "/dev/shm", "device": "cpu", **values,  # there is no GPU behind an emulated pod
        }  # fmt: skip
        (self.project.path / "conf" / "deploy" / "runpod.yaml").write_text(json.dumps(told))

    def train(self, *words: str) -> str:
        run_id: str = self.project.json("train", "--on", "runpod", "--detach", "--yes", *words)["run_id"]
        return run_id

    def said(self, *words: str, project: Project | None = None) -> str:
        """Run a command on this target. Returns its stderr."""
        return (project or self.project).invoke(words[0], "--on", "runpod", *words[1:]).stderr

    def older(self, hours: float) -> None:
        """Move the creation time of all pods back by `hours`. Their guards keep the creation time they were given."""
        for pod in self.emulator.account.all():
            pod.created -= hours * 3600

    @property
    def names(self) -> list[str]:
        return self.emulator.names

    @property
    def container(self) -> str:
        machine = self.emulator.account.all()[0].machine
        assert isinstance(machine, Container)
        return machine.id

    def inside(self, script: str) -> str:
        return docker("exec", self.container, "sh", "-c", script)

    def guard(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.inside(f"cat {ROOT}/guard-status.json 2>/dev/null || echo '{{}}'"))
        return told

    def kill_guard(self) -> None:
        """Kill the guard, prevent its restart, and set its last heartbeat to a time long ago."""
        pid = self.guard()["pid"]
        self.inside(f"rm -f /run/sniperface/guard; kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done")
        self.inside(f'sed -i \'s/"heartbeat": [0-9.]*/"heartbeat": 1/\' {ROOT}/guard-status.json')

    def is_over(self, run_id: str) -> bool:
        return self.inside(f"cat {ROOT}/runs/{run_id}/status.json").count('"ended": null') == 0

    def home(self, run_id: str) -> list[str]:
        return sorted(path.name for path in (self.project.path / "runs" / run_id / "checkpoints").glob("*.pt"))


@pytest.fixture
def rented(project: Project, our_image: str) -> Iterator[Rented]:
    project.path = project.path.rename(project.path.with_name(f"p{uuid.uuid4().hex[:8]}"))
    emulator = Emulator(pods="docker", image=our_image)
    project.env |= {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY, "HOME": str(project.path.parent)}
    try:
        yield Rented(project, emulator)
        assert breaches(emulator) == []
    finally:
        emulator.close()


def test_one_that_its_guard_could_not_release_goes_with_the_next_command(rented: Rented) -> None:
    """The run is over. The command downloads the checkpoint, releases the machine and answers from the local files."""
    rented.target(idle_min=0.05, on_end="terminate")
    run_id = rented.train()
    wait_until(lambda: rented.is_over(run_id) and rented.guard()["state"] == "stuck", 90)
    done = rented.project.invoke("status", "--on", "runpod", "--json")
    assert json.loads(done.stdout)["state"] == "succeeded"
    (line,) = done.stderr.splitlines()
    name, _, rest = line.removeprefix("released ").partition(" ")
    assert name.startswith("sniperface-")
    assert name.endswith(run_id[-len("20261129-030349-de35") :])
    assert rest.startswith("after $0.00: ")
    assert line.endswith("its guard could not release it; epoch_002.pt downloaded first")
    assert rented.names == []
    assert rented.home(run_id) == ["epoch_002.pt"]
    assert rented.said("status") == ""


def test_what_is_past_its_ceilings(rented: Rented) -> None:
    """Past max_hours, a machine with a live run or a live guard is kept; the guard of a live run is restarted.

    A machine with neither is released, after its newest checkpoint was downloaded.
    """
    rented.target(max_hours=10, max_usd=50)
    run_id = rented.train(*ENDLESS)
    logins = docker("logs", rented.container).count("Accepted publickey")
    assert rented.said("train", "--dry-run") == ""
    assert docker("logs", rented.container).count("Accepted publickey") == logins  # nothing is due, so no login
    rented.older(11)
    assert f"past max_hours: 10; run {run_id} is running on it" in rented.said("train", "--dry-run")
    rented.kill_guard()
    assert re.search(MENDED, rented.said("train", "--dry-run"))
    wait_until(lambda: rented.guard()["heartbeat"] > 1)
    assert rented.project.json("status", "--on", "runpod")["state"] == "running"
    rented.inside(f"touch {ROOT}/runs/{run_id}/stop.request")
    wait_until(lambda: rented.is_over(run_id))
    assert "past max_hours: 10; its guard reports: armed" in rented.said("train", "--dry-run")
    assert len(rented.names) == 1
    rented.kill_guard()
    log = rented.inside(f"cat {ROOT}/runs/{run_id}/train.log")
    done = rented.project.invoke("logs", "--on", "runpod")
    assert done.stdout.strip() == log  # stdout holds the log and nothing else
    assert "after $2.7" in done.stderr
    assert "past max_hours: 10, and its guard is dead; epoch_" in done.stderr
    assert rented.names == []
    assert len(rented.home(run_id)) == 1


def test_what_is_another_laptops_is_left_alone(rented: Rented, tmp_path: Path) -> None:
    """Another laptop's machine is kept while its run is alive, and while it has the only copy of a checkpoint.

    The laptop that started the run downloads the checkpoint and releases the machine.
    """
    rented.target(max_hours=10)
    run_id = rented.train("--set", "train.step_s=1.5", "--set", "train.epochs=12")
    other = Project(tmp_path / "other" / rented.project.path.name, rented.project.socket, env=rented.project.env)
    shutil.copytree(rented.project.path, other.path)
    shutil.rmtree(other.path / "runs")
    rented.older(11)
    rented.kill_guard()
    assert re.search(MENDED, rented.said("train", "--dry-run", project=other))
    wait_until(lambda: rented.guard()["heartbeat"] > 1)
    wait_until(lambda: rented.is_over(run_id), 60)
    rented.kill_guard()
    kept = rented.said("train", "--dry-run", project=other)
    assert f"it has the only copy of epoch_011.pt of run {run_id}, which this laptop could not download" in kept
    assert len(rented.names) == 1
    assert "past max_hours: 10, and its guard is dead; epoch_011.pt downloaded first" in rented.said(
        "train", "--dry-run"
    )
    assert rented.names == []
    assert rented.home(run_id) == ["epoch_011.pt"]


def test_one_that_does_not_answer(rented: Rented) -> None:
    """A machine that does not answer is only reported, because the connection may be at fault.

    Far past max_usd it is released, and the command says that data is lost. An error in this check fails no command.
    """
    rented.target(max_hours=10, max_usd=5)
    rented.train(*ENDLESS)
    docker("stop", "--time", "0", rented.container)
    rented.older(11)
    assert "past max_hours: 10, and it does not answer (it has no address); see" in rented.said("train", "--dry-run")
    rented.older(9.1)  # 20.1 hours are 5.03 USD
    assert "past max_usd: 5, and it does not answer" in rented.said("train", "--dry-run")
    assert len(rented.names) == 1
    rented.target(max_hours=10, max_usd=1)  # an edited file does not change the limit of a started run
    assert "past max_usd: 5, and it does not answer" in rented.said("train", "--dry-run")
    rented.emulator.keys = {"another"}
    assert rented.said("train", "--dry-run") == ""
    rented.emulator.keys = {KEY}
    rented.older(1)
    gone = rented.said("train", "--dry-run")
    assert "past max_usd: 5, and it does not answer (it has no address); max_usd is hard: DATA THAT ONLY IT HAD" in gone
    assert gone.startswith("released ")
    assert rented.names == []
