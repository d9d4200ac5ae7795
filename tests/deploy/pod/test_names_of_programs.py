"""Programs that the laptop starts on a machine by name, even if the two have different versions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.load import under_load

PROJECT = Path(__file__).parents[3]


def start(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", f"deploy.pod.{name}", str(folder)]
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=under_load(60), check=False)


def test_a_machine_without_runs_tells_how_it_stands(tmp_path: Path) -> None:
    done = start("standing", tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {"at_work": [], "guarded": False, "state": None, "decision": None, "only_copies": {}}


@pytest.mark.parametrize(("name", "needs"), [("guard", "guard.json"), ("supervisor", "plan.json")])
def test_a_program_that_misses_its_file_names_it(name: str, needs: str, tmp_path: Path) -> None:
    done = start(name, tmp_path)
    assert f"{needs} is missing or incomplete" in done.stdout + done.stderr
