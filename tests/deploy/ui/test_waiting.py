"""A wait for a machine takes one line of a terminal, not one per look."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from deploy.ui.screen import Screen
from tests.deploy.conftest import end_tmux, wait_until

TOLD = [
    "requesting NVIDIA A40, 0.40 USD an hour",
    "pod p1 is STARTING: waiting for its container, 0 s",
    "pod p1 is STARTING: waiting for its container, 12 s (a3ed95caeb02 Downloading " + "中" * 60 + ")",
    "pod p1 is RUNNING: waiting for its SSH port, 26 s (create pod network)",
    "releasing pod p1: its port does not answer",
    "pod p2 is STARTING: waiting for its container, 2 s",
]
SHOWN = [TOLD[0], TOLD[3], TOLD[4], TOLD[5], "error: no", "pod p2 is STARTING: waiting for its container, 4 s"]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: apt-get install tmux")
def test_a_terminal_shows_the_newest_state_of_a_wait(tmp_path: Path) -> None:
    """The second message is wider than the terminal, so it takes two rows; both are erased."""
    socket, done = f"sniperface-test-{uuid.uuid4().hex[:8]}", tmp_path / "done"
    script = tmp_path / "waits.py"
    script.write_text(
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from deploy.errors import NoMachine\n"
        "from deploy.ui.screen import Screen\n"
        "screen = Screen()\n"
        f"[screen.say(each) for each in {TOLD!r}]\n"
        "screen.failure(NoMachine('no'))\n"
        f"screen.say({SHOWN[-1]!r})\n"
        f"Path({str(done)!r}).touch()\n"
        "threading.Event().wait()\n",
        encoding="utf-8",
    )
    tmux = ["tmux", "-u", "-L", socket, "-f", "/dev/null"]
    python = ["env", f"PYTHONPATH={Path(__file__).parents[3]}", "PYTHONUTF8=1", sys.executable, str(script)]
    try:
        subprocess.run([*tmux, "new-session", "-d", "-x", "100", "-y", "40", *python], check=True)
        wait_until(done.exists)
        wait_until(lambda: SHOWN[-1] in pane(tmux))
        assert pane(tmux).splitlines() == SHOWN
    finally:
        end_tmux(socket)


def pane(tmux: list[str]) -> str:
    shown = subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True, encoding="utf-8")
    return shown.stdout.rstrip()


def test_a_file_gets_every_message() -> None:
    out = io.StringIO()
    screen = Screen(out=out)
    for each in TOLD:
        screen.say(each)
    assert out.getvalue().splitlines() == TOLD
