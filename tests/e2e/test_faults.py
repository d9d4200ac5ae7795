"""Faults during a real run in a real container: nothing is lost, and the status is correct."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploy.specs.names import slug
from tests.e2e.clones import BARE, SMALL, Clone, copy_of, ending, make_clone, wait_for
from tests.e2e.test_machines import log_of
from tests.support.faults import Fault
from tests.support.files import events
from tests.support.images.engine import docker
from tests.support.load import under_load

pytestmark = pytest.mark.slow
GOING_ON = ("lost", "acquiring", "preparing")  # states of a run that watch is recovering
WORDS = [word for setting in (*SMALL, *BARE, "train.epochs=24") for word in ("--set", setting)]
ANEW = ["--on", "docker", "--detach", "--resume", "none", *WORDS]


@pytest.fixture(scope="module")
def volume() -> Iterator[Path]:
    """A folder that is mounted as /volume in each container of the target, for copies that outlive the container.

    It is on a disk: copies into memory are refused.
    """
    with tempfile.TemporaryDirectory(prefix="volume-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, our_image: str, volume: Path) -> Iterator[Clone]:
    """A clone whose target `docker` is a container of our image, which all tests reuse.

    One process trains: a second one would double the cost of each start, and these faults are of the machine. It has
    half a core, so that on an idle computer, too, the run lasts longer than the commands that break it.
    """
    here = make_clone(tmp_path_factory.mktemp("a user"))
    target = {
        "provider": "docker",
        "image": our_image,
        "root": "/workspace/sniperface",
        "stage_to": "/dev/shm",
        "volumes": [f"{volume}:/volume"],
        "processes": 1,
        "cpus": 0.5,
    }
    (here.path / "conf" / "deploy" / "docker.yaml").write_text(json.dumps(target), encoding="utf-8")
    yield here
    here.invoke("down", "--all", "--anyway")
    assert here.json("ps") == []


@pytest.fixture(scope="module")
def undisturbed(clone: Clone) -> Path:
    """The folder of a run without a fault."""
    return clone.path / "runs" / str(clone.json("train", "--on", "docker", *WORDS)["run_id"])


def container(clone: Clone) -> str:
    (machine,) = clone.json("ps")
    return str(machine["machine"])


def bills(clone: Clone, fault: Fault) -> None:
    project = slug(clone.path.name)
    there = docker("ps", "--all", "--filter", f"label=sniperface.project={project}", "--format", "{{.Names}}")
    fault.machines(clone.json("ps"), there.split())


def test_a_container_that_vanishes_costs_nothing_of_the_run(clone: Clone, undisturbed: Path, fault: Fault) -> None:
    """The container vanishes during an epoch. `watch` continues elsewhere from its checkpoint, to equal weights."""
    run_id = clone.json("train", "--on", "docker", "--detach", *WORDS)["run_id"]
    first = container(clone)
    docker("update", "--cpus=0.25", first)  # the run has to outlast the first download
    with ending(clone.start("watch", "--on", "docker", "--run", run_id)) as watching:
        home = clone.path / "runs" / run_id / "checkpoints"
        wait_for(lambda: list(home.glob("epoch_*.json")))
        docker("rm", "--force", first)
        fault.strikes()
        fault.told(lambda: clone.json("status", "--on", "docker")["state"] in GOING_ON)
        said, complaint = watching.communicate(timeout=under_load(300))
    assert watching.returncode == 0, complaint
    assert "continuing on another machine" in said
    assert container(clone) != first
    assert_equal_bits(undisturbed, home.parent)
    fault.checkpoints(home.parent)
    bills(clone, fault)


def test_what_only_the_volume_has_is_gone_on_from(clone: Clone, undisturbed: Path, volume: Path, fault: Fault) -> None:
    """The laptop has no checkpoint when the container vanishes. The resumed run ends with equal weights and curve."""
    keeping = replace(clone, env={"SNIPERFACE_SYNC_TO": "/volume/copies of runs"})
    run_id = keeping.json("train", "--on", "docker", "--detach", *WORDS)["run_id"]
    docker("update", "--cpus=0.25", container(clone))  # the run has to outlast the first copy
    home, kept = clone.path / "runs" / run_id, volume / "copies of runs" / run_id
    wait_for(lambda: list(kept.glob("checkpoints/epoch_*.json")))
    docker("rm", "--force", container(clone))
    fault.strikes()
    fault.told(lambda: keeping.json("status", "--on", "docker")["state"] == "lost")
    fault.checkpoints(kept, complete=False)
    assert not (home / "checkpoints").exists()
    said = keeping.invoke("train", "--on", "docker", *WORDS, code=2)
    assert f"run {run_id} was lost (its machine " in said
    assert f"no checkpoint on this laptop, copies in the volume /volume/copies of runs/{run_id}" in said
    said = keeping.invoke("train", "--on", "docker", "--resume", "auto")
    (restored,) = [line for line in said.splitlines() if line.startswith("restored epoch_")]
    assert restored.endswith(" from the volume /volume/copies of runs")
    assert_equal_bits(undisturbed, home)
    assert curve(home) == curve(undisturbed)
    fault.checkpoints(home)
    bills(clone, fault)


def curve(folder: Path) -> list[tuple[int, float]]:
    """Return each step with its loss, from the run's events."""
    return [(event["step"], event["loss"]) for event in events(folder) if event["event"] == "step"]


def assert_equal_bits(one: Path, other: Path) -> None:
    last = (folder / "checkpoints" / "epoch_023.pt" for folder in (one, other))
    first, second = (torch.load(path, weights_only=True)["modules"] for path in last)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_ssh_goes_down_and_the_job_does_not(clone: Clone, tmp_path: Path, fault: Fault) -> None:
    """After kill -9 of sshd, `logs` shows the console. Once sshd runs again, the followed log has each byte once."""
    run_id = clone.json("train", *ANEW)["run_id"]
    name = container(clone)
    log = f"/workspace/sniperface/runs/{run_id}/train.log"
    wait_for(lambda: "epoch 0 (1/" in docker("exec", name, "cat", log))
    docker("exec", name, "sh", "-c", "mv /usr/sbin/sshd /usr/sbin/sshd.away && pkill -9 -x sshd")
    fault.strikes()
    shown = clone.invoke("logs", "--on", "docker", code=1)
    assert "epoch 0 (1/" in shown
    assert "this is the console of" in shown
    docker("exec", name, "mv", "/usr/sbin/sshd.away", "/usr/sbin/sshd")
    wait_for(lambda: answers(name))
    fault.strikes()
    fault.told(lambda: clone.json("status", "--on", "docker")["state"] in ("running", "succeeded"))
    followed = clone.invoke("logs", "--on", "docker", "--follow")
    fault.log(followed.encode(), log_of(name, run_id))
    assert clone.json("status", "--on", "docker")["state"] == "succeeded"
    fault.checkpoints(copy_of(name, f"/workspace/sniperface/runs/{run_id}", tmp_path / "copy"))
    bills(clone, fault)


def test_tmux_is_killed_on_the_machine_and_the_job_is_not(clone: Clone, tmp_path: Path, fault: Fault) -> None:
    """After kill -9 of the tmux server, the supervisor continues as a child of the container's process 1."""
    run_id = clone.json("train", *ANEW)["run_id"]
    name = container(clone)
    log = f"/workspace/sniperface/runs/{run_id}/train.log"
    wait_for(lambda: "epoch 0 (1/" in docker("exec", name, "cat", log))
    docker("exec", name, "pkill", "-9", "-x", "tmux: server")
    fault.strikes()
    fault.told(lambda: clone.json("status", "--on", "docker")["state"] == "running")
    assert "runs without a terminal" in clone.invoke("attach", "--on", "docker", code=1)
    followed = clone.invoke("logs", "--on", "docker", "--follow")
    fault.log(followed.encode(), log_of(name, run_id))
    status = clone.json("status", "--on", "docker")
    assert (status["state"], status["attempt"]) == ("succeeded", 1)
    fault.checkpoints(copy_of(name, f"/workspace/sniperface/runs/{run_id}", tmp_path / "copy"))
    bills(clone, fault)


def answers(name: str) -> bool:
    return subprocess.run(["docker", "exec", name, "pgrep", "-x", "sshd"], capture_output=True).returncode == 0
