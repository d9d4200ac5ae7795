"""`train --sweep`, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.runs import records
from tests.deploy.conftest import Project, git, paced, wait_until
from tests.deploy.support.pods import ProcessPod
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.load import under_load

LR = ("--sweep", "train.optimizer.lr=0.03,0.1")


def test_each_value_is_a_run_of_its_own_and_the_best_is_marked(project: Project) -> None:
    """The document has a row for each run. The table says the same. No run is repeated, until --resume none says so."""
    told = project.json("train", *LR, "--set", "train.epochs=2")
    first, second = told["runs"]
    assert [run["settings"] for run in told["runs"]] == [{"train.optimizer.lr": "0.03"}, {"train.optimizer.lr": "0.1"}]
    assert [run["name"] for run in told["runs"]] == ["lr_0_03", "lr_0_1"]
    assert [run["state"] for run in told["runs"]] == ["succeeded", "succeeded"]
    assert [(round(run["accuracy"], 2), run["epoch"]) for run in told["runs"]] == [(0.83, 1), (0.9, 1)]
    assert (told["best"], told["measure"], second["best"], first["best"]) == (
        second["run_id"], "held-out people", True, False,
    )  # fmt: skip
    for run in told["runs"]:
        assert run["run_id"].startswith(f"{run['name']}-2")
        assert (project.path / "runs" / run["run_id"] / "checkpoints" / "epoch_001.pt").is_file()
        argv = json.loads((project.path / "runs" / run["run_id"] / "plan.json").read_text(encoding="utf-8"))["argv"]
        assert f"train.optimizer.lr={run['settings']['train.optimizer.lr']}" in argv

    again = project.invoke("train", *LR, "--set", "train.epochs=2").stdout
    assert "not started again: 2 of 2 runs" in again
    shown = again[again.index("\nSweep") :].splitlines()
    assert shown[2].split() == ["run", "lr", "accuracy", "time", "state"]
    assert shown[3].split()[:4] == [first["run_id"], "0.03", "83.0%", "(epoch"]
    assert "90.0% (epoch 1) best" in shown[4]
    assert f"fetch-checkpoint --run {second['run_id']} --which best" in again
    wider = project.json("train", "--sweep", "train.optimizer.lr=0.03,0.1,0.2", "--set", "train.epochs=2")
    assert [run["run_id"] for run in wider["runs"]][:2] == [first["run_id"], second["run_id"]]
    assert len(project.json("runs")) == 3
    anew = project.json("train", *LR, "--set", "train.epochs=2", "--resume", "none")
    assert len({run["run_id"] for run in [*told["runs"], *anew["runs"]]}) == 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sweep", "train.epochz=1,2"], ["train.epochz", "did you mean train.epochs"]),
        (["--sweep", "recipe=self_supervised,magic"], ["recipe magic is not known"]),
        (["--sweep", "train.epochs=1,"], ["--sweep train.epochs=1, has an empty value"]),
        (["--sweep", "train.epochs=1,2", "--set", "train.epochs=3"], ["set the same key"]),
        (["--sweep", "train.epochs=1,2", "--resume", "auto"], ["--resume auto continues one run"]),
        (["--sweep", "train.epochs=1,2", "--nodes", "2", "--detach"], ["leave --detach out, or give --nodes 1"]),
        (["--sweep", "backbone.name=tiny,'tiny'"], ["backbone.name=tiny and backbone.name='tiny' are the same"]),
    ],
)
def test_nothing_starts_if_one_combination_is_wrong(project: Project, flags: list[str], words: list[str]) -> None:
    """One sentence, exit code 2, no file changes: also if only the last combination is wrong."""
    before = project.files()
    done = project.invoke("train", *flags, "--json", code=2)
    assert done.stderr.count("\n") == 1
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    assert json.loads(done.stdout)["exit_code"] == 2
    assert project.files() == before


def test_a_dry_run_shows_one_plan_of_all_runs(project: Project) -> None:
    """It changes no file. The minutes of all runs are summed up, once a run was measured."""
    prepare(project.path / "data" / "orl" / "images.npy")
    before = project.files()
    said = project.invoke("train", *LR, "--sweep", "train.batch.size=8,16", "--dry-run").stdout
    assert "Plan of a sweep of 4 runs, one after the other" in said
    assert "expected minutes  unknown for all runs" in said
    assert [line.split() for line in said.splitlines() if "lr_0_1_size_16" in line] == [
        ["lr_0_1_size_16", "0.1", "16", "unknown"]
    ]
    assert project.files() == before
    project.invoke("train", "--set", "train.optimizer.lr=0.1")
    told = project.json("train", *LR, "--dry-run")
    minutes = [run["plan"]["expected_minutes"] for run in told["runs"]]
    assert [run["done_by"] for run in told["runs"]] == [None, None]  # a run by hand is no run of a sweep
    assert told["expected_minutes"] == pytest.approx(sum(minutes))
    assert (min(minutes) > 0, told["expected_usd"], told["usd_per_hour"]) == (True, 0, 0)


@pytest.mark.parametrize("state", ["clean", "excluded", "changed"])
def test_a_dry_run_recognises_what_is_done(project: Project, state: str) -> None:
    """Of committed code, of a target with `exclude:`, and of code that is not committed. No file changes."""
    if state == "excluded":
        target = project.path / "conf" / "deploy" / "local.yaml"
        target.write_text(target.read_text(encoding="utf-8") + "\nexclude: [docs/]\n", encoding="utf-8")
        (project.path / "docs").mkdir(exist_ok=True)
        (project.path / "docs" / "extra.md").write_text("extra\n", encoding="utf-8")
    if state != "clean":
        (project.path / "app" / "extra.py").write_text("", encoding="utf-8")
    if state == "excluded":
        git(project.path, "add", "--all")
        git(project.path, "commit", "--quiet", "-m", "with exclude")
    done = [run["run_id"] for run in project.json("train", *LR)["runs"]]
    before = project.files()
    wider = project.json("train", "--sweep", "train.optimizer.lr=0.03,0.1,0.2", "--dry-run")
    assert [run["done_by"] for run in wider["runs"]] == [*done, None]
    assert project.files() == before
    (project.path / "app" / "extra.py").write_text("# other code\n", encoding="utf-8")
    assert [run["done_by"] for run in project.json("train", *LR, "--dry-run")["runs"]] == [None, None]


def test_a_failed_combination_is_told_and_the_next_one_runs(project: Project) -> None:
    """The exit code is 1 at the end. Typed again, only the failed combination runs."""
    words = ("train", "--sweep", "train.manner=fails,wrong_use,good")
    done = project.invoke(*words, "--json", code=1)
    rows = json.loads(done.stdout)["runs"]
    assert [run["state"] for run in rows] == ["failed", "failed", "succeeded"]
    assert (rows[0]["accuracy"], rows[2]["best"]) == (None, True)
    assert f"error: run {rows[0]['run_id']} failed: the job ended with exit code 1" in done.stderr
    assert f"next: invoke train --resume auto --run {rows[0]['run_id']}" in done.stderr
    assert "the value does not work; give another" in done.stderr
    assert done.stderr.endswith("error: 2 of 3 runs did not succeed\n")
    again = json.loads(project.invoke(*words, "--json", code=1).stdout)["runs"]
    assert again[2]["run_id"] == rows[2]["run_id"]
    assert {again[0]["run_id"], again[1]["run_id"]}.isdisjoint({run["run_id"] for run in rows})


def started(project: Project) -> dict[str, Any]:
    """The newest run, once its job trains."""
    wait_until(lambda: list((project.path / "runs").glob("*/run.json")))
    wait_until(lambda: [run for run in project.json("runs") if run["state"] == "running"])
    run: dict[str, Any] = project.json("runs")[0]
    log = project.path / ".sniperface" / "local" / "runs" / run["run_id"] / "train.log"
    wait_until(lambda: log.exists() and b"step 1" in log.read_bytes())
    return run


SLOW = ("--set", "train.step_s=0.2", "--set", "train.epochs=500")


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX: sends SIGINT to one process")
def test_ctrl_c_ends_the_sweep_and_leaves_the_run_working(project: Project) -> None:
    """The next run is not started. A sweep typed again is refused as long as that run lives."""
    process = project.start("train", *LR, *SLOW, "--json")
    run = started(project)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=under_load(60))
    told = json.loads(out)
    assert (process.returncode, told["ended"]) == (130, "it was interrupted")
    assert [(each["run_id"], each["state"]) for each in told["runs"]] == [(run["run_id"], "running"), (None, None)]
    assert "the sweep ends: it was interrupted; 1 of 2 runs was not started" in err
    assert project.json("status")["state"] == "running"
    assert f"run {run['run_id']} is running" in project.invoke("train", *LR, *SLOW, code=2).stderr
    project.invoke("stop")
    assert [each["state"] for each in project.json("runs")] == ["stopped"]


def test_a_stopped_run_ends_the_sweep(project: Project) -> None:
    """`stop` in another terminal means the sweep. The combination that it continued is not run again."""
    process = project.start("train", *LR, *SLOW, "--json")
    run = started(project)
    project.invoke("stop")
    out, err = process.communicate(timeout=under_load(60))
    told = json.loads(out)
    assert (process.returncode, told["ended"]) == (1, "the run was stopped")
    assert [each["state"] for each in told["runs"]] == ["stopped", None]
    assert "error: 1 of 2 runs did not succeed; 1 of 2 runs was not started" in err
    assert [each["run_id"] for each in project.json("runs")] == [run["run_id"]]


def test_detached_runs_wait_in_the_queue_of_the_machine(project: Project) -> None:
    """The command ends at once. What waits or is done is not queued again. Later, the sweep has the results."""
    words = ("train", *LR, "--detach", "--set", "train.step_s=0.1", "--set", "train.epochs=10")
    told = project.json(*words)
    assert [run["state"] in ("running", "planned") for run in told["runs"]] == [True, True]
    again = project.json(*words)
    assert [run["run_id"] for run in again["runs"]] == [run["run_id"] for run in told["runs"]]
    wait_until(
        lambda: {project.json("status", "--run", run["run_id"])["state"] for run in told["runs"]} == {"succeeded"}
    )
    done = project.json(*words[:-5], "--set", "train.step_s=0.1", "--set", "train.epochs=10")
    assert [run["run_id"] for run in done["runs"]] == [run["run_id"] for run in told["runs"]]
    assert [(run["state"], round(run["accuracy"], 2)) for run in done["runs"]] == [
        ("succeeded", 0.83), ("succeeded", 0.9),
    ]  # fmt: skip


def test_a_sweep_after_a_lost_run_of_its_own_runs_what_is_left(project: Project) -> None:
    """The lost run is named with the command that continues it. `train` alone refuses to forget it."""
    told = project.json("train", *LR)["runs"]
    lost = told[1]["run_id"]
    shutil.rmtree(project.path / ".sniperface" / "local" / "runs" / lost)
    file = project.path / "runs" / lost / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "state": "running"}), encoding="utf-8")
    refused = project.invoke("train", code=2).stderr
    assert f"run {lost} was lost" in refused
    assert f"run {lost} was lost" in project.invoke("train", "--sweep", "train.epochs=1,2", code=2).stderr
    done = project.invoke("train", *LR, "--json")
    assert f"to continue it instead: invoke train --resume auto --run {lost}" in done.stderr
    again = json.loads(done.stdout)["runs"]
    assert again[0]["run_id"] == told[0]["run_id"]
    assert (again[1]["run_id"] != lost, again[1]["state"]) == (True, "succeeded")


def test_all_runs_train_with_the_code_that_was_there_at_the_start(project: Project) -> None:
    """What is saved between two runs does not reach the second. Typed again, the sweep runs anew: it is other code."""
    process = project.start("train", *LR, *paced(0.2, 2), "--json")
    started(project)
    file = project.path / "app" / "__init__.py"
    file.write_text(f"{file.read_text(encoding='utf-8')}# another line\n", encoding="utf-8")
    out, err = process.communicate(timeout=under_load(90))
    assert process.returncode == 0, err
    told = json.loads(out)
    plans = [records.carried_out(project.path / "runs", run["run_id"]) for run in told["runs"]]
    assert len({plan["snapshot"] for plan in plans}) == 1
    assert "not started again" not in project.invoke("train", *LR, "--set", "train.epochs=2").stdout
    assert len(project.json("runs")) == 4


class OurPod(ProcessPod):
    """A pod of our image, which names its Python, is a process behind a real SSH server."""

    def _start(self) -> None:
        self.env |= {"SNIPERFACE_PYTHON": sys.executable}
        super()._start()


@pytest.fixture
def account(project: Project, tmp_path: Path) -> Iterator[Emulator]:
    """The account behind a rented target `far`."""
    emulator = Emulator(pods=lambda pod: OurPod(pod, tmp_path / "pods", emulator.url))
    emulator.holds_streams = False
    target = {
        "provider": "runpod", "image": "me/x:1", "gpus": ["NVIDIA A40"], "root": str(tmp_path / "there"),
        "device": "cpu", "max_usd": 50, "max_hours": 72,
    }  # fmt: skip
    (project.path / "conf" / "deploy" / "far.yaml").write_text(json.dumps(target), encoding="utf-8")
    project.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY, "no_proxy": "*"}
    yield emulator
    project.invoke("down", "--on", "far", "--anyway")
    emulator.close()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX: the pod's programs start with /bin/sh")
def test_one_rented_machine_serves_all_runs_and_its_time_is_counted_once(project: Project, account: Emulator) -> None:
    """One question covers all runs, and nothing is rented without the answer. The limits are those of the machine."""
    words = ("train", "--on", "far", *LR, "--set", "train.epochs=1", "--set", "train.step_s=0.5")  # $0.0001 is 0.9 s
    refused = project.invoke(*words, code=2).stderr
    assert "these 2 runs cost $0.40 an hour, their duration is not known yet: give --yes to agree" in refused
    assert (account.names, (project.path / "runs").exists()) == ([], False)
    done = project.invoke(*words, "--yes", "--json")
    assert "max_hours 72 and max_usd 50: for the machine since its creation, so all runs on it share it" in done.stderr
    assert "release it with" not in done.stderr  # the machine waits for the next run, and is no orphan
    assert [pod.name.partition("-far-")[2][:7] for pod in account.account.all()] == ["lr_0_03"]
    told = json.loads(done.stdout)
    costs = [run["cost_usd"] for run in told["runs"]]
    assert (min(costs) > 0, told["cost_usd"]) == (True, pytest.approx(sum(costs)))
    records = [json.loads((project.path / "runs" / run["run_id"] / "run.json").read_text()) for run in told["runs"]]
    assert len({record["machine"] for record in records}) == 1
    assert sum(costs) == pytest.approx(max(sum(record["spend"].values()) for record in records))
    assert told["cost_usd"] == pytest.approx(project.json("cost")["spend_usd"])
