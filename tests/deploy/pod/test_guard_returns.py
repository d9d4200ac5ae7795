"""A killed guard is restarted with its earlier limits: real containers, real processes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.conftest import Project, wait_until
from tests.support.images.engine import docker

pytestmark = pytest.mark.slow
ROOT = "/workspace/sniperface"


@pytest.fixture
def idle(project: Project, our_image: str) -> Iterator[tuple[Project, str]]:
    """The project, and a guarded container of its target `docker` without a job."""
    project.path = project.path.rename(project.path.with_name(f"p{uuid.uuid4().hex[:8]}"))
    target = {
        "provider": "docker", "image": our_image, "root": ROOT, "stage_to": "/dev/shm", "max_hours": 50,
        "sync_to": "s3://faces/backup", "secrets": ["BOX_TOKEN"],
    }  # fmt: skip
    project.env["BOX_TOKEN"] = "planted-secret-9032"
    (project.path / "conf" / "deploy" / "docker.yaml").write_text(json.dumps(target))
    name = project.json("deploy", "--on", "docker")["machine"]
    wait_until(lambda: guard(name).get("pid"))
    yield project, name
    project.invoke("down", "--all", "--anyway")
    assert project.json("ps") == []


def guard(name: str) -> dict[str, Any]:
    """Return the content of guard-status.json; {} if it is missing."""
    told: dict[str, Any] = json.loads(docker("exec", name, "sh", "-c", f"cat {ROOT}/guard-status.json || echo '{{}}'"))
    return told


def is_back(name: str, killed: int) -> bool:
    """Whether a new guard process has a fresh heartbeat, by the container's clock, and the limits of the first."""
    told = guard(name)
    age_s = float(docker("exec", name, "date", "+%s")) - told["heartbeat"]
    return told["pid"] != killed and age_s < 5 and told["limits"]["max_hours"] == 50 and told["state"] == "guarding"


def test_the_container_itself_starts_it_again(idle: tuple[Project, str]) -> None:
    """The container restarts a guard each time it is killed, and after a restart of the whole container."""
    _, name = idle
    for times in (1, 2):
        pid = guard(name)["pid"]
        docker("exec", name, "kill", "-9", str(pid))
        wait_until(lambda pid=pid: is_back(name, pid), 30)
        assert f"the guard of this machine had ended: started again ({times})" in docker("logs", name)
    docker("restart", "--time", "10", name)
    beat = guard(name)["heartbeat"]
    wait_until(lambda: guard(name)["heartbeat"] > beat, 30)
    assert docker("exec", name, "stat", "-c", "%a", "/run/sniperface/guard") == "600"


def test_one_without_secrets_is_given_them_by_the_next_command(idle: tuple[Project, str]) -> None:
    """Only a guard's memory holds the secrets, no file. A guard that the container restarts has none."""
    project, name = idle
    project.json("train", "--on", "docker", "--detach", "--set", "train.step_s=0.1", "--set", "train.epochs=1")
    wait_until(lambda: project.json("status", "--on", "docker")["state"] == "succeeded")
    wait_until(lambda: guard(name)["secrets"] == ["BOX_TOKEN"])
    pid = guard(name)["pid"]
    docker("exec", name, "kill", "-9", str(pid))
    wait_until(lambda: is_back(name, pid), 30)
    assert guard(name)["secrets"] == []
    project.json("status", "--on", "docker")
    wait_until(lambda: guard(name)["secrets"] == ["BOX_TOKEN"])
    look = f"grep -rl planted-secret-9032 {ROOT} /run /tmp /dev/shm || true"
    assert docker("exec", name, "sh", "-c", look) == ""
