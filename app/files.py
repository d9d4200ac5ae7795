"""Atomic file writes: reserve the room, write, sync, rename. A file is complete or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from app.errors import WrongUse

ON_WINDOWS = os.name == "nt"
RENAME_S = 5.0


def shown(path: Path) -> str:
    """A path for messages: relative to the current folder if it is below that, with / as separator."""
    try:
        return path.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)


def claim(file: IO[bytes], size_bytes: int, what: str) -> None:
    """Reserve `size_bytes` for an open file. Raises WrongUse, with the bytes needed and free, if there is no room.

    On a RAM disk a file can grow beyond the free room; a write through a mapping then kills the process with SIGBUS.
    posix_fallocate claims the pages at once. Where it is missing (Windows, macOS), only the free space is compared.
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
            f"{what}: {size_bytes / 2**20:,.0f} MiB are needed in {folder}, and {free / 2**20:,.0f} MiB are free; "
            f"free some space or give another folder"
        ) from error


@contextmanager
def atomic(path: Path, size_bytes: int = 0, what: str = "") -> Iterator[IO[bytes]]:
    """Write a file that appears at `path` complete or not at all. Reserves `size_bytes` first; raises WrongUse."""
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
    """Hold the write lock of `path`; the system releases it if this process dies. Raises WrongUse if it is taken."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        with lock.open("ab") as file:
            if not _locked_now(file):
                raise WrongUse(f"another process is writing {path}; wait for it, or give another place")
            try:
                yield
            finally:
                with suppress(OSError):  # while it is held: another process could lock a file that goes
                    lock.unlink()
    finally:
        with suppress(OSError):  # Windows deletes it now that it is closed, unless another process has it open
            if ON_WINDOWS:
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
    """Rename over `path`. Windows refuses while the file is being read, so there retry for RENAME_S."""
    _until_it_may(lambda: os.replace(temporary, path))


def remove(path: Path) -> None:
    """Delete a file, unless it is gone already. Windows refuses while the file is open: retries as `replace` does."""
    _until_it_may(lambda: path.unlink(missing_ok=True))


def _until_it_may(change: Callable[[], None]) -> None:
    until = time.monotonic() + RENAME_S
    while True:
        try:
            change()
            return
        except PermissionError:
            if not ON_WINDOWS or time.monotonic() > until:
                raise
            time.sleep(0.02)


def settle(temporary: Path, path: Path) -> None:
    """Sync a complete file and rename it; content and name survive a power cut."""
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    replace(temporary, path)
    if hasattr(os, "O_DIRECTORY"):  # a rename is durable only after its folder is synced
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if it is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def refuse_to_replace(out: Path, read: Sequence[Path], beside: bool = True) -> None:
    """Refuse an `out` that is a file in `read`, or whose JSON, if one is written `beside` it, is of something else.

    Raises WrongUse.
    """
    if out.exists() and any(each.exists() and out.samefile(each) for each in read):
        raise WrongUse(f"out={out} is a file that this command reads; give another name, such as out=new{out.suffix}")
    note = out.with_suffix(".json")
    if beside and note.exists() and not describes(note, out.name):
        raise WrongUse(f"{note} would be overwritten and does not describe {out.name}; give another out=…{out.suffix}")


def describes(file: Path, name: str) -> bool:
    """Whether a JSON file describes the file of this name. The JSON of a checkpoint does not."""
    return read_json(file).get("file") == name


def make_folder(path: Path, key: str, of: Path | None = None) -> None:
    """Make the folder that option `key` names, or the folder of the file `of` that it names. Raises WrongUse.

    Called before any work is done, so that a bad path, or a folder that takes no files, fails early.
    """
    what = f"{key}={path}" if of is None else f"{key}={of} lies in {path}, which"
    cannot = "cannot be created as a folder"
    try:
        path.mkdir(parents=True, exist_ok=True)
        cannot = "takes no files"
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise WrongUse(f"{what} {cannot} ({error.strerror}); give another {key}=…") from error
