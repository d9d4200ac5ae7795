"""Experiments that are made for several GPUs train on two ranks; see test_experiments.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.app.shadow.cases import Case, cases, check_resumed, check_steps
from tests.app.support.training import PROJECT
from tests.support.forks import run_training


@pytest.mark.parametrize("case", cases(ranks=2, slow=pytest.mark.slow))
def test_an_experiment_trains_on_two_ranks(case: Case, data: Path, tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    module = ["-m", "tests.app.shadow.tensor_cores"]

    def run(epochs: int) -> None:
        words = case.words(data, tmp_path / "run", epochs, ranks=2)
        done = run_training([*command, *module, *words], PROJECT, {**os.environ, "OMP_NUM_THREADS": "1"}, limit_s=600)
        assert done.returncode == 0, done.stderr[-2000:]

    run(epochs=1)
    first = check_steps(case, tmp_path / "run", epoch=0)
    run(epochs=2)
    check_resumed(case, tmp_path / "run", first)
