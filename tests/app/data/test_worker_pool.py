"""Worker processes: an interrupt at any moment is an interrupt, and not an error of the pool."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.data.sources.worker_pool import processes

PROJECT = Path(__file__).parents[3]
STARTING = """
import os, signal
if __name__ == "__mp_main__":  # in a worker, before its first line of our code
    os.kill(os.getpid(), signal.SIGINT)
if __name__ == "__main__":
    from app.data.sources.worker_pool import in_order
    print(list(in_order([3, 4, 5], lambda job: (job,), abs, workers=2)))
"""


def test_an_interrupt_while_the_pool_starts_is_not_hidden() -> None:
    """It leaves the pool with a thread that was made and not seen to start, which cannot be joined."""

    def interrupted() -> None:
        with processes(2) as pool:
            pool._executor_manager_thread = threading.Thread()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_an_interrupt_while_a_worker_starts_is_left_to_the_parent(tmp_path: Path) -> None:
    (tmp_path / "starting.py").write_text(STARTING)
    command, environment = [sys.executable, str(tmp_path / "starting.py")], {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("[(3, 3), (4, 4), (5, 5)]\n", "", 0)


def test_a_computer_with_many_cores_may_run_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python refuses more than 61 processes there. `prepare` takes as many as there are cores."""
    monkeypatch.setattr(sys, "platform", "win32")
    with processes(128) as pool:
        assert pool._max_workers == 61  # type: ignore[attr-defined]  # none has started
