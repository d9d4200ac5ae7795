"""What breaks while a real run goes on in a real container: nothing of it is lost, and what is said of it is true."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.images.engine import docker

from .clones import SMALL, Clone, make_clone, wait_for

pytestmark = pytest.mark.slow
WORDS = [word for setting in SMALL for word in ("--set", setting)]


@pytest.fixture
def clone(tmp_path: Path, our_image: str) -> Iterator[Clone]:
    """A clone whose target `docker` is a container of our image."""
    here = make_clone(tmp_path)
    target = {"provider": "docker", "image": our_image, "root": "/workspace/sniperface", "stage_to": "/dev/shm"}
    (here.path / "conf" / "deploy" / "docker.yaml").write_text(json.dumps(target), encoding="utf-8")
    yield here
    here.invoke("down", "--all", "--anyway")
    assert here.json("ps") == []


def container(clone: Clone) -> str:
    (machine,) = clone.json("ps")
    return str(machine["machine"])


def test_a_container_that_vanishes_costs_nothing_of_the_run(clone: Clone) -> None:
    """In the middle of an epoch; watch has the newest checkpoint and goes on elsewhere, to the same weights."""
    undisturbed = clone.json("train", "--on", "docker", *WORDS)
    run_id = clone.json("train", "--on", "docker", "--detach", *WORDS)["run_id"]
    watching = clone.start("watch", "--on", "docker", "--run", run_id)
    home = clone.path / "runs" / run_id / "checkpoints"
    wait_for(lambda: list(home.glob("epoch_01*.json")))
    first = container(clone)
    docker("rm", "--force", first)
    said, complaint = watching.communicate(timeout=300)
    assert watching.returncode == 0, complaint
    assert "going on elsewhere" in said
    assert container(clone) != first
    finished = next(home.glob("epoch_039.pt"))
    assert_equal_bits(Path(undisturbed["checkpoint"]["path"]), finished)


def assert_equal_bits(one: Path, other: Path) -> None:
    first, second = (torch.load(path, weights_only=True)["modules"] for path in (one, other))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_ssh_goes_down_and_the_job_does_not(clone: Clone) -> None:
    """kill -9 of sshd: the console is shown instead; sshd is started again; the log has each byte once."""
    run_id = clone.json("train", "--on", "docker", "--detach", *WORDS)["run_id"]
    name = container(clone)
    log = f"/workspace/sniperface/runs/{run_id}/train.log"
    wait_for(lambda: "epoch 1/" in docker("exec", name, "cat", log))
    docker("exec", name, "sh", "-c", "mv /usr/sbin/sshd /usr/sbin/sshd.away && pkill -9 -x sshd")
    shown = clone.invoke("logs", "--on", "docker", code=1)
    assert "epoch 1/" in shown
    assert "this is the console of" in shown
    docker("exec", name, "mv", "/usr/sbin/sshd.away", "/usr/sbin/sshd")
    wait_for(lambda: answers(name))
    followed = clone.invoke("logs", "--on", "docker", "--follow")
    assert followed.encode() == subprocess.run(["docker", "exec", name, "cat", log], capture_output=True).stdout
    assert clone.json("status", "--on", "docker")["state"] == "succeeded"


def answers(name: str) -> bool:
    return subprocess.run(["docker", "exec", name, "pgrep", "-x", "sshd"], capture_output=True).returncode == 0
