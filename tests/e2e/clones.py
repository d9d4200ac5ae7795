"""A copy of the project as a new user has it, and helpers of the end-to-end tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, AnyStr

from tests.deploy.conftest import wait_until
from tests.support.forks import forks
from tests.support.load import under_load

SOURCE = Path(__file__).parents[2]
LIMIT_S = 240  # on an idle computer
SELDOM = "mining.every_epochs=8"  # for runs of many epochs whose mining nothing depends on: a third of their time
# For runs whose mining and report nothing reads: the packages of mining alone load for as long as torch.
BARE = ("mining.start_epoch=1000", "run.report=false")
SMALL = [
    "backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=16", "backbone.embedding_dim=32",
    "recipe.moco.projection_hidden=64", "train.epochs=40", "train.log_every_steps=1",
]  # fmt: skip


@dataclass
class Clone:
    """A copy of the project's files as a new user has them, in a folder with a hostile name."""

    path: Path
    socket: str
    env: dict[str, str] = field(default_factory=dict)
    as_a_user: bool = False  # each `train` starts its own interpreter

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONUTF8": "1", "SNIPERFACE_TMUX_SOCKET": self.socket, **self.env}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *words],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def invoke(self, *words: str, code: int = 0) -> str:
        """Run a command to its end. Returns its stdout; for an expected failure, followed by its stderr.

        All but a user's `train` are forks with their packages loaded.
        """
        server = None if self.as_a_user and words[0] == "train" else forks()
        if server is not None and server.can_run(self.environment):
            done = server.run(["-m", "invoke", *words], self.path, self.environment, under_load(LIMIT_S))
            out, err, ended = done.stdout, done.stderr, done.returncode
        else:
            with ending(self.start(*words)) as process:
                out, err = process.communicate(timeout=under_load(LIMIT_S))
            ended = process.returncode
        assert ended == code, f"{words} ended with {ended}\n{out}\n{err}"
        return out if code == 0 else out + err

    def json(self, *words: str) -> Any:
        return json.loads(self.invoke(*words, "--json"))

    def train(self, *words: str) -> Any:
        return self.json("train", *(word for setting in SMALL for word in ("--set", setting)), *words)

    def status(self) -> dict[str, Any]:
        return self.json("status")


@contextlib.contextmanager
def ending(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """End the process with the block at the latest. Else a failed test would leave it and its pipes to later tests."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def make_clone(folder: Path) -> Clone:
    """Copy the project's files into a new repository below `folder`."""
    token = uuid.uuid4().hex[:8]  # machines carry the project's name, so each test needs its own
    path = folder / f"zoë's “faces” & co {token}"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=SOURCE, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, path / name)
    subprocess.run(["git", "init", "-q"], cwd=path, check=True)
    return Clone(path, f"sniperface-e2e-{token}")


def wait_for(condition: Callable[[], Any], limit_s: float = 120) -> Any:
    """Wait for what takes longer than `wait_until` has time for: a container, an installation, a training."""
    return wait_until(condition, limit_s)


def copy_of(container: str, path: str, to: Path) -> Path:
    """Copy a folder out of a container, running or not, and return the copy."""
    to.mkdir()
    subprocess.run(["docker", "cp", f"{container}:{path}", str(to)], check=True, capture_output=True)
    return to / Path(path).name
