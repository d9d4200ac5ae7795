"""Who is next on a machine: runs that wait take a ticket each, and go in the order of their numbers.

A ticket is a file that its waiting process holds locked. When that process dies, however it dies, the lock is free, and
whoever looks next removes the ticket.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import Root
from deploy.pod.base.lock import Busy, Lock, is_held, read_holder


class Ticket:
    """A place in the queue of a machine, from `take` to `leave`."""

    def __init__(self, root: Root, holder: dict[str, Any]) -> None:
        self.folder = Path(root.queue)
        with _one_at_a_time(self.folder):
            self.number = max(_numbers(self.folder), default=0) + 1
            self.lock = Lock(_file(self.folder, self.number), holder).acquire()

    def ahead(self) -> list[dict[str, Any]]:
        """Who waits before us, the next one first."""
        return [holder for number, holder in _waiting(self.folder) if number < self.number]

    def leave(self) -> None:
        self.lock.release()
        with contextlib.suppress(OSError):
            os.unlink(self.lock.path)


def waiting(root: Root) -> list[dict[str, Any]]:
    """Everybody who waits, the next one first."""
    return [holder for _, holder in _waiting(Path(root.queue))]


def _waiting(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    alive = []
    for number in _numbers(folder):
        file = _file(folder, number)
        holder = read_holder(file)
        if is_held(file):
            alive.append((number, holder))
        elif holder:  # without a name in it, it is just being made
            with contextlib.suppress(OSError):
                os.unlink(file)
    return alive


def _numbers(folder: Path) -> list[int]:
    """A number that is in use is never given again; one that is free again matters to nobody."""
    with contextlib.suppress(OSError):
        return sorted(int(name[:-7]) for name in os.listdir(folder) if name.endswith(".ticket") and name[:-7].isdigit())
    return []


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.ticket"


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Any:
    lock = Lock(folder / "taking.lock", {"pid": os.getpid()})
    while True:
        try:
            lock.acquire()
            break
        except Busy:  # for the moments that it takes to make a file; a dead holder frees it
            time.sleep(0.02)
    with lock:
        yield
