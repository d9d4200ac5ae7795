"""A run on Lambda Cloud to its checkpoint: the API is emulated, the machine is a process with a real SSH server.

The machine has no key of the account. So it is this computer that releases it: `watch`, or the next command after the
guard has ended the work.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base.folder import read_json, write_json
from tests.e2e.clones import BARE, SMALL, Clone, make_clone, wait_for
from tests.e2e.test_machines import write_target
from tests.support.emulators.lambda_cloud import KEY, Emulator, ProcessVm
from tests.support.files import below, contents

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs the address 127.0.0.2: run it on Linux"),
]
ALONE = ("--env", "OMP_NUM_THREADS=1")  # one process with one thread, on cores that other tests use too
WORDS = ("--on", "lambda", "--yes", *ALONE, *(word for setting in (*SMALL, *BARE) for word in ("--set", setting)))


@dataclass
class Site:
    clone: Clone
    emulator: Emulator

    @property
    def vm(self) -> ProcessVm:
        [instance] = self.emulator.instances.values()
        assert isinstance(instance.vm, ProcessVm)
        return instance.vm

    def target(self, **values: Any) -> None:
        told = {"provider": "lambda", "root": "~/sniperface", "port": self.emulator.ssh_port, "device": "cpu"}
        write_target(self.clone, "lambda", **told, processes=1, **values)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux: apt-get install tmux")
    emulator = Emulator(machines=lambda instance, port: ProcessVm(instance, port, tmp_path / "machines"))
    clone = make_clone(tmp_path)
    clone.env = {"LAMBDA_API_BASE_URL": emulator.url, "LAMBDA_API_KEY": KEY, "no_proxy": "*"}
    made = Site(clone, emulator)
    made.target(idle_min=30, max_hours=2)
    try:
        yield made
    finally:
        emulator.close()
        subprocess.run(["tmux", "-L", clone.socket, "kill-server"], check=False, capture_output=True)
    assert emulator.breaches == []


def test_watch_brings_the_checkpoint_home_and_releases_the_machine(site: Site) -> None:
    clone, emulator = site.clone, site.emulator
    plan = clone.invoke("train", *WORDS, "--dry-run")
    assert "it bills until a command on this computer" in " ".join(plan.split())
    assert emulator.names == []
    [first, *_] = clone.json("offers", "--on", "lambda")
    assert (first["gpu"], first["usd_per_hour"], first["note"]) == ("gpu_1x_a10", 0.75, None)
    run_id = clone.json("train", *WORDS, "--set", "train.epochs=2", "--detach")["run_id"]
    [bill] = clone.json("ps")
    assert (bill["run"], bill["usd_per_hour"], bill["gpu"], bill["orphan"]) == (run_id, 0.75, "A10 (24 GB PCIe)", False)
    assert [path for path, content in contents(site.vm.home) if KEY.encode() in content] == []
    said = clone.invoke("watch", "--on", "lambda", "--run", run_id)
    assert f"released {bill['machine']}: it cannot release itself" in " ".join(said.split())
    assert emulator.names == []
    assert clone.json("ps") == []
    assert clone.json("status", "--run", run_id)["state"] == "succeeded"
    [checkpoint] = (clone.path / "runs" / run_id / "checkpoints").glob("epoch_001.pt")
    assert checkpoint.stat().st_size > 0


def test_after_its_guard_has_ended_the_work_the_next_command_releases_the_machine(site: Site) -> None:
    """Nobody watches. The guard stops the job at max_hours and can do no more; `status` downloads and releases."""
    clone = site.clone
    run_id = clone.json("train", *WORDS, "--set", "train.epochs=100000", "--detach")["run_id"]
    vm = site.vm
    wait_for(lambda: any(path.match("checkpoints/epoch_*.json") for path in below(vm.home)))
    limits = vm.home / "sniperface" / "guard.json"
    write_json(limits, {**read_json(limits), "max_hours": 0.001})
    guard = wait_for(lambda: (told := vm.status("guard-status.json")).get("state") == "stuck" and told)
    assert "max_hours 0.001 reached" in guard["decision"]
    assert "has no key to release itself" in guard["decision"]
    assert len(site.emulator.names) == 1
    clone.invoke("status", "--run", run_id)
    assert site.emulator.names == []
    assert list((clone.path / "runs" / run_id / "checkpoints").glob("epoch_*.pt"))
