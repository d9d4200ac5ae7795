"""Run Python code as several connected processes, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from tests.support.forks import start_training
from tests.support.load import under_load
from tests.support.ports import free_port

PROJECT = Path(__file__).parents[3]


def run_ranks(code: str, size: int, *arguments: str) -> None:
    """Run Python code as the `size` ranks of a process group. Fails with their output if one fails."""
    common = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(size)]
        ranks = [
            start_training(
                ["-c", code, *arguments], PROJECT, {**common, "RANK": str(rank), "OMP_NUM_THREADS": "1"}, output=file
            )
            for rank, file in enumerate(files)
        ]
        codes = [rank.wait(under_load(240)) for rank in ranks]
        outputs = []
        for file in files:
            file.seek(0)
            outputs.append(file.read().decode())
    assert codes == [0] * size, outputs
    assert all("fine" in output.splitlines() for output in outputs), outputs  # torch may add a warning as it ends
