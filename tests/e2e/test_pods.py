"""Faults during a run on a rented machine: RunPod's API is emulated, its pods are real containers of our image.

The pods have their own key and reach the API, so they release themselves as real ones do. The laptop is off or its
connection cut, the API is down, or no pod is available: nothing is lost, and nothing bills unnoticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base.folder import read_json, write_json
from tests.deploy.support.proxy import Proxy, proxy
from tests.e2e.clones import BARE, SMALL, Clone, copy_of, ending, make_clone, wait_for
from tests.e2e.test_machines import cut_port, image_of_ours, log_of, write_target
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.emulators.runpod_pods import Container, gateway
from tests.support.emulators.runpod_state import Pod
from tests.support.faults import Fault
from tests.support.files import events
from tests.support.load import under_load

pytestmark = pytest.mark.slow
GPU = {"provider": "runpod", "gpus": ["NVIDIA A40"], "data_centers": ["EU-SE-1"], "root": "/workspace/sniperface"}
GPU |= {"device": "cpu", "processes": 1}  # an emulated pod has no GPU
ALONE = ("--env", "OMP_NUM_THREADS=1")  # one process with one thread: these faults are of the pod, not of its ranks
WORDS = ("--on", "runpod", "--detach", "--yes", *ALONE)
WORDS += tuple(word for setting in (*SMALL, *BARE) for word in ("--set", setting))
RUNS = "/workspace/sniperface/runs"
HOUR_S = 3600.0
# Cores of a pod while its run has to outlast what the test does to it: so few epochs are enough on any computer.
SLOW, FAST = 0.2, 1.0


@dataclass
class Site:
    """A clone with its own emulated account. `volume` outlives its pods."""

    clone: Clone
    emulator: Emulator
    volume: Path

    @property
    def machine(self) -> Container:
        machine = self.emulator.account.all()[0].machine
        assert isinstance(machine, Container)
        return machine

    @property
    def container(self) -> str:
        return self.machine.id

    @property
    def root(self) -> Path:
        """The machine's root folder, on the volume."""
        return self.volume / "sniperface"

    def target(self, **values: object) -> None:
        write_target(self.clone, "runpod", **{**GPU, "stage_to": "/dev/shm", "image": "me/sniperface:1", **values})

    def bills(self, fault: Fault) -> None:
        fault.machines(self.clone.json("ps"), self.emulator.names)

    def guard(self) -> dict[str, Any]:
        return read_json(self.root / "guard-status.json")

    def limits(self, **changed: object) -> None:
        """Change limits of the guard, as the laptop does."""
        write_json(self.root / "guard.json", {**read_json(self.root / "guard.json"), **changed})


class Moving(Container):
    """A pod behind a proxy, whose public port can change."""

    def __init__(self, pod: Pod, image: str, given: dict[str, str], lines: contextlib.ExitStack) -> None:
        super().__init__(pod, image, given)
        self.lines = lines
        self.line = self._new_line()

    def address(self) -> tuple[str, int] | None:
        return "127.0.0.1", self.line.port

    def move(self) -> None:
        before, self.line = self.line, self._new_line()
        before.refuse()
        before.drop()

    def _new_line(self) -> Proxy:
        inside = super().address()
        assert inside
        return self.lines.enter_context(proxy(inside[1]))


def _site(folder: Path, emulator: Emulator) -> Iterator[Site]:
    clone = make_clone(folder)
    clone.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY}
    volume = folder / "volume"
    volume.mkdir()
    emulator.volume("vol1", "EU-SE-1", volume)
    site = Site(clone, emulator, volume)
    site.target()
    with contextlib.closing(emulator):
        yield site
        assert breaches(emulator) == []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    reference = image_of_ours()
    yield from _site(tmp_path, Emulator(pods="docker", image=reference, host=gateway()))


@pytest.fixture
def moving_site(tmp_path: Path) -> Iterator[Site]:
    reference = image_of_ours()
    with contextlib.ExitStack() as lines:
        emulator = Emulator(pods=lambda pod: Moving(pod, reference, emulator.given_to_pods, lines), host=gateway())
        yield from _site(tmp_path, emulator)


def test_a_log_is_followed_over_a_cut_and_to_another_port(moving_site: Site, tmp_path: Path, fault: Fault) -> None:
    """The connection is cut for five seconds. Then the pod has another port, and the old one refuses."""
    site, clone = moving_site, moving_site.clone
    run_id = clone.json("train", *WORDS, "--set", "train.epochs=24")["run_id"]
    pod = site.machine
    assert isinstance(pod, Moving)
    printed = tmp_path / "printed"
    with printed.open("wb") as out:
        following = subprocess.Popen(
            [sys.executable, "-m", "invoke", "logs", "--follow", "--on", "runpod"],
            cwd=clone.path, env={**os.environ, **clone.env, "PYTHONUTF8": "1"}, stdout=out, stderr=subprocess.PIPE,
        )  # fmt: skip
    with ending(following):
        wait_for(lambda: b"epoch 1 (2/" in printed.read_bytes())
        pod.limit(SLOW)
        fault.strikes()
        pod.line.cut()
        cut_at = time.monotonic()
        wait_for(lambda: time.monotonic() - cut_at > 5)
        pod.line.restore()
        fault.told(lambda: clone.json("status", "--on", "runpod")["state"] == "running")
        seen = printed.stat().st_size
        wait_for(lambda: printed.stat().st_size > seen)
        fault.strikes()
        pod.move()
        fault.told(lambda: clone.json("status", "--on", "runpod")["state"] == "running")
        pod.limit(FAST)
        _, complaint = following.communicate(timeout=under_load(240))
    assert following.returncode == 0, complaint
    assert b"connected again" in complaint
    fault.log(printed.read_bytes(), log_of(site.container, run_id))
    assert clone.json("status", "--on", "runpod")["state"] == "succeeded"
    fault.checkpoints(copy_of(site.container, f"{RUNS}/{run_id}", tmp_path / "copy"))
    site.bills(fault)


def test_a_pod_that_vanishes_is_replaced_once_there_is_room(site: Site, fault: Fault) -> None:
    """The pod vanishes during an epoch while the API is down. Then there is no room, then a creation gets no answer."""
    clone, emulator = site.clone, site.emulator
    run_id = clone.json("train", *WORDS, "--set", "train.batch.size=10", "--set", "train.epochs=20")["run_id"]
    site.machine.limit(2 * SLOW)
    before, began = len(emulator.exchanges), time.monotonic()
    with ending(clone.start("watch", "--on", "runpod", "--run", run_id)) as watching:
        home = clone.path / "runs" / run_id
        wait_for(lambda: list((home / "checkpoints").glob("epoch_*.json")))
        first, container = emulator.account.all()[0], site.container
        seen = wait_for(lambda: halfway(container, run_id))
        assert len(emulator.exchanges) - before <= 3 + (time.monotonic() - began) / 4  # at most 15 calls a minute
        emulator.down()
        fault.strikes()
        first.vanishes = 0.0
        emulator.account.all()
        fault.told(lambda: "RunPod's API does not answer" in clone.invoke("status", "--on", "runpod", code=3))
        emulator.no_room(1)
        emulator.down(False)
        fault.strikes()
        fault.told(lambda: clone.json("status", "--on", "runpod")["state"] in ("lost", "acquiring"))
        wait_for(lambda: not emulator.account.refusals)
        fault.strikes()
        emulator.fail("done-cut", "^POST /v2/pods$")
        said, complaint = watching.communicate(timeout=under_load(240))
    assert watching.returncode == 0, said + complaint
    assert "no machine for target 'runpod' now" in said
    assert said.splitlines()[-1].endswith("succeeded"), said
    assert [pod.id for pod in emulator.account.all()] == ["pod0002"]
    starts = [event["step"] for event in events(home) if event["event"] == "start"]
    assert 0 < starts[-1] <= seen
    fault.checkpoints(home)
    assert next((home / "checkpoints").glob("epoch_019.pt"))
    site.bills(fault)


def halfway(container: str, run_id: str) -> int | None:
    """Return the run's step if it is in the middle of an epoch of 30 steps, else None."""
    words = ["docker", "exec", container, "tail", "-n", "2", f"{RUNS}/{run_id}/metrics.jsonl"]
    done = subprocess.run(words, capture_output=True, check=True).stdout
    last = json.loads(done[: done.rindex(b"\n")].splitlines()[-1])  # half a line may follow
    return last["step"] if last["event"] == "step" and 9 <= last["step"] % 30 <= 21 else None


def test_a_ceiling_fires_with_the_laptop_gone_and_the_api_away(site: Site, fault: Fault) -> None:
    """The connection to the pod is cut. Its job ends with a checkpoint.

    The guard reports that the release fails, and retries until it succeeds.
    """
    site.target(volume="vol1", max_hours=48)
    run_id = site.clone.json("train", *WORDS, "--set", "train.epochs=4000")["run_id"]
    run, container = site.root / "runs" / run_id, site.container
    wait_for(lambda: list((run / "checkpoints").glob("epoch_*.json")))
    with cut_port(container):
        site.emulator.down()
        fault.strikes()
        site.limits(paid_since=time.time() - 49 * HOUR_S, retry_s=1)  # two days have passed
        fault.told(lambda: site.guard()["state"] == "ending" or read_json(run / "status.json")["state"] == "expired")
        wait_for(lambda: site.guard()["state"] == "stuck")
        assert "max_hours 48 reached" in site.guard()["decision"]
        fault.guard(site.guard())
        assert read_json(run / "status.json")["state"] == "expired"
        busy = subprocess.run(["docker", "exec", container, "pgrep", "-f", "app.train"], capture_output=True)
        assert busy.stdout == b""
        site.emulator.down(False)
        wait_for(lambda: site.emulator.names == [])
    fault.strikes()
    fault.checkpoints(run)
    fault.told(lambda: site.clone.json("status", "--on", "runpod")["state"] == "lost")
    site.bills(fault)


def test_a_pod_that_nobody_needs_gives_itself_back(site: Site, fault: Fault) -> None:
    """The run has ended, and the laptop is off."""
    idle_min = 0.1
    site.target(volume="vol1", idle_min=20)
    run_id = site.clone.json("train", *WORDS, "--set", "train.epochs=10")["run_id"]
    run, pod = site.root / "runs" / run_id, site.emulator.account.all()[0]
    site.limits(idle_min=idle_min)
    fault.strikes()
    ended = wait_for(lambda: read_json(run / "status.json").get("ended"))
    wait_for(lambda: site.emulator.names == [])
    fault.orphan(time.time() - ended, idle_min)
    fault.strikes()
    fault.told(lambda: site.clone.json("status", "--on", "runpod")["state"] == "lost")
    fault.checkpoints(run)
    site.bills(fault)
    assert pod.id in [each.id for each in site.emulator.account.ended]


def test_the_api_is_away_when_a_machine_is_to_be_given_back(site: Site, fault: Fault) -> None:
    """`down` reports that the API does not answer. A later `down` retries a broken request until it succeeds."""
    site.clone.json("deploy", "--on", "runpod")
    fault.strikes()
    site.emulator.down()
    fault.told(lambda: "RunPod's API does not answer" in site.clone.invoke("down", "--on", "runpod", code=3))
    site.emulator.down(False)
    site.bills(fault)
    site.emulator.fail("cut", "^DELETE", times=2)
    site.clone.invoke("down", "--on", "runpod")
    site.bills(fault)
    assert site.emulator.names == []
    fault.leaves_out(checkpoints="nothing was trained")


def test_a_pod_whose_gpu_cannot_be_used_never_trains_on_its_cpu(site: Site) -> None:
    """The pod's Python is queried before anything is uploaded. The pod is released, and the error has the reason."""
    site.target(device="auto", gpus=["NVIDIA A40", "NVIDIA RTX A4500"], data_centers=["EU-SE-1", "EU-RO-1"])
    complaint = site.clone.invoke("train", *WORDS, code=3)
    assert complaint.count("1 GPU is paid for and torch can use 0") >= 2  # one per candidate
    assert site.emulator.names == []
    assert [each["volume"] for each in site.clone.json("ps")] == ["vol1 (vol1, EU-SE-1)"]  # it existed before
