"""The benchmark for a machine with a GPU: it also runs to its end on a CPU, and no check can stop the others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.config import load
from benchmarks.gpu import candidates, kernels, steps
from benchmarks.gpu.__main__ import stretch
from benchmarks.gpu.menu import CHECKS
from benchmarks.gpu.report import Report
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.running import Check, Missing, run

PROJECT = Path(__file__).parents[2]


def fine(_: Rig) -> Iterator[dict[str, Any]]:
    yield {"images_per_s": 123.456}


def breaks(_: Rig) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    raise RuntimeError("the device is gone")


def lacks(_: Rig) -> Iterator[dict[str, Any]]:
    raise Missing("two GPUs")
    yield {}


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
        Check("in parts", hangs, 0.02, in_parts=True),
        Check("lacks", lacks, 5),
        Check("bare", fine, 5, needs=("no_such_module",)),
        Check("fine", fine, 5),
    ]
    assert run(checks, rig, report, limit_s=60) == 1
    records = json.loads(report.path.read_text())["records"]
    assert report.failed == ["breaks", "hangs"]
    assert {"check": "breaks", "first": 1} in records  # measured before the failure
    assert {"check": "lacks", "left_out": "needs two GPUs"} in records
    told = "the rest, after 0.2 s; --only in parts has more time"
    assert [each for each in records if each["check"] == "in parts"] == [
        {"check": "in parts", "first": 1}, {"check": "in parts", "left_out": told},
    ]  # fmt: skip
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


@pytest.mark.parametrize(
    ("apart", "times_as_fast", "kept"),
    [(0.0, 1.5, True), (0.1, 1.5, True), (0.11, 9.0, False), (0.0, 1.02, False), (float("nan"), 9.0, False)],
)
def test_a_candidate_is_kept_only_if_it_is_equal_and_faster(apart: float, times_as_fast: float, kept: bool) -> None:
    assert candidates.is_kept(apart, 0.1, times_as_fast) is kept


def test_a_candidate_that_cannot_run_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Rig) -> candidates.Pair:
        raise RuntimeError("no kernel image is available")

    some = {"broken": broken, "cuda_graphs": candidates.cuda_graphs, "clusters": candidates.clusters}
    monkeypatch.setattr(candidates, "CANDIDATES", some)
    told = {record["candidate"]: record for record in candidates.candidates(Rig(tmp_path, tmp_path, on_cpu=True))}
    assert "no kernel image" in told["broken"]["error"]
    assert told["cuda_graphs"]["left_out"].startswith("needs a GPU")
    assert told["clusters"]["equal"] is True
    assert "keep" not in told["clusters"]  # a CPU decides nothing


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("number", [0, 3])
def test_clustering_on_the_device_is_equal_to_the_loops(seed: int, number: int) -> None:
    """The coins, ties and one-way edges too, by the loops of app/mining/graph.py."""
    from app.mining.graph import sweep, weigh

    n, k = 400, 7
    ids, cosine = candidates.lists_of_people(n, k)
    labels = torch.arange(n, dtype=torch.int32) // 3
    weight, new, yes = np.zeros((n, k), np.uint16), labels.clone().numpy(), np.ones(n, bool)
    degree, group = np.full(n, k, np.int32), np.zeros(n, np.int32)
    lists = ids.numpy(), cosine.numpy(), 0, ids.numpy(), np.zeros(0, np.int32)
    weigh(*lists, degree, np.zeros(n, bool), group, 0.2, 0, weight, np.zeros(0, np.int32))
    sweep(ids.numpy(), degree, weight, 0, labels.numpy(), yes, yes.copy(), seed, number, new)
    assert np.array_equal(kernels.overlaps(ids, cosine, 0.2).numpy(), weight)
    assert 0 < np.count_nonzero(weight) < weight.size
    found = kernels.swept(ids, torch.from_numpy(weight.astype(np.int32)), labels, seed=seed, number=number)
    assert np.array_equal(found.numpy(), new)
    assert not np.array_equal(new, labels.numpy())


def test_peak_memory_is_compared_with_what_the_plan_says() -> None:
    config = load(["backbone=iresnet50", "train.batch.size=384", "train.precision=bf16"])
    half = steps.estimate(config, 1_219_995)
    assert half is not None
    assert 14 < half < 20  # GiB: tests/deploy/specs/test_memory.py says how it is made
    config.train.batch.size = 192
    assert (steps.estimate(config, 1_219_995) or 0) < half
    assert steps.estimate(load(["backbone.layers=[1,1]"]), 1) is None


def test_a_part_of_the_checks_gets_the_time_of_all() -> None:
    assert stretch([check for check in CHECKS if check.name == "candidates"], 540) > 5
    assert stretch(CHECKS, 540) == 1


@pytest.mark.slow
def test_every_check_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    """This takes a minute, and finds simple code errors before a check runs on a GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--cpu"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    records = json.loads((tmp_path / "gpu-cpu.json").read_text())["records"]
    assert [record["check"] for record in records if record.get("ok")] == [check.name for check in CHECKS]
    assert {record["check"] for record in records if "left_out" in record} <= {"candidates"}
    tried = [record for record in records if "candidate" in record]
    assert [record for record in tried if "left_out" not in record and not record.get("equal")] == []
