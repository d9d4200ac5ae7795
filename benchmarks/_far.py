"""A project with a distant machine: an SSH server on this computer behind a connection with a round trip of 100 ms."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from deploy.pod.base import processes  # noqa: E402
from deploy.shell.host_keys import fingerprint  # noqa: E402
from deploy.specs.machine import Machine  # noqa: E402
from tests.deploy.support.proxy import proxy  # noqa: E402
from tests.deploy.support.servers import openssh  # noqa: E402

ROUND_TRIP_S = 0.1


@dataclass
class Far:
    """A copy of the project with the target `far`."""

    project: Path
    root: Path
    machine: Machine
    key: Path
    port: int  # of its SSH server, without the delay
    environment: dict[str, str]

    def invoke(self, *words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "invoke", *words, "--on", "far", "--json"],
            cwd=self.project, env=self.environment, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)


@contextmanager
def far(*, round_trip_s: float = ROUND_TRIP_S, bytes_per_s: float = 0.0, commit: str | None = None) -> Iterator[Far]:
    """Set up the project and the server; at the end remove all files and kill what still runs on the server.

    `bytes_per_s`: 0 for unlimited bandwidth. `commit`: this commit of the project, instead of the working tree.
    """
    with tempfile.TemporaryDirectory(prefix="sniperface-far-") as text:
        folder = Path(text)
        project, root = folder / "project", folder / "far" / "root"
        _copy_project(project, commit)
        with (
            openssh(folder / "server", quick=False) as server,
            proxy(server.port, round_trip_s / 2, bytes_per_s) as line,
        ):
            target = {
                "provider": "ssh", "host": "127.0.0.1", "port": line.port, "user": "root", "key": str(server.key),
                "fingerprint": fingerprint(base64.b64decode(server.host_key.split()[1])), "root": str(root),
                "stage_to": str(folder / "ram"), "python": sys.executable,
            }  # fmt: skip
            (project / "conf" / "deploy" / "far.yaml").write_text(json.dumps(target), encoding="utf-8")
            environment = {**os.environ, "SNIPERFACE_TMUX_SOCKET": f"sniperface-far-{folder.name[-8:]}"}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else each command compiles the whole project again
            try:
                yield Far(project, root, server.machine(port=line.port), server.key, server.port, environment)
            finally:
                for status in (root / "runs").glob("*/status.json"):
                    told = json.loads(status.read_text())
                    if told.get("ended") is None:
                        processes.kill_tree(told["pid"])
                socket = environment["SNIPERFACE_TMUX_SOCKET"]
                subprocess.run(["tmux", "-L", socket, "kill-server"], check=False, capture_output=True)


def _copy_project(project: Path, commit: str | None) -> None:
    """Copy the project's files, of the working tree or of a commit, into a new repository with one commit."""
    if commit:
        project.mkdir()
        packed = subprocess.run(["git", "archive", commit], cwd=PROJECT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=project, input=packed, check=True)
    else:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, project / name)
    author = ("-c", "user.name=Sniperface", "-c", "user.email=bench@localhost")
    for words in (("init", "--quiet"), ("add", "--all"), (*author, "commit", "--quiet", "-m", "A copy")):
        subprocess.run(["git", *words], cwd=project, check=True)
    # Git reads files again that are as recent as its index, to the second, until `git status` writes it anew.
    time.sleep(1.1)
    subprocess.run(["git", "status", "--short"], cwd=project, check=True)
