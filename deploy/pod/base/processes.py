"""Finding and ending every process of a job, however it was orphaned.

torchrun starts each rank in a session of its own, so a process group does not hold them all; and when torchrun is
killed its ranks become somebody else's children. On Linux the supervisor asks to be that somebody (a "subreaper").
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make orphans of this process's children its own children. Linux only; elsewhere they end by EOF alone."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        listing = subprocess.run(
            ["tasklist", "/FI", f"PID eq {pid}", "/NH"], capture_output=True, check=False, timeout=20
        )
        return str(pid).encode() in listing.stdout
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    row = _linux_row(str(pid))
    return row is None or row[2] != "Z"  # a zombie is dead, it only waits for its parent to notice


def descendants(pid: int, spare: Collection[int] = ()) -> list[int]:
    """All living children, grandchildren, … of `pid`; empty on Windows, where `taskkill /T` walks the tree itself.

    `spare`: these are left out, with everything below them.
    """
    children: dict[int, list[int]] = {}
    for child, parent, state in _table():
        if state != "Z":
            children.setdefault(parent, []).append(child)
    found: list[int] = []
    wave = [pid]
    while wave:
        below = (child for parent in wave for child in children.get(parent, []))
        wave = [child for child in below if child not in found and child not in spare]
        found += wave
    return found


def cpu_s(pid: int) -> float | None:
    """Seconds of processor time of `pid` and everything living below it; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    ticks = 0
    for member in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path("/proc", str(member), "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def kill_tree(pid: int, keep_root: bool = False, spare: Collection[int] = ()) -> None:
    """End `pid` and everything below it, at once. Ending what is gone is success.

    Not covered: on Windows the children of a root that is kept; they end when their standard input closes.
    """
    if sys.platform == "win32":
        if keep_root:
            return
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False, timeout=30)
        return
    # Twice: a process may start another between the look and the kill.
    for _ in range(2):
        for victim in [*descendants(pid, spare), *([] if keep_root else [pid])]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(victim, signal.SIGKILL)


def reap() -> None:
    """Collect adopted orphans that have ended. Call it only when no Popen is waiting for its own child."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _table() -> list[tuple[int, int, str]]:
    """(pid, parent, state letter) of every process."""
    if sys.platform == "win32":
        return []
    if Path("/proc/self/stat").exists():
        return [row for row in map(_linux_row, os.listdir("/proc")) if row]
    lines = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=False, timeout=20
    ).stdout.splitlines()
    rows = [line.split() for line in lines]
    return [(int(row[0]), int(row[1]), row[2][:1]) for row in rows if len(row) == 3]


def _linux_row(name: str) -> tuple[int, int, str] | None:
    if not name.isdigit():
        return None
    try:
        stat = Path("/proc", name, "stat").read_text(errors="replace")
    except OSError:  # it ended between the listing and the reading
        return None
    state, parent = stat.rsplit(")", 1)[1].split()[:2]
    return int(name), int(parent), state
