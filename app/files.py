"""Files that are either whole or not there: room is claimed first, then written, synced and renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from app.errors import WrongUse

ON_WINDOWS = os.name == "nt"
RENAME_S = 5.0


def claim(file: IO[bytes], size_bytes: int, what: str) -> None:
    """Reserve `size_bytes` for an open file, or raise WrongUse saying how much is missing.

    On a RAM disk a file can be made larger than the room there is; writing to it through a mapping then ends the
    process with SIGBUS. posix_fallocate asks for the pages now. Where it does not exist (Windows, macOS) the free
    space is compared.
    """
    folder = Path(file.name).parent
    free = shutil.disk_usage(folder).free
    try:
        if size_bytes > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if size_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise WrongUse(
            f"{what} needs {size_bytes / 2**20:,.0f} MiB in {folder} and {free / 2**20:,.0f} MiB are free; "
            f"free some room or name another place"
        ) from error


@contextmanager
def atomic(path: Path, size_bytes: int = 0, what: str = "") -> Iterator[IO[bytes]]:
    """Write a file that appears under `path` complete, or not at all. Room of `size_bytes` is claimed first."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            claim(file, size_bytes, what or str(path))
            yield file
            file.truncate(file.tell())
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Nobody else who asks writes to `path` meanwhile; the system lets go when this process ends, however it ends."""
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("ab") as file:
        if not _locked_now(file):
            raise WrongUse(f"another process is writing {path}; wait for it, or give another name")
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                lock.unlink()


def _locked_now(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def replace(temporary: Path, path: Path) -> None:
    """Rename over `path`. Windows refuses while somebody reads it, so there it is tried for RENAME_S."""
    until = time.monotonic() + RENAME_S
    while True:
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if not ON_WINDOWS or time.monotonic() > until:
                raise
            time.sleep(0.02)


def settle(temporary: Path, path: Path) -> None:
    """Give a complete file its name; both survive a power cut."""
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    replace(temporary, path)
    if hasattr(os, "O_DIRECTORY"):  # the name itself is only safe once its folder is
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def make_folder(path: Path, key: str, of: Path | None = None) -> None:
    """Make a folder that an option names, or that the file `of` which it names is to lie in, before any work is done
    for it. Raises WrongUse where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wanted = f"{key}={path} cannot be made a folder"
        if of is not None:
            wanted = f"{key}={of} lies in {path}, which cannot be made a folder"
        raise WrongUse(f"{wanted} ({error.strerror}); give another {key}") from error
