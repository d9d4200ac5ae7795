"""`train --sweep --on a,b`: the runs of a sweep are divided between the machines of several targets."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base import processes
from tests.deploy.commands.test_sweep import OurPod
from tests.deploy.conftest import Project, wait_until
from tests.support.emulators.runpod import KEY, Emulator

FOUR = ("--sweep", "train.optimizer.lr=0.03,0.05,0.1,0.2", "--set", "train.epochs=2")
SLOW = ("--sweep", "train.optimizer.lr=0.03,0.1,0.2", "--set", "train.step_s=0.2", "--set", "train.epochs=50")


@pytest.fixture
def both(project: Project) -> Project:
    """A project with two targets, a and b: two folders of this computer, each a machine of its own to the launcher."""
    for name in "ab":
        target = {"provider": "local", "root": f".sniperface/{name}", "processes": 1}
        (project.path / "conf" / "deploy" / f"{name}.yaml").write_text(json.dumps(target), encoding="utf-8")
    return project


def on_disk(project: Project) -> list[dict[str, Any]]:
    """All recorded runs, oldest first."""
    files = (project.path / "runs").glob("*/run.json")
    return sorted((json.loads(file.read_text(encoding="utf-8")) for file in files), key=lambda run: run["created"])


def train_on_both(project: Project) -> list[dict[str, Any]]:
    """The first two runs, once both train."""

    def training() -> bool:
        logs = [
            project.path / ".sniperface" / run["target"] / "runs" / run["run_id"] / "train.log"
            for run in on_disk(project)
        ]
        return len(logs) == 2 and all(log.exists() and b"step 1" in log.read_bytes() for log in logs)

    wait_until(training, 60)
    return on_disk(project)


def test_both_machines_work_at_once_and_the_table_compares_all_runs(both: Project) -> None:
    """Each run is made once. Typed again, no run is repeated; one target finds only what ran on it."""
    done = both.invoke("train", "--on", "a,b", *FOUR, "--json")
    told = json.loads(done.stdout)
    assert [run["state"] for run in told["runs"]] == ["succeeded"] * 4
    assert (told["target"], {run["target"] for run in told["runs"]}) == ("a,b", {"a", "b"})
    assert [run["best"] for run in told["runs"]] == [False, False, True, False]
    runs = on_disk(both)
    assert [run["target"] for run in runs[:2]] == ["a", "b"]
    assert all((both.path / "runs" / run["run_id"] / "checkpoints" / "epoch_001.pt").is_file() for run in runs)
    assert "Plan of a sweep of 4 runs on 2 targets" in done.stderr

    again = both.invoke("train", "--on", "a,b", *FOUR).stdout
    assert "not started again: 4 of 4 runs" in again
    rows = again[again.index("\nSweep") :].splitlines()
    assert rows[2].split() == ["run", "lr", "on", "accuracy", "time", "state"]
    assert [row.split()[2] for row in rows[3:7]] == [run["target"] for run in told["runs"]]
    best = next(run for run in told["runs"] if run["best"])
    assert f"fetch-checkpoint --on {best['target']} --run {best['run_id']} --which best" in again
    assert len(on_disk(both)) == 4
    on_a = both.json("train", "--on", "a", *FOUR, "--dry-run")
    assert [bool(run["done_by"]) for run in on_a["runs"]] == [run["target"] == "a" for run in told["runs"]]


def test_a_dry_run_plans_each_run_on_each_target_and_changes_nothing(both: Project) -> None:
    before = both.files()
    done = both.invoke("train", "--on", "a,b", *FOUR, "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert [sorted(run["plans"]) for run in told["runs"]] == [["a", "b"]] * 4
    assert (told["expected_usd"], told["usd_per_hour"]) == (0, {"a": 0, "b": 0})
    assert "on a" in done.stderr
    assert "on b" in done.stderr
    assert both.files() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--on", "a,a", *FOUR], "target 'a' twice"),
        (["--on", "a,", *FOUR], "a target without a name"),
        (["--on", "a,nowhere", *FOUR], "unknown target 'nowhere'"),
        (["--on", "a,b", *FOUR, "--detach"], "leave --detach out, or give one target"),
        (["--on", "a,b", *FOUR, "--queue"], "leave --queue out, or give one target"),
        (["--on", "a,b"], "unknown target 'a,b'"),
        (["--on", "a,b", "--sweep", "train.epochz=1,2"], "did you mean train.epochs"),
    ],
)
def test_what_cannot_be_divided_is_refused(both: Project, flags: list[str], words: str) -> None:
    before = both.files()
    done = both.invoke("train", *flags, code=2)
    assert words in done.stderr
    assert both.files() == before


def test_a_machine_that_cannot_start_leaves_its_runs_to_the_other(both: Project) -> None:
    """It is told why, takes no more runs, and nothing is missing at the end."""
    (both.path / ".sniperface").mkdir(exist_ok=True)
    (both.path / ".sniperface" / "b").write_text("not a folder", encoding="utf-8")
    done = both.invoke("train", "--on", "a,b", *FOUR, "--json")
    told = json.loads(done.stdout)
    assert [(run["state"], run["target"]) for run in told["runs"]] == [("succeeded", "a")] * 4
    assert "b takes no more runs" in done.stderr
    assert [run["state"] for run in on_disk(both) if run["target"] == "b"] in ([], ["failed"], ["failed"] * 2)


def test_a_failed_run_is_told_and_both_go_on(both: Project) -> None:
    done = both.invoke("train", "--on", "a,b", "--sweep", "train.manner=fails,good,wrong_use", "--json", code=1)
    rows = json.loads(done.stdout)["runs"]
    assert [run["state"] for run in rows] == ["failed", "succeeded", "failed"]
    assert done.stderr.endswith("error: 2 of 3 runs did not succeed\n")
    assert len(on_disk(both)) == 3


def test_a_machine_that_loses_its_run_takes_no_more(both: Project) -> None:
    """The other makes what is left. The lost run is told; typed again, its combination is run anew."""
    process = both.start("train", "--on", "a,b", *SLOW, "--json")
    runs = train_on_both(both)
    folder = both.path / ".sniperface" / "b" / "runs" / runs[1]["run_id"]
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    for pid in (status["pid"], status["job_pid"]):
        processes.kill_tree(pid)
    shutil.rmtree(folder)
    wait_until(lambda: len(on_disk(both)) == 2 and on_disk(both)[1]["state"] == "lost", 60)
    both.invoke("stop", "--on", "a")
    out, err = process.communicate(timeout=90)
    told = json.loads(out)
    assert (process.returncode, [run["state"] for run in told["runs"]]) == (1, ["stopped", "lost", None])
    assert "b takes no more runs: the run was lost" in err
    assert told["ended"] == "a: the run was stopped; b: the run was lost"


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX: sends SIGINT to one process")
def test_ctrl_c_leaves_both_runs_working(both: Project) -> None:
    process = both.start("train", "--on", "a,b", *SLOW, "--json")
    runs = train_on_both(both)
    wait_until(lambda: [run["state"] for run in on_disk(both)] == ["running"] * 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    told = json.loads(out)
    assert (process.returncode, told["ended"]) == (130, "it was interrupted")
    assert [run["run_id"] for run in told["runs"]] == [runs[0]["run_id"], runs[1]["run_id"], None]
    assert "the sweep ends: it was interrupted; 1 of 3 runs was not started" in err
    for run in runs:
        assert both.json("status", "--run", run["run_id"])["state"] == "running"
        both.invoke("stop", "--run", run["run_id"])


@pytest.fixture
def account(project: Project, tmp_path: Path) -> Iterator[Emulator]:
    """The account behind two rented targets, far1 and far2."""
    emulator = Emulator(pods=lambda pod: OurPod(pod, tmp_path / "pods", emulator.url))
    emulator.holds_streams = False
    for name in ("far1", "far2"):
        target = {
            "provider": "runpod", "image": "me/x:1", "gpus": ["NVIDIA A40"], "root": str(tmp_path / name),
            "device": "cpu", "max_usd": 50, "max_hours": 72,
        }  # fmt: skip
        (project.path / "conf" / "deploy" / f"{name}.yaml").write_text(json.dumps(target), encoding="utf-8")
    project.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY, "no_proxy": "*"}
    yield emulator
    for name in ("far1", "far2"):
        project.invoke("down", "--on", name, "--anyway")
    emulator.close()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX: the pod's programs start with /bin/sh")
def test_rented_machines_are_agreed_to_once_and_one_that_vanishes_leaves_the_rest(
    project: Project, account: Emulator, tmp_path: Path
) -> None:
    """Nothing is rented without the answer. The run of a lost machine is lost, and its bill is known."""
    words = ("train", "--on", "far1,far2", "--sweep", "train.optimizer.lr=0.03,0.1,0.2")
    refused = project.invoke(*words, code=2).stderr
    assert "these 3 runs cost $0.40 an hour on far1 and $0.40 an hour on far2" in refused
    assert (account.names, (project.path / "runs").exists()) == ([], False)
    process = project.start(*words, "--set", "train.step_s=0.2", "--set", "train.epochs=8", "--yes", "--json")

    def both_train() -> bool:
        logs = [tmp_path / run["target"] / "runs" / run["run_id"] / "train.log" for run in on_disk(project)]
        return len(logs) == 2 and all(log.exists() and b"step 1" in log.read_bytes() for log in logs)

    wait_until(both_train, 90)
    wait_until(lambda: all(run.get("spend") for run in on_disk(project)))  # both were looked at
    gone = next(pod for pod in account.account.all() if "-far2-" in pod.name)
    account.account.terminate(gone.id)
    out, err = process.communicate(timeout=120)
    told = json.loads(out)
    assert process.returncode == 1, err
    assert [(run["target"], run["state"]) for run in told["runs"]] == [
        ("far1", "succeeded"), ("far2", "lost"), ("far1", "succeeded"),
    ]  # fmt: skip
    assert "far2 takes no more runs: the run was lost" in err
    assert "max_hours 72 and max_usd 50: for the machine since its creation" in err
    assert all(run["cost_usd"] > 0 for run in told["runs"])
    assert [pod.name.partition("sniperface-")[2].split("-")[1] for pod in account.account.all()] == ["far1"]
