"""The rules of conftest.py, seen from outside: a pytest of its own on a small test file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def run_pytest(folder: Path, ci: str) -> tuple[int, str]:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n", encoding="utf-8")
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-v", "-rA", str(folder)],
        cwd=folder,
        env={**alone, "CI": ci, "PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
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


def test_in_ci_a_whole_file_may_not_be_skipped_either(tmp_path: Path) -> None:
    (tmp_path / "test_module.py").write_text(MODULE_SKIP, encoding="utf-8")
    assert run_pytest(tmp_path, "true")[0] != 0
