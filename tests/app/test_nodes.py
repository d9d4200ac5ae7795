"""Several machines as torchrun has them: two agents that meet on the loopback (c10d), one process each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.runtime import checkpoint
from app.runtime.folder import RunFolder
from tests.app.test_supervised import SUPERVISED, tables
from tests.app.training import events, launch, wait_for

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def start(stack: ExitStack, data: Path, folder: Path, *words: str) -> tuple[subprocess.Popen, subprocess.Popen]:
    """Both agents; they find each other at a port of the first."""
    meeting = [
        "--nnodes=2", "--max-restarts=0", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--rdzv-id=faces", "--rdzv-conf=join_timeout=60,last_call_timeout=1,timeout=60", "--local-addr=127.0.0.1",
    ]  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    agents = [
        stack.enter_context(
            launch(data, folder, *SUPERVISED, *words, processes=1, where=meeting, log=folder.parent / f"node{node}.log")
        )
        for node in range(2)
    ]
    return agents[0], agents[1]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals: run this on Linux or macOS")
def test_two_nodes_train_and_when_one_dies_the_run_ends_soon_and_can_go_on(small_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ExitStack() as stack:
        first, second = start(stack, small_data, folder, "train.epochs=1000")
        wait_for(lambda: (folder / "checkpoints" / "latest").exists(), first)
        kill_tree(second.pid)
        began = time.monotonic()
        assert first.wait(90) != 0
        assert time.monotonic() - began < 60
    done = json.loads(checkpoint.newest(RunFolder(folder)).with_suffix(".json").read_text())["epoch"] + 1
    with ExitStack() as stack:
        agents = start(stack, small_data, folder, "train.resume=auto", f"train.epochs={done + 1}")
        assert [agent.wait(90) for agent in agents] == [0, 0]
    assert [e["world_size"] for e in events(folder) if e["event"] == "start"] == [2, 2]
    assert events(folder)[-1]["reason"] == "done"
    assert tables(folder, f"epoch_{done:03d}.pt")["weight"].shape == (8, 32)


def kill_tree(pid: int) -> None:
    """SIGKILL to an agent and everything it started, as a machine that loses its power does."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    doomed = {pid}
    while more := {child for child, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for one in doomed:
        os.kill(one, signal.SIGKILL)
