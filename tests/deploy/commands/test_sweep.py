"""`train --sweep`, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.deploy.conftest import Project, wait_until

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
