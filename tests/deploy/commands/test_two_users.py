"""Two users of one host: real accounts, a real sshd, and one staging folder that both may write to."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.commands.test_remote import SLOW_STEPS
from tests.deploy.conftest import Project, wait_until
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.deploy.support.servers import SSHD, openssh

CAN = sys.platform.startswith("linux") and os.geteuid() == 0 and bool(SSHD and shutil.which("useradd"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAN, reason="needs two users: run as root on Linux with openssh-server"),
]


@pytest.fixture
def users(tmp_path: Path) -> Iterator[list[str]]:
    """Two accounts, and a way for them to the folders of this test."""
    made = [f"face{uuid.uuid4().hex[:6]}" for _ in range(2)]
    for name in made:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", "--password", "*", name], check=True)
    for folder in (tmp_path, *tmp_path.parents[:3]):  # with several test processes there is one folder more
        folder.chmod(folder.stat().st_mode | 0o011)
    yield made
    for name in made:
        subprocess.run(["pkill", "-KILL", "-u", name], check=False)
        wait_until(lambda name=name: subprocess.run(["pgrep", "-u", name], capture_output=True).returncode)  # type: ignore[misc]
        subprocess.run(["userdel", "--remove", name], capture_output=True, check=True)


def python_of(user: str) -> tuple[str, str]:
    """Return a Python with torch that this user may run, and the PYTHONPATH for it."""
    packages = site.getsitepackages()[0]
    minor = f"python3.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{minor}"):
        words = ["su", user, "-c", f"PYTHONPATH={packages} {python} -c 'import torch.distributed.run'"]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return python, packages
    pytest.skip(f"needs {minor} for other users: apt-get install {minor}")


def test_two_users_stage_and_train_at_the_same_time(project: Project, tmp_path: Path, users: list[str]) -> None:
    """Both have the same data set. Neither can read the other's, and `down` of one leaves the other's alone."""
    shm, images = tmp_path / "shm", tmp_path / "faces" / "images.npy"
    shm.mkdir()
    shm.chmod(0o1777)
    prepare(images, rows=400)
    python, packages = python_of(users[0])
    more = f"SetEnv PYTHONPATH={packages}\n"
    with openssh(tmp_path / "server", more=more) as server:
        for folder in (tmp_path / "server", tmp_path / "server" / "authorized_keys"):
            folder.chmod(folder.stat().st_mode | 0o055)
        for name in users:
            root = tmp_path / f"root-{name}"
            root.mkdir()
            shutil.chown(root, name)
            told = {
                "provider": "ssh", "host": "127.0.0.1", "port": server.port, "key": str(server.key), "user": name,
                "fingerprint": subprocess.run(
                    ["ssh-keygen", "-lf", str(tmp_path / "server" / "host_key.pub")], capture_output=True, text=True,
                    check=True,
                ).stdout.split()[1],
                "root": str(root), "stage_to": str(shm), "python": python, "device": "cpu",
            }  # fmt: skip
            (project.path / "conf" / "deploy" / f"{name}.yaml").write_text(json.dumps(told))
        for name in users:
            project.invoke("train", "--on", name, "--data", str(images), "--detach", *SLOW_STEPS, limit_s=200)
        states = {name: project.json("status", "--on", name)["state"] for name in users}
        assert states == dict.fromkeys(users, "running")
        folders = {name: shm / f"sniperface-{name}" for name in users}
        for name, folder in folders.items():
            staged = next(folder.glob("*/images.npy"))
            assert (folder.owner(), folder.stat().st_mode & 0o777) == (name, 0o700)
            assert staged.read_bytes() == images.read_bytes()
        peek = ["su", users[1], "-c", f"ls {folders[users[0]]}"]
        assert "Permission denied" in subprocess.run(peek, capture_output=True, text=True, check=False).stderr
        project.invoke("stop", "--on", users[0])
        assert "GiB of RAM" in project.invoke("down", "--on", users[0]).stdout
        assert not folders[users[0]].exists()
        assert next(folders[users[1]].glob("*/images.npy")).read_bytes() == images.read_bytes()
        assert project.json("status", "--on", users[1])["state"] == "running"
        project.invoke("stop", "--on", users[1])
