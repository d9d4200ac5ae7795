"""The environment that is made on a machine, and the user's own Python there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.pod.agent.environment import MEANT, isolate

ASK = "import importlib.util as u, sys; print(u.find_spec('numpy') is None, u.find_spec('mine') is None, *sys.path)"


@pytest.mark.skipif(sys.platform == "win32", reason="it is made on machines with POSIX only")
def test_a_users_pythonpath_brings_no_packages(tmp_path: Path) -> None:
    """As the login of ROS and of a cluster's modules sets it. Packages of the environment and of the folder stay."""
    made, work = tmp_path / "made", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    work.mkdir()
    (work / "mine.py").touch()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "numpy.py").touch()
    [packages] = made.glob("lib/python3*/site-packages")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "theirs"), "", "../theirs", str(packages)])}

    def told() -> list[str]:
        asked = [str(made / "bin" / "python"), "-c", ASK]
        return subprocess.run(asked, cwd=work, env=env, check=True, capture_output=True, text=True).stdout.split()

    assert told()[:2] == ["False", "False"]
    isolate(made)
    assert told()[:2] == ["True", "False"]
    assert str(packages) in told()
    env[MEANT] = "1"  # it is that of --env, not of the login
    assert told()[:2] == ["False", "False"]
