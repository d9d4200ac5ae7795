"""A copy of the project as a new user has it, and what the tests of the whole path have in common."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2]
SMALL = [
    "backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", "backbone.embedding_dim=32",
    "recipe.moco.projection_hidden=64", "train.epochs=40", "train.log_every_steps=1",
]  # fmt: skip


@dataclass
class Clone:
    """A copy of the project's files as a new user has them, in a folder with a hostile name."""

    path: Path
    socket: str
    env: dict[str, str] = field(default_factory=dict)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *words],
            cwd=self.path,
            env={**os.environ, "SNIPERFACE_TMUX_SOCKET": self.socket, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def invoke(self, *words: str, code: int = 0) -> str:
        """Run to the end; what it printed on stdout (and, when it was to fail, on stderr too)."""
        process = self.start(*words)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{words} ended with {process.returncode}\n{out}\n{err}"
        return out if code == 0 else out + err

    def json(self, *words: str) -> Any:
        return json.loads(self.invoke(*words, "--json"))

    def train(self, *words: str) -> Any:
        return self.json("train", *(word for setting in SMALL for word in ("--set", setting)), *words)

    def status(self) -> dict[str, Any]:
        return self.json("status")


def make_clone(folder: Path) -> Clone:
    """The project's files in a fresh repository below `folder`."""
    token = uuid.uuid4().hex[:8]  # machines are told apart by the name of the project: another test has its own
    path = folder / f"zoë's “faces” & co {token}"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=SOURCE, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, path / name)
    subprocess.run(["git", "init", "-q"], cwd=path, check=True)
    return Clone(path, f"sniperface-e2e-{token}")


def wait_for(condition: Callable[[], Any], limit_s: float = 120) -> Any:
    """The first true answer. A question that takes long, such as a command, is put less often: it must not hold up what
    it asks about.
    """
    deadline = time.monotonic() + limit_s
    while True:
        asked = time.monotonic()
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(max(0.05, 2 * (time.monotonic() - asked)))  # a poll, bounded by the deadline


def copy_of(container: str, path: str, to: Path) -> Path:
    """A folder of a container as it is now, whether that runs or not."""
    to.mkdir()
    subprocess.run(["docker", "cp", f"{container}:{path}", str(to)], check=True, capture_output=True)
    return to / Path(path).name


def events(folder: Path) -> list[dict[str, Any]]:
    metrics = folder / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
