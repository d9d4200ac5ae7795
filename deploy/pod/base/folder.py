"""All file names of a run, and the functions that read and write its small files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import time
from pathlib import Path, PurePath
from typing import IO, Any

FINAL_STATES = ("succeeded", "failed", "stopped", "expired", "lost")
LIVE_STATES = ("planned", "running", "restarting")  # the supervisor is alive; "planned": it waits in the queue
ON_WINDOWS = os.name == "nt"
RENAME_S = 5.0  # how long a rename is retried on Windows while another process has the file open


class RunFolder:
    """File names inside `runs/<run_id>/`, the same on the laptop and on the machine.

    Uses a pure path, so that a Windows laptop can name files on a Linux machine.
    """

    def __init__(self, path: PurePath) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.placement = path / "placement.json"  # on the laptop only
        self.run = path / "run.json"
        self.note = path / "note.txt"
        self.config = path / "config.yaml"
        self.log = path / "train.log"
        self.status = path / "status.json"
        self.metrics = path / "metrics.jsonl"
        self.report = path / "report.html"
        self.verification = path / "verification.json"  # the report's curves and pairs, to make it again
        self.checkpoints = path / "checkpoints"
        self.latest = self.checkpoints / "latest"
        self.mining = path / "mining"
        self.tensorboard = path / "tensorboard"
        self.stop_request = path / "stop.request"
        self.resume_from = path / "resume_from"
        self.ended = path / "ended.json"  # why the guard ended the run; written before the guard acts
        self.secrets = path / "secrets.env"  # exists only until the supervisor has read it
        self.environment = path / "environment.env"  # the same: what the supervisor gets that tmux starts

    @property
    def run_id(self) -> str:
        return self.path.name


class Root:
    """File names in the project's folder on a machine. Code, environments and data are in the same folder."""

    def __init__(self, path: PurePath) -> None:
        self.path = path
        self.runs = path / "runs"
        self.busy_lock = path / "busy.lock"
        self.queue = path / "queue"
        self.contact = path / "contact"  # the laptop touches it with each command; counts as activity
        self.guard = path / "guard.json"  # limits and machine name, written by the laptop
        self.guard_secrets = path / "guard-secrets.env"  # for the final sync; exists only until the guard has read it
        self.guard_status = path / "guard-status.json"
        self.guard_lock = path / "guard.lock"


def private_folder(path: Path) -> None:
    """Create a folder with mode 0700, whatever the umask. Changes the mode of an existing folder too."""
    path.mkdir(parents=True, exist_ok=True)
    if os.name == "posix" and path.stat().st_mode & 0o077:
        with contextlib.suppress(OSError):  # the folder belongs to another user
            os.chmod(path, 0o700)


def write_bytes(path: Path, data: bytes, durable: bool = True, mode: int = 0o666) -> None:
    """Replace a file atomically: a reader sees the old bytes or the new ones, never a mixture.

    `durable=False` skips the fsync: a heartbeat must not wait for a slow disk and need not survive a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        replace(part, path)
    except OSError:  # such as a full disk: keep the old file, leave no .part behind
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def replace(part: Path, path: Path) -> None:
    """Rename a file over `path`, or a folder to a `path` that does not exist.

    Windows refuses while a reader or a virus scanner has either one open. That is temporary: retries for RENAME_S.
    """
    until = time.monotonic() + RENAME_S
    while True:
        try:
            os.replace(part, path)
            return
        except PermissionError:
            if not ON_WINDOWS or time.monotonic() > until or (part.is_dir() and path.exists()):
                raise
            time.sleep(0.02)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it. Succeeds if it is already gone. Links are not followed.

    Windows refuses for as long as another process has a file open: retries for RENAME_S. It refuses a read-only file,
    such as an object of git, until it is writable.
    """
    until = time.monotonic() + RENAME_S
    while True:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            refused = isinstance(error, PermissionError) or error.errno == errno.ENOTEMPTY  # deleted, but still open
            if not ON_WINDOWS or not refused or time.monotonic() > until:
                raise
            _make_writable(path)
            time.sleep(0.02)


def _make_writable(path: Path) -> None:
    for file in [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]:
        with contextlib.suppress(OSError):
            if not file.is_symlink() and not file.is_dir():
                os.chmod(file, stat.S_IREAD | stat.S_IWRITE)


def open_shared(path: Path) -> IO[bytes]:
    """Open a file for reading. Retries for one second on Windows, which refuses while the file is being replaced."""
    for _ in range(50):
        with contextlib.suppress(PermissionError):
            return open(path, "rb")
        if os.name != "nt":
            break
        time.sleep(0.02)
    return open(path, "rb")


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    write_bytes(path, as_json(value), durable)


def as_json(value: Any) -> bytes:
    """Return a value as the files of a run have it: UTF-8, indented."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def tell_json(path: Path, value: Any, durable: bool = False) -> None:
    """Write a status file as well as possible: on a full disk, overwrite the old text in place. Raises no OSError.

    The old bytes are the only space that a full disk leaves. A reader may then see half a file and treats it as {}.
    """
    try:
        write_json(path, value, durable)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path.with_name(f".{path.name}.{os.getpid()}.part"))
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            file.write(as_json(value))
            file.truncate()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} if the file is missing or incomplete."""
    try:
        with open_shared(path) as file:
            value = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
