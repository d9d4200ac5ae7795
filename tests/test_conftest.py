"""Test conftest.py from outside: run a separate pytest on small test files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONGEST, LONGEST_SLOW

PROJECT = Path(__file__).parents[1]
SKIPS = """\
import pytest

@pytest.mark.slow
def test_slow(): pass
def test_fast(): pass
@pytest.mark.skip(reason="needs tmux: apt-get install tmux")
def test_installable(): pass
@pytest.mark.skip(reason="needs a GPU")
def test_not_installable(): pass
@pytest.mark.xfail(reason="known")
def test_known(): raise AssertionError
"""
MODULE_SKIP = "import pytest\npytest.skip('needs sshd: apt-get install openssh-server', allow_module_level=True)\n"


def run_pytest(folder: Path, ci: str, **more: str) -> tuple[int, str]:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n slow\n fault\n", encoding="utf-8")
    alone = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PYTEST_XDIST") and key not in ("SNIPERFACE_NO_ENGINE", "SNIPERFACE_FAULTS")
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-v", "-rA", str(folder)],
        cwd=folder,
        env={**alone, "CI": ci, "PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_in_ci_a_skip_for_want_of_something_installable_is_a_failure(tmp_path: Path, ci: str, code: int) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPS, encoding="utf-8")
    returncode, out = run_pytest(tmp_path, ci)
    assert returncode == code
    assert "1 xfailed" in out
    assert ("should have installed it: needs tmux" in out) == bool(ci)
    assert out.index("test_fast PASSED") < out.index("test_slow PASSED")


@pytest.mark.parametrize("start", sorted({*LONGEST, *LONGEST_SLOW}))
def test_what_starts_first_exists(start: str) -> None:
    assert list(PROJECT.glob(f"{start}*"))


def test_files_without_a_slow_test_are_not_imported_for_slow_tests(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SKIPS, encoding="utf-8")
    (tmp_path / "test_none.py").write_text("raise AssertionError\n", encoding="utf-8")
    returncode, out = run_pytest(tmp_path, "", PYTEST_ADDOPTS="-m slow")
    assert returncode == 0, out
    assert "1 passed, 4 deselected" in out


def test_a_mark_that_stands_in_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "marks.py").write_text("import pytest\nlong = pytest.mark.slow\n", encoding="utf-8")
    (tmp_path / "test_it.py").write_text("from marks import long\n\n@long\ndef test_it(): pass\n", encoding="utf-8")
    returncode, out = run_pytest(tmp_path, "")
    assert returncode == 4
    assert "name mark.slow in this file" in out


def test_in_ci_a_whole_file_may_not_be_skipped_either(tmp_path: Path) -> None:
    (tmp_path / "test_module.py").write_text(MODULE_SKIP, encoding="utf-8")
    assert run_pytest(tmp_path, "true")[0] != 0


NEEDS_DOCKER = """\
import pytest

def test_container(): pytest.skip("needs Docker: start dockerd, and let this user reach it")
"""


@pytest.mark.parametrize(("why", "code"), [("", 1), ("the kernel makes no containers", 0)])
def test_in_ci_a_missing_engine_is_a_failure_unless_there_can_be_none(tmp_path: Path, why: str, code: int) -> None:
    (tmp_path / "test_container.py").write_text(NEEDS_DOCKER)
    returncode, out = run_pytest(tmp_path, "true", SNIPERFACE_NO_ENGINE=why)
    assert returncode == code, out
    assert ("should have installed it: needs Docker" in out) == bool(code)


@pytest.mark.parametrize(
    ("user", "programs", "code", "words"),
    [
        (0, {"docker": 0}, 0, ""),
        (0, {"docker": 1, "dockerd": 1, "unshare": 0}, 1, "dockerd does not start, though the kernel could"),
        (0, {"docker": 1, "dockerd": 1, "unshare": 1}, 0, "the kernel does not let this machine make containers"),
        (0, {"docker": 1}, 0, "dockerd is not installed"),
        (7, {"docker": 1, "dockerd": 1}, 0, "only root can start one"),
    ],
    ids=["answers", "broken", "impossible", "not-installed", "not-root"],
)
@pytest.mark.skipif(os.name == "nt", reason="needs bash: CI runs on Linux or macOS")
def test_ci_says_when_there_can_be_no_engine(
    tmp_path: Path, user: int, programs: dict[str, int], code: int, words: str
) -> None:
    """Run .ci/engine on all kinds of machines, simulated by the exit codes of fake programs."""
    for name in ("bash", "seq", "sleep", "tail", "setsid"):
        found = shutil.which(name)
        if found is None:
            pytest.skip("needs setsid: run on Linux")
        (tmp_path / name).symlink_to(found)
    for name, ends_with in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {ends_with}\n")
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    for name in (*programs, "id"):
        (tmp_path / name).chmod(0o755)
    script = '. .ci/engine; start_engine; code=$?; echo "code $code: ${SNIPERFACE_NO_ENGINE-}"'
    done = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert f"code {code}: " in done.stdout
    assert words in done.stdout
    assert ("NO DOCKER ENGINE" in done.stdout) == (code == 0 and bool(words))


FAULTS = """\
from pathlib import Path

def test_shown(fault):
    fault.strikes()
    fault.told(lambda: True)
    fault.leaves_out(checkpoints="none", machines="none")
def test_forgetful(fault):
    fault.strikes()
    fault.told(lambda: True)
def test_damaged(fault, tmp_path):
    fault.strikes()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch_000.pt").write_bytes(b"half")
    fault.checkpoints(tmp_path)
def test_hidden(fault):
    fault.strikes()
    fault.machines([], ["a-machine"])
def test_other(): pass
"""


def test_a_test_of_a_fault_shows_everything_and_is_recorded(tmp_path: Path) -> None:
    """A test that omits a part, or finds damage, fails; `-m fault` selects these tests."""
    (tmp_path / "test_faults.py").write_text(FAULTS)
    record = tmp_path / "faults.jsonl"
    returncode, out = run_pytest(tmp_path, "", SNIPERFACE_FAULTS=str(record), PYTEST_ADDOPTS="-m fault")
    assert returncode == 1
    assert "1 deselected" in out
    assert "shows or leaves out, with a reason, also: checkpoints, machines" in out
    found = {line["test"].split("::")[1]: line for line in map(json.loads, record.read_text().splitlines())}
    survived = {name: line["survived"] for name, line in found.items()}
    assert survived == {"test_shown": True, "test_forgetful": False, "test_damaged": False, "test_hidden": False}
    assert (found["test_damaged"]["checkpoints_damaged"], found["test_hidden"]["machines_unnoticed"]) == (1, 1)
