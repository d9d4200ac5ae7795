"""`exec`: one command where the run is, with its output, input and exit code."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.commands.test_remote import Box, make_box
from tests.deploy.conftest import Project
from tests.deploy.support.servers import SSHD, asyncssh_server, openssh

TELLS = (
    "import os, sys; print(os.getcwd()); print(os.environ.get('A'), os.environ.get('SNIPERFACE_SUPERVISED'));"
    "print(sys.argv[1:]); print('aside', file=sys.stderr); sys.exit(7)"
)
HOSTILE = ["it's", '"$HOME"', "--on", "--", "a  b", "größe;`x`", ""]


@pytest.fixture
def box(project: Project, tmp_path: Path) -> Iterator[Box]:
    if SSHD is None or not shutil.which("ssh"):
        pytest.skip("needs an SSH server and a client: apt-get install openssh-server openssh-client")
    yield from make_box(project, tmp_path, openssh)


def test_a_command_runs_in_the_checkout_of_the_run(box: Box) -> None:
    """On a machine, in the checkout, with the variables of the run and its Python first on the path."""
    box.invoke("deploy")
    assert Path(box.invoke("exec", "--", "pwd").stdout.strip()) == box.root
    run = box.json("train", "--env", "A=a b")["run_id"]
    done = box.invoke("exec", "--run", run, "--", Path(sys.executable).name, "-c", TELLS, *HOSTILE, code=7)
    folder, variables, words = done.stdout.splitlines()
    assert Path(folder).parent == box.root / "code"
    assert (variables, words, done.stderr) == ("a b None", repr(HOSTILE), "aside\n")
    assert box.invoke("exec", "--", "no-such-program", code=127).stdout == ""


def test_a_command_runs_in_the_default_root(project: Project, tmp_path: Path) -> None:
    """Without a run. The root of each ssh target is ~/sniperface, and no login shell expands it within a word."""
    home = tmp_path / "a home"
    home.mkdir()
    with asyncssh_server(tmp_path / "server", {"HOME": str(home)}) as server:
        box = Box(project, server, home / "sniperface", tmp_path / "ram")
        box.target(root="~/sniperface")
        box.invoke("deploy")
        assert Path(box.invoke("exec", "--", "pwd").stdout.strip()) == box.root
        assert Path(box.json("ssh-config")["folder"]) == box.root


def test_a_command_runs_on_this_computer(project: Project) -> None:
    """Without a run it runs in the project, then in the checkout of the newest run."""
    words = ("exec", "--", sys.executable, "-c", TELLS, *HOSTILE)
    done = project.invoke(*words, code=7)
    assert Path(done.stdout.splitlines()[0]) == project.path
    project.invoke("train", "--env", "A=1")
    folder, variables, told = project.invoke(*words, code=7).stdout.splitlines()
    assert Path(folder).parent == project.path / ".sniperface" / "local" / "code"
    assert (variables, told) == ("1 None", repr(HOSTILE))
    assert "no such program" in project.invoke("exec", "--", "no-such-program", code=127).stderr
