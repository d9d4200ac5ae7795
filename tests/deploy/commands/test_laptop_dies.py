"""`kill -9` of the laptop's command, between any two steps of a launch, leaves no unknown machine.

The next command works. The machine is a real container, so that it can be left behind; only the training is a stub.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import Project
from tests.support.faults import Fault
from tests.support.images.engine import docker
from tests.support.load import under_load

pytestmark = pytest.mark.slow

# The command dies before or after a call of this function.
POINTS = [
    ("before", "deploy.runs.session.Reach.acquire"),
    ("after", "deploy.providers.docker.DockerProvider._create"),
    ("after", "deploy.runs.session.Reach.acquire"),
    ("before", "deploy.workspace.code.place"),
    ("after", "deploy.workspace.code.place"),
    ("after", "deploy.workspace.environment.ensure"),
    ("before", "deploy.workspace.staging.stage"),
    ("after", "deploy.workspace.staging.stage"),
    ("before", "deploy.runs.job.start"),
    ("after", "deploy.runs.job.start"),
]
# Runs `invoke`, and kills its own process at the first call of one function.
DYING = """
import importlib, os, sys
when, name, *words = sys.argv[1:]
owner, attribute = name.rsplit(".", 1)
try:
    place = importlib.import_module(owner)
except ModuleNotFoundError:
    module, kind = owner.rsplit(".", 1)
    place = getattr(importlib.import_module(module), kind)
real = getattr(place, attribute)
def dying(*args, **kwargs):
    if when == "after":
        real(*args, **kwargs)
    os.kill(os.getpid(), 9)
setattr(place, attribute, dying)
from invoke.main import program
program.run(["invoke", *words])
"""


@pytest.fixture
def with_docker(project: Project, our_image: str) -> Iterator[Project]:
    """The project, with a target `docker` and a unique name, so that no other test shares its containers."""
    project.path = project.path.rename(project.path.with_name(f"p{uuid.uuid4().hex[:8]}"))
    target = {"provider": "docker", "image": our_image, "root": "/workspace/sniperface", "stage_to": "/dev/shm"}
    (project.path / "conf" / "deploy" / "docker.yaml").write_text(json.dumps(target))
    yield project
    project.invoke("down", "--all", "--anyway")
    assert project.json("ps") == []


def dies(project: Project, when: str, name: str) -> None:
    words = ["train", "--on", "docker", "--detach", "--set", "train.step_s=0.2", "--set", "train.epochs=300"]
    done = subprocess.run(
        [sys.executable, "-c", DYING, when, name, *words], cwd=project.path, env=project.environment,
        capture_output=True, text=True, timeout=under_load(120),
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def machines(project: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = project.json("ps")
    return found


def containers(project: Project) -> list[str]:
    """The names of the project's containers, as the engine reports them."""
    mine = f"label=sniperface.project={project.path.name}"
    return docker("ps", "--all", "--filter", mine, "--format", "{{.Names}}").split()


def test_the_laptop_dies_at_each_step(with_docker: Project, fault: Fault) -> None:
    """A created machine is listed, as an orphan unless its run is alive. A dead run is never reported as running."""
    project = with_docker
    for when, name in POINTS:
        dies(project, when, name)
        fault.strikes()
        record = json.loads(project.invoke("runs", "--json").stdout)[0]
        alive = (when, name) == ("after", "deploy.runs.job.start")
        fault.told(lambda record=record, alive=alive: record["state"] == ("running" if alive else "failed"), limit_s=0)
        there = machines(project)
        fault.machines(there, containers(project))
        assert len(there) == (0 if (when, name) == POINTS[0] else 1), (when, name)
        assert all(machine["orphan"] is not alive for machine in there), (when, name, there)
        if alive:
            assert project.json("stop", "--on", "docker")["state"] == "stopped"
    done = project.json("train", "--on", "docker")
    assert done["state"] == "succeeded"
    fault.checkpoints(project.path / "runs" / done["run_id"])
    assert len(machines(project)) == 1
    assert project.json("down", "--on", "docker", "--orphans")[0]["orphan"] is True
    assert machines(project) == []


def test_two_laptops_on_one_target(with_docker: Project, tmp_path: Path, fault: Fault) -> None:
    """The second laptop finds the same machine, which reports that it is busy. It starts and releases nothing."""
    project = with_docker
    project.json("train", "--on", "docker", "--detach", "--set", "train.step_s=0.2", "--set", "train.epochs=500")
    (machine,) = machines(project)
    other = tmp_path / "other" / project.path.name
    subprocess.run(["mkdir", "-p", str(other.parent)], check=True)
    subprocess.run(["cp", "-r", str(project.path), str(other.parent)], check=True)
    subprocess.run(["rm", "-rf", str(other / "runs")], check=True)
    second = Project(other, project.socket, env=project.env)
    fault.strikes()
    refused = second.invoke("train", "--on", "docker", code=2)
    assert "busy with run" in refused.stderr
    kept = second.invoke("down", "--on", "docker", "--orphans")
    assert "nothing to release" in kept.stdout
    assert f"kept {machine['machine']}: run {machine['run']} of another computer is running on it" in kept.stderr
    fault.strikes()
    fault.told(lambda: project.json("status", "--on", "docker")["state"] == "running")
    assert [each["machine"] for each in machines(project)] == [machine["machine"]]
    stopped = project.json("stop", "--on", "docker")
    fault.checkpoints(project.path / "runs" / stopped["run_id"])
    fault.machines(machines(project), containers(project))


def test_a_failed_attempt_never_releases_the_machine_of_an_earlier_one(with_docker: Project) -> None:
    """The machine may hold the only copy of a checkpoint."""
    project = with_docker
    slow = ("--set", "train.step_s=0.2", "--set", "train.epochs=300")
    project.json("train", "--on", "docker", "--detach", *slow)
    (machine,) = machines(project)
    project.json("stop", "--on", "docker")
    with open(project.path / "forgotten.bin", "wb") as file:
        file.truncate(60 << 20)
    failed = project.invoke("train", "--on", "docker", "--resume", "auto", code=2)
    assert "forgotten.bin has 60 MiB" in failed.stderr
    assert "released" not in failed.stdout + failed.stderr
    assert [each["machine"] for each in machines(project)] == [machine["machine"]]
    (project.path / "forgotten.bin").unlink()
    assert project.json("train", "--on", "docker", "--resume", "auto", "--detach")["state"] == "running"
    assert project.json("stop", "--on", "docker")["state"] == "stopped"
