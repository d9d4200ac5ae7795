"""A lock that lives exactly as long as the process (and its heirs) that holds it, with its holder written in it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

# Windows locks are mandatory: locking a byte far behind the text keeps the text readable for everyone.
_LOCKED_BYTE = 1 << 30


class Busy(Exception):
    """Somebody else holds the lock; `holder` is what they wrote in it."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__(f"held by {holder}")
        self.holder = holder


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


class Lock:
    """`with Lock(path, {"run_id": ...}).acquire():` holds the lock or raises Busy. The system frees it at death.

    On POSIX a child that is given `fileno()` holds it too, so a job that outlives its supervisor keeps the machine busy
    until it has ended. On Windows a lock is not inherited.
    """

    def __init__(self, path: Path, holder: dict[str, Any]) -> None:
        self.path = path
        self.holder = holder
        self._file: IO[bytes] | None = None

    def acquire(self) -> Lock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+b", opener=_private)  # noqa: SIM115 - held open for as long as the lock is
        for look in range(10):
            if _try_lock(file):
                break
            # Somebody may only be asking `is_held`, for a moment, and a name in it may be that of one who was killed.
            if look >= 2 and read_holder(self.path):
                file.close()
                raise Busy(read_holder(self.path))
            time.sleep(0.02)
        else:
            file.close()
            raise Busy({})
        self._file = file
        self.write(self.holder)
        return self

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
        if self._file is None:
            raise ValueError(f"{self.path} is not held")
        return self._file.fileno()

    def write(self, holder: dict[str, Any]) -> None:
        """Say who holds it, in place: another file under this name would be another lock."""
        if self._file is None:
            raise ValueError(f"{self.path} is not held")
        self._file.seek(0)
        self._file.truncate()
        with contextlib.suppress(OSError):  # a full disk takes the name, not the lock
            self._file.write(json.dumps(holder).encode("utf-8"))
            self._file.flush()


def read_holder(path: Path) -> dict[str, Any]:
    """What the last holder wrote; {} when nobody holds it or it cannot be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock, asked without disturbing what is written in it."""
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
