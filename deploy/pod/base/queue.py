"""The queue of a machine: each waiting run takes a numbered ticket, and runs start in the order of the numbers.

A ticket is a file that its waiting process keeps locked. If that process dies, the lock is free, and the next process
that reads the queue removes the ticket.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import Root, read_json
from deploy.pod.base.lock import Lock, is_held


class Ticket:
    """A place in a machine's queue, from construction to `leave`."""

    def __init__(self, root: Root, holder: dict[str, Any]) -> None:
        self.folder = Path(root.queue)
        with Lock(self.folder / "taking.lock", {"pid": os.getpid()}).wait(0.02):  # held while a ticket is created
            self.number = max(_numbers(self.folder), default=0) + 1
            self.lock = Lock(_file(self.folder, self.number), holder).acquire()

    def ahead(self) -> list[dict[str, Any]]:
        """Return the holders of lower tickets, next one first."""
        return [holder for number, holder in _waiting(self.folder) if number < self.number]

    def leave(self) -> None:
        self.lock.release()
        with contextlib.suppress(OSError):
            os.unlink(self.lock.path)


def waiting(root: Root) -> list[dict[str, Any]]:
    """Return the holders of all tickets, next one first."""
    return [holder for _, holder in _waiting(Path(root.queue))]


def _waiting(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    alive = []
    for number in _numbers(folder):
        file = _file(folder, number)
        holder = read_json(file)
        if is_held(file):
            alive.append((number, holder))
        elif holder:  # an empty ticket is just being created
            with contextlib.suppress(OSError):
                os.unlink(file)
    return alive


def _numbers(folder: Path) -> list[int]:
    """Return the ticket numbers that exist, sorted. A number in use is never given twice; a freed one may be reused."""
    with contextlib.suppress(OSError):
        return sorted(int(name[:-7]) for name in os.listdir(folder) if name.endswith(".ticket") and name[:-7].isdigit())
    return []


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.ticket"
