"""Run real supervisors with small jobs that act like training: write events and checkpoints, end in every way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import Root, RunFolder, read_json, write_json
from tests.deploy.conftest import SOURCE, wait_until
from tests.support.load import under_load

TELL = """
import json, os, sys, time, subprocess
def tell(**event):
    with open("metrics.jsonl", "a") as file:
        file.write(json.dumps(event) + "\\n")
"""
GOOD = TELL + 'tell(event="step", epoch=1, step=5, images_per_s=9.5); print("grüße"); tell(event="end", reason="done")'
OBEDIENT = TELL + 'print("begun", flush=True); sys.stdin.read(); tell(event="end", reason="stopped", message="asked")'
DEAF = TELL + 'print("begun", flush=True); time.sleep(600)'
# `count` is the step of the newest checkpoint, to resume from, as the app does with train.resume='auto'.
SAVE = (
    TELL
    + """
import hashlib
def save(step, broken=False):
    os.makedirs("checkpoints", exist_ok=True)
    data, name = b"weights %d" % step, "epoch_%03d" % step
    about = {"file": name + ".pt", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "epoch": step}
    with open(f"checkpoints/{name}.pt", "wb") as file:
        file.write(data[::-1] if broken else data)
    with open(f"checkpoints/.{name}.part", "w") as file:
        json.dump({**about, "step": step, "epoch_complete": True}, file)
    os.replace(f"checkpoints/.{name}.part", f"checkpoints/{name}.json")
    tell(event="checkpoint", epoch=step, step=step)
def crash():
    print("boom", flush=True)
    os.kill(os.getpid(), 9)
there = os.listdir("checkpoints") if os.path.isdir("checkpoints") else []
steps = [int(name[6:9]) for name in there if name.endswith(".json")]
auto = "train.resume='auto'" in sys.argv
count = max(steps) if auto and steps else 0
with open("starts", "a") as file:
    file.write(sys.argv[-1] + "\\n")
"""
)
# Runs until the end of its input, then saves a checkpoint.
TRAINING = SAVE + (
    'save(count + 1); print("begun", flush=True); sys.stdin.read(); save(count + 2); print("saved", flush=True)\n'
    'tell(event="end", reason="stopped", message="asked")'
)


class Supervised:
    """One supervisor and its run folder; the root of its machine is two folders above."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = Root(path.parents[1])
        self.folder = RunFolder(path)
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, script: str = "", *, attempt: int = 1, grace_s: float = 20, run_id: str | None = None,
        argv: Sequence[str] | None = None, env: dict[str, str] | None = None, queue: bool = False,
        place: dict[str, Any] | None = None, join_s: float = 180,
        launcher: Sequence[str] = ("-m", "deploy.pod.supervisor"), **limits: Any,
    ) -> Supervised:  # fmt: skip
        self.path.mkdir(parents=True, exist_ok=True)
        plan = {
            "run_id": run_id or self.path.name, "attempt": attempt, "cwd": str(self.path), "env": {"MARK": "1"},
            "argv": argv or [sys.executable, "-X", "utf8", "-c", script, "train.resume='none'"],
            "grace_s": grace_s, "busy_lock": str(self.root.busy_lock), "queue": queue,
            "place": place, "nodes": 2 if place else 1, "processes": 1, "join_s": join_s,
            "limits": {"restart_pause_s": 0.05, **limits},
        }  # fmt: skip
        write_json(Path(self.folder.plan), plan)
        self.process = subprocess.Popen(
            [sys.executable, *launcher, str(self.path)],
            cwd=SOURCE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})},
        )  # fmt: skip
        return self

    @property
    def status(self) -> dict[str, Any]:
        return read_json(Path(self.folder.status))

    @property
    def log(self) -> bytes:
        return Path(self.folder.log).read_bytes() if Path(self.folder.log).exists() else b""

    @property
    def starts(self) -> list[str]:
        """The train.resume option of each start of the job."""
        return (self.path / "starts").read_text().split()

    def begun(self, times: int = 1) -> Supervised:
        wait_until(lambda: self.log.count(b"begun") >= times)
        return self

    def until(self, state: str, limit_s: float = 30) -> Supervised:
        wait_until(lambda: self.status.get("state") == state, limit_s)
        return self

    def stop(self) -> None:
        Path(self.folder.stop_request).touch()

    def end(self, limit_s: float = 30) -> tuple[int, dict[str, Any]]:
        assert self.process is not None
        self.output, self.complaint = self.process.communicate(timeout=under_load(limit_s))
        return self.process.returncode, self.status
