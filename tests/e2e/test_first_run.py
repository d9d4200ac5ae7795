"""End to end without stubs: a fresh copy of the project, real photographs, real training, real tmux.

The backbone is tiny, so that a run takes seconds; everything else is as for a user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.clones import SMALL, Clone, make_clone, wait_for
from tests.e2e.test_machines import write_target
from tests.support.faults import Fault
from tests.support.files import events

pytestmark = pytest.mark.slow
SHORT = ("--set", "train.epochs=16", "--set", "mining.every_epochs=4")
UNREPORTED = ("--set", "run.report=false")
ALONE = ("--on", "alone", "--env", "OMP_NUM_THREADS=1")  # one process, where the number of them does not matter


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux: apt-get install tmux, or brew install tmux")
    here = make_clone(tmp_path_factory.mktemp("a user"))
    here.as_a_user = True
    # Now, as each target is part of the code: in a new snapshot, numba compiles the clustering anew in each process.
    write_target(here, "alone", provider="local", root=".sniperface/local", processes=1)
    write_target(here, "small", provider="local", root=".sniperface/small")
    yield here
    subprocess.run(["tmux", "-L", here.socket, "kill-server"], check=False, capture_output=True)


@pytest.fixture(scope="module")
def finished(clone: Clone) -> Any:
    """The JSON output of a run without a fault."""
    return clone.train(*SHORT)


def live(clone: Clone, run_id: str) -> Path:
    return clone.path / ".sniperface" / "local" / "runs" / run_id


def reached(folder: Path, event: str, step: int) -> bool:
    return any(e["event"] == event and e["step"] >= step for e in events(folder))


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["modules"]


def assert_equal_bits(a: str | Path, b: str | Path) -> None:
    first, second = weights(a), weights(b)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_one_command_brings_a_trained_checkpoint_home(clone: Clone, finished: dict[str, Any]) -> None:
    assert (finished["state"], finished["fraction"]) == ("succeeded", 1.0)
    checkpoint = finished["checkpoint"]
    assert hashlib.sha256(Path(checkpoint["path"]).read_bytes()).hexdigest() == checkpoint["sha256"]
    assert (checkpoint["epoch"], checkpoint["step"]) == (15, 80)
    assert Path(checkpoint["path"]).is_relative_to(clone.path / "runs" / finished["run_id"])
    for what in ("pixels", "untrained", "trained"):
        assert 0.5 < finished["eval"][what]["accuracy"] < 1
        assert 0.5 < finished["eval"][what]["rank1"] <= 1
    assert finished["pseudo_ids"]["count"] > 5
    assert finished["pseudo_ids"]["purity"] > 0.7
    home = {path.name for path in (clone.path / "runs" / finished["run_id"]).iterdir()}
    names = {"plan.json", "run.json", "config.yaml", "train.log", "status.json", "metrics.jsonl", "checkpoints"}
    assert names | {"report.html", "verification.json"} <= home
    assert finished["report"] == str(clone.path / "runs" / finished["run_id"] / "report.html")
    assert list((clone.path / "runs" / finished["run_id"] / "mining").glob("epoch_*.png"))


def test_the_other_commands_answer_about_a_run_that_is_over(clone: Clone, finished: dict[str, Any]) -> None:
    status = clone.status()
    keys = {"run_id", "state", "attempt", "epoch", "step", "images_per_s", "heartbeat_age_s", "spend_usd", "reason"}
    assert keys <= status.keys()
    assert (status["run_id"], status["state"], status["spend_usd"]) == (finished["run_id"], "succeeded", 0)
    assert [run["run_id"] for run in clone.json("runs")] == [finished["run_id"]]
    log = clone.invoke("logs")
    assert log == (clone.path / "runs" / finished["run_id"] / "train.log").read_text()
    assert clone.invoke("logs", "--follow") == log
    fetched = clone.json("fetch-checkpoint", "--which", "12")
    assert fetched["epoch"] == 12
    assert hashlib.sha256(Path(fetched["path"]).read_bytes()).hexdigest() == fetched["sha256"]
    clone.invoke("stop")  # stopping a finished run succeeds


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(clone: Clone, finished: dict[str, Any]) -> None:
    run_id = clone.train(*SHORT, *UNREPORTED, "--detach")["run_id"]
    folder = live(clone, run_id)
    wait_for(lambda: reached(folder, "step", 7))
    for pid in ranks(folder):
        os.kill(pid, signal.SIGSTOP)  # on a busy computer the run may end before two commands do
    refused = clone.invoke("train", code=2)
    assert run_id in refused
    for pid in ranks(folder):
        os.kill(pid, signal.SIGCONT)
    stopped = clone.json("stop")
    assert (stopped["run_id"], stopped["state"]) == (run_id, "stopped"), stopped
    assert 7 <= stopped["checkpoint"]["step"] < 80
    resumed = clone.json("train", "--resume", "auto")
    assert (resumed["run_id"], resumed["state"], resumed["checkpoint"]["step"]) == (run_id, "succeeded", 80)
    assert clone.status()["attempt"] == 2
    starts = [e for e in events(folder) if e["event"] == "start"]
    assert [start["step"] for start in starts] == [0, stopped["checkpoint"]["step"]]
    assert_equal_bits(finished["checkpoint"]["path"], resumed["checkpoint"]["path"])


def test_whatever_is_killed_the_status_is_true_and_the_run_goes_on_to_the_same_bits(
    clone: Clone, finished: dict[str, Any], fault: Fault
) -> None:
    run_id = clone.train(*SHORT, *UNREPORTED, "--detach")["run_id"]
    folder = live(clone, run_id)
    for restarts, (victim, step) in enumerate((("rank", 10), ("torchrun", 20)), start=1):
        wait_for(lambda step=step: reached(folder, "checkpoint", step))
        kill(folder, victim)
        fault.strikes()
        fault.told(lambda restarts=restarts: told(folder)["restarts"] == restarts)
        assert "starting again from" in told(folder)["last_crash"]["reason"]
    wait_for(lambda: reached(folder, "checkpoint", 40))
    kill(folder, "supervisor")
    fault.strikes()
    fault.told(lambda: clone.status()["state"] == "lost")
    assert clone.status()["reason"]
    assert clone.json("train", "--resume", "auto", "--detach")["run_id"] == run_id
    wait_for(lambda: clone.status()["state"] == "succeeded")
    fetched = clone.json("fetch-checkpoint")
    assert clone.status()["attempt"] == 2
    assert fetched["step"] == 80
    starts = [event["step"] for event in events(folder) if event["event"] == "start"]
    assert len(starts) == 4
    assert starts == sorted(set(starts))  # each start resumed at a later step than the one before
    assert_equal_bits(finished["checkpoint"]["path"], fetched["path"])
    fault.checkpoints(folder, clone.path / "runs" / run_id)
    fault.machines(clone.json("ps"), [])


@pytest.fixture
def small_disk(clone: Clone) -> Iterator[Path]:
    """A target `small` on this computer, whose runs are on a disk of 48 MiB."""
    root = clone.path / ".sniperface" / "small"
    (root / "runs").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(root / "runs")]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount: run this as root on Linux")
    (root / "code").symlink_to(clone.path / ".sniperface" / "local" / "code")
    yield root / "runs"
    subprocess.run(["umount", "--lazy", str(root / "runs")], check=True)


def test_a_disk_that_fills_up_ends_a_run_with_its_checkpoints_whole(
    clone: Clone, finished: dict[str, Any], small_disk: Path, fault: Fault
) -> None:
    """The reason or the end of the log names the full disk. Once there is room, the run resumes."""
    run_id = clone.train(*SHORT, *UNREPORTED, "--on", "small", "--detach")["run_id"]
    folder = small_disk / run_id
    wait_for(lambda: reached(folder, "checkpoint", 10))
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    fault.strikes()
    fault.told(lambda: told(folder)["last_crash"] or told(folder)["state"] == "failed")
    wait_for(lambda: clone.json("status", "--on", "small")["state"] == "failed")
    said = told(folder)
    assert "MiB are free" in said["reason"] or "no space left on the disk" in said["evidence"][-1], said
    fault.checkpoints(folder)
    fault.machines(clone.json("ps"), [])
    (small_disk / "filler").unlink()
    resumed = clone.json("train", "--on", "small", "--resume", "auto")
    assert_equal_bits(finished["checkpoint"]["path"], resumed["checkpoint"]["path"])


def told(folder: Path) -> dict[str, Any]:
    """Return the content of status.json."""
    return json.loads((folder / "status.json").read_text())


def ranks(folder: Path) -> list[int]:
    """Return the processes of the run that train."""
    job = wait_for(lambda: told(folder)["job_pid"])
    found = subprocess.run(["pgrep", "-P", str(job)], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in found.split()]


def kill(folder: Path, victim: str) -> None:
    """Send SIGKILL to one process of the run."""
    rank, said = ranks(folder)[-1], told(folder)
    pid = {"supervisor": said["pid"], "torchrun": said["job_pid"], "rank": rank}[victim]
    os.kill(pid, signal.SIGKILL)


def test_a_checkpoint_of_partial_data_never_replaces_one_of_full_data(
    clone: Clone, finished: dict[str, Any], tmp_path: Path
) -> None:
    mine = tmp_path / "face.pt"
    clone.invoke("fetch-checkpoint", "--run", finished["run_id"], "--to", str(mine))
    before = mine.read_bytes()
    partial = clone.train(*ALONE, "--fraction", "0.2", "--set", "train.epochs=1")
    assert partial["fraction"] == 0.2
    start = next(e for e in events(live(clone, partial["run_id"])) if e["event"] == "start")
    assert start["train_rows"] == 60
    refused = clone.invoke("fetch-checkpoint", "--on", "alone", "--to", str(mine), code=2)
    assert "0.2" in refused
    assert mine.read_bytes() == before
    assert json.loads(mine.with_suffix(".json").read_text())["fraction"] == 1.0


def test_the_users_own_checkpoint_starts_a_new_run_or_is_refused_in_a_sentence(
    clone: Clone, finished: dict[str, Any], tmp_path: Path
) -> None:
    path = finished["checkpoint"]["path"]
    longer = clone.train(*ALONE, "--resume", path, "--set", "train.epochs=17")
    assert longer["run_id"] != finished["run_id"]
    assert longer["checkpoint"]["step"] == 90  # ten updates of one process: half as many images in each
    before = len(clone.json("runs"))
    small = [word for setting in SMALL for word in ("--set", setting)]
    misfit = clone.invoke("train", *small, "--set", "backbone.width=16", "--resume", path, code=2)
    assert "width" in misfit or "backbone" in misfit
    broken = tmp_path / "broken.pt"
    broken.write_bytes(Path(path).read_bytes()[:-200])
    assert "broken.pt" in clone.invoke("train", *small, "--resume", str(broken), code=2)
    assert len(clone.json("runs")) == before


def test_pseudo_ids_of_one_recipe_are_the_labels_of_the_other(clone: Clone, finished: dict[str, Any]) -> None:
    """Pseudo-IDs that are mined without labels train a margin head. Its checkpoint is evaluated and exported."""
    clone.invoke("mine", "--run", finished["run_id"])
    (mined,) = (clone.path / "runs" / finished["run_id"] / "mining").glob("epoch_*/pseudo_ids.npy")
    words = ["--recipe", "supervised", "--labels", str(mined), "--data", "data/orl", "--set", "train.epochs=8"]
    sized = [word for setting in SMALL[:4] for word in ("--set", setting)]
    learnt = clone.json("train", *ALONE, *words, *sized)
    assert learnt["state"] == "succeeded"
    start = next(e for e in events(live(clone, learnt["run_id"])) if e["event"] == "start")
    assert 100 < start["train_rows"] <= 300  # images without a pseudo-ID are left out
    losses = [e["loss"] for e in events(live(clone, learnt["run_id"])) if e["event"] == "epoch"]
    assert losses[-1] < losses[0]
    assert "epoch_007" in clone.invoke("evaluate", "--run", learnt["run_id"], "--which", "latest")
    folder = clone.path / "runs" / learnt["run_id"]
    assert json.loads((folder / "evaluation" / "eval.json").read_text())
    clone.invoke("export", "--run", learnt["run_id"])
    assert (folder / "epoch_007.onnx").stat().st_size > 10_000
