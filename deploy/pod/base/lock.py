"""A lock file that names its holder. It is held as long as the holding process, or a child that inherited it, lives."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import IO, Any

from deploy.pod.base.folder import read_json

# Windows locks are mandatory: locking a byte far behind the text keeps the text readable.
_LOCKED_BYTE = 1 << 30


class Busy(Exception):
    """Another process holds the lock; `holder` is what it wrote in the file."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__(f"held by {holder}")
        self.holder = holder


class Lock:
    """`with Lock(path, {"run_id": ...}).acquire():` holds the lock or raises Busy. The system frees it on process exit.

    On POSIX a child that inherits `fileno()` holds it too. So a job that outlives its supervisor keeps the machine busy
    until it ends. On Windows a lock is not inherited.
    """

    def __init__(self, path: Path, holder: dict[str, Any]) -> None:
        self.path = path
        self.holder = holder
        self._file: IO[bytes] | None = None

    def acquire(self) -> Lock:
        """Take the lock. Raises Busy, with its holder, if another process has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        private = partial(os.open, mode=0o600)
        file = open(self.path, "a+b", opener=private)  # noqa: SIM115 - held open for as long as the lock is
        for look in range(10):
            if _try_lock(file):
                break
            # `is_held` in another process takes the lock for a moment; a killed holder leaves its name in the file.
            if look >= 2 and read_json(self.path):
                file.close()
                raise Busy(read_json(self.path))
            time.sleep(0.02)
        else:
            file.close()
            raise Busy({})
        self._file = file
        self.write(self.holder)
        return self

    def wait(self, pause_s: float) -> Lock:
        """Take the lock, if need be once its holder has freed it or died; looks every `pause_s`."""
        while True:
            with contextlib.suppress(Busy):
                return self.acquire()
            time.sleep(pause_s)

    def release(self) -> None:
        if self._file is not None:
            self.write({})
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def fileno(self) -> int:
        """Return the descriptor of the open file. Raises ValueError if the lock is not held."""
        if self._file is None:
            raise ValueError(f"{self.path} is not held")
        return self._file.fileno()

    def write(self, holder: dict[str, Any]) -> None:
        """Replace the holder in place: a new file of this name would be a different lock.

        Raises ValueError if it is not held.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is not held")
        self._file.seek(0)
        self._file.truncate()
        with contextlib.suppress(OSError):  # on a full disk the name is lost, the lock is kept
            self._file.write(json.dumps(holder).encode("utf-8"))
            self._file.flush()


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock. Leaves the file's content unchanged."""
    try:
        with open(path, "r+b") as file:
            return not _try_lock(file)
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
