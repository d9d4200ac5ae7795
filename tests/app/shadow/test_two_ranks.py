"""Experiments that are made for several GPUs train on two ranks; see test_experiments.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.shadow.cases import Case, cases, check_resumed, check_steps
from tests.app.support.training import PROJECT


@pytest.mark.parametrize("case", cases(ranks=2))
def test_an_experiment_trains_on_two_ranks(case: Case, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    module = ["-m", "tests.app.shadow.tensor_cores"]

    def run(epochs: int) -> None:
        words = case.words(data, tmp_path / "run", epochs, ranks=2)
        done = subprocess.run(
            [*command, *module, *words], cwd=PROJECT, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    run(epochs=1)
    check_steps(case, tmp_path / "run", epoch=0)
    run(epochs=2)
    check_resumed(case, tmp_path / "run")
