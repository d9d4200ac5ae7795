"""The benchmark for a machine with a GPU: it also runs to its end on a CPU, and no check can stop the others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.menu import CHECKS
from benchmarks.gpu.report import Report
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.running import Check, run

PROJECT = Path(__file__).parents[2]


def fine(_: Rig) -> Iterator[dict[str, Any]]:
    yield {"images_per_s": 123.456}


def breaks(_: Rig) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    raise RuntimeError("the device is gone")


def hangs(_: Rig) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    while True:
        time.sleep(0.01)  # never ends by itself: the budget ends it


def test_a_check_that_fails_hangs_or_cannot_run_does_not_stop_the_others(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tmp_path, on_cpu=True)
    report = Report(tmp_path / "gpu-cpu.json", rig.machine())
    checks = [
        Check("breaks", breaks, 5),
        Check("hangs", hangs, 0.02),
        Check("bare", fine, 5, needs=("no_such_module",)),
        Check("fine", fine, 5),
    ]
    assert run(checks, rig, report, limit_s=60) == 1
    records = json.loads(report.path.read_text())["records"]
    assert report.failed == ["breaks", "hangs"]
    assert {"check": "breaks", "first": 1} in records  # measured before the failure
    assert {"check": "bare", "left_out": "no_such_module is not installed"} in records
    assert {"check": "fine", "images_per_s": 123.5} in records


def test_checks_for_which_no_time_is_left_say_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tmp_path, on_cpu=True)
    report = Report(tmp_path / "gpu-cpu.json", rig.machine())
    assert run([Check("fine", fine, 5)], rig, report, limit_s=1) == 0
    assert report.records == [{"check": "fine", "left_out": "no time left of 1 s"}]


def test_the_budgets_add_up_to_nine_minutes_with_correctness_first() -> None:
    assert sum(check.budget_s for check in CHECKS) <= 600
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_the_command_runs_the_checks_that_are_asked_for(tmp_path: Path) -> None:
    """These checks are quick on a CPU; the slow test below runs all."""
    quick = ["rates", "contrastive", "search_is_exact", "search", "partial_fc"]
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--cpu", "--only", *quick]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    records = json.loads((tmp_path / "gpu-cpu.json").read_text())["records"]
    assert {record["check"] for record in records if record.get("ok")} == {*quick}
    assert [record for record in records if "left_out" in record or record.get("ok") is False] == []


@pytest.mark.slow
def test_every_check_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    """This takes a minute, and finds simple code errors before a check runs on a GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--cpu"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    records = json.loads((tmp_path / "gpu-cpu.json").read_text())["records"]
    assert [record["check"] for record in records if record.get("ok")] == [check.name for check in CHECKS]
