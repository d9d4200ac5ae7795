"""Find and kill all processes of a job, including orphans.

torchrun starts each rank in its own session, so no process group contains them all. When torchrun is killed, another
process becomes the parent of its ranks. On Linux the supervisor registers as that parent (a "subreaper").
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants. Linux only; elsewhere orphans end only when their stdin closes."""
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
    return row is None or row[2] != "Z"  # a zombie has ended and waits for its parent to reap it


def descendants(pid: int, spare: Collection[int] = ()) -> list[int]:
    """Return all living descendants of `pid`; empty on Windows, where `taskkill /T` walks the tree itself.

    `spare`: pids to leave out, with their descendants.
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
    """Return CPU seconds of `pid` and its living descendants; None outside Linux."""
    if not sys.platform.startswith("linux"):
        return None
    ticks = 0
    for member in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path("/proc", str(member), "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def kill_tree(pid: int, keep_root: bool = False, spare: Collection[int] = ()) -> None:
    """Kill `pid` and its descendants at once. Does not fail if they have already ended.

    Not covered: with `keep_root` on Windows, the children are not killed; job_object.py does that.
    """
    if sys.platform == "win32":
        if keep_root:
            return
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False, timeout=30)
        return
    # Twice: a process may start another one between the listing and the kill.
    for _ in range(2):
        for victim in [*descendants(pid, spare), *([] if keep_root else [pid])]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(victim, signal.SIGKILL)


def oom_kills(root: Path = Path("/")) -> int:
    """Return how many processes were killed because memory ran out; 0 if the system does not tell.

    Those of this process's control group: of a container, a login or a service. Without one, those of the whole host.
    `root`: of the file system.
    """
    for file in _oom_counters(root):
        with contextlib.suppress(OSError, ValueError):
            if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.M):
                return int(found[1])
    return 0


def _oom_counters(root: Path) -> Iterator[Path]:
    """Yield files that may have the count, the narrowest first. A container sees its own group at the top."""
    groups = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):  # a name that is no UTF-8, or a line that does not fit
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield groups / path.lstrip("/") / "memory.events"
            elif "memory" in controllers.split(","):
                yield groups / "memory" / path.lstrip("/") / "memory.oom_control"
    yield groups / "memory.events"
    yield groups / "memory/memory.oom_control"
    yield root / "proc/vmstat"


def reap() -> None:
    """Reap adopted orphans that have ended. Call it only when no Popen is waiting for its own child."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _table() -> list[tuple[int, int, str]]:
    """Return (pid, parent, state letter) of every process; empty on Windows."""
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
    except OSError:  # it ended after it was listed
        return None
    state, parent = stat.rsplit(")", 1)[1].split()[:2]
    return int(name), int(parent), state
