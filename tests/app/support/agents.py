"""Two torchrun agents on two loopback addresses, as two machines without a common disk."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.app.support.training import launch
from tests.support.ports import free_port


def start_agents(
    stack: ExitStack, data: Sequence[Path], disks: Sequence[Path], *words: str
) -> tuple[subprocess.Popen, subprocess.Popen]:
    """Start both agents, each with its data and its disk. They meet at a port of the first one."""
    port = free_port()
    agents = []
    for node, (path, disk) in enumerate(zip(data, disks, strict=True)):
        meeting = [
            "--nnodes=2", "--max-restarts=0", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}",
            "--rdzv-id=faces", "--rdzv-conf=join_timeout=60,last_call_timeout=1,timeout=60",
            f"--local-addr=127.0.0.{1 + node}",
        ]  # fmt: skip
        disk.mkdir(parents=True, exist_ok=True)
        job = launch(path, disk / "run", *words, processes=1, where=meeting, log=disk / "train.log")
        agents.append(stack.enter_context(job))
    return agents[0], agents[1]
