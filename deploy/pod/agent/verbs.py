"""Operations on a machine. The laptop calls them directly for itself, and through the agent on other machines.

Paths are the machine's own. No operation uses a command interpreter.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from deploy.pod.agent.frames import BODY_BYTES, LINE_BYTES
from deploy.pod.base import folder, processes

CHUNK_BYTES = BODY_BYTES
CMD = ("cmd", "/d", "/s", "/c")  # Windows' interpreter, before a command line of the user's
NO_LIMIT_BYTES = 1 << 50  # larger than any memory, like the value that cgroups report without a limit

PYTHON3 = "SNIPERFACE_PYTHON3"  # variable: the Python that runs the agent, where `python3` is too old for it

T = TypeVar("T")
R = TypeVar("R")

running: set[int] = set()  # pids of commands whose caller waits for them


class Overdue(Exception):
    """A command exceeded its time limit and was killed; `output` is the end of its output."""

    def __init__(self, output: bytes) -> None:
        super().__init__("overdue")
        self.output = output


def run(
    argv: Sequence[str],
    cwd: str | None = None,
    env: Mapping[str, str | None] | None = None,
    stdin: bytes = b"",
    limit_s: float = 60,
) -> tuple[int, bytes, bytes]:
    """Run a command; returns exit code, standard output, standard error.

    `env` is added to the machine's environment; a value of None removes a name. Raises Overdue after `limit_s` seconds
    and OSError (EFBIG) for more than BODY_BYTES of output.
    """
    with _popen(argv, cwd, env, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process, _awaited(process.pid):
        try:
            stdout, stderr = process.communicate(stdin, timeout=limit_s)
        except subprocess.TimeoutExpired:
            processes.kill_tree(process.pid)
            stdout, stderr = process.communicate()
            raise Overdue((stderr or stdout)[-LINE_BYTES:]) from None
        except BaseException:
            processes.kill_tree(process.pid)
            raise
    if len(stdout) + len(stderr) > BODY_BYTES:
        raise OSError(errno.EFBIG, f"it printed more than {BODY_BYTES} bytes", argv[0])
    return process.returncode, stdout, stderr


def lines(argv: Sequence[str], cwd: str | None = None) -> Generator[bytes, None, int]:
    """Yield a command's output line by line while it runs, long lines in pieces; returns its exit code."""
    with _popen(argv, cwd, None, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process, _awaited(process.pid):
        try:
            if process.stdout:
                yield from iter(partial(process.stdout.readline, LINE_BYTES), b"")
        except BaseException:
            processes.kill_tree(process.pid)
            raise
    return process.returncode


def spawn(argv: Sequence[str], cwd: str) -> int:
    """Start a process that outlives this one and its terminal; returns its pid."""
    argv, null = _programmed(argv), subprocess.DEVNULL
    ways: list[dict[str, Any]] = [{"start_new_session": True}]
    if sys.platform == "win32":
        # A hidden console: without one, every child would open a window.
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        # OpenSSH's server and some terminals end all processes of their job object with the session.
        ways = [{"creationflags": flags | subprocess.CREATE_BREAKAWAY_FROM_JOB}, {"creationflags": flags}]
    while True:
        try:
            process = subprocess.Popen(list(argv), cwd=cwd, stdin=null, stdout=null, stderr=null, **ways.pop(0))
            break
        except PermissionError:  # the job object allows no breakaway
            if not ways:
                raise
    process.returncode = 0  # it may outlive this process; keeps Popen's destructor from warning
    return process.pid


def which(program: str) -> str | None:
    return shutil.which(program)


def environment() -> dict[str, str]:
    """Return the environment that a command gets here, without values that are not text."""
    return {name: value for name, value in os.environ.items() if value.isprintable() or value.isascii()}


def environment_for(program: str, path: str) -> bool:
    """Return whether a program is installed. If so, write this process's environment to a private file for it."""
    if which(program) is None:
        return False
    write(path, json.dumps(dict(os.environ)).encode("ascii"), private=True)  # \udcXX for bytes that are not text
    return True


def expand(path: str) -> str:
    """Return the absolute path, with a leading ~ expanded."""
    return os.path.abspath(os.path.expanduser(path))


def hardware() -> dict[str, Any]:
    """Return cores and memory that this machine may use, not its host's. `gpus` is 0: see agent/devices.py for GPUs."""
    shm = "/dev/shm"  # noqa: S108 - this machine's own
    shm_bytes = shutil.disk_usage(shm).total if os.path.isdir(shm) else None
    return {"gpus": 0, "cores": cores(), "memory_bytes": memory_bytes(), "shm_bytes": shm_bytes}


def cores() -> int:
    """Return the number of cores that this process may use, after CPU affinity and the cgroup's quota."""
    count = os.cpu_count() or 1
    if sys.platform == "linux":
        count = len(os.sched_getaffinity(0))
        quota, period = [*_cgroup("cpu.max", "cpu/cpu.cfs_quota_us").split(), "max", "100000"][:2]
        if quota.isdigit():
            period = period if period.isdigit() and int(period) else "100000"
            count = min(count, max(1, int(quota) // int(period)))
    return count


def memory_bytes() -> int | None:
    """Return the cgroup's memory limit or the total memory, whichever is less; None if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        match = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        whole = int(match[1]) * 1024 if match else NO_LIMIT_BYTES
        limit = _cgroup("memory.max", "memory/memory.limit_in_bytes").strip()
        return min(whole, int(limit) if limit.isdigit() else whole)
    return None


def memory_used_bytes() -> int:
    """Return the memory that already counts against the cgroup's limit, including files in RAM; 0 if unknown.

    Pages of files on disk do not count: the system gives them up when memory is short.
    """
    used = _cgroup("memory.current", "memory/memory.usage_in_bytes").strip()
    return max(0, int(used) - cached_bytes(_cgroup("memory.stat", "memory/memory.stat"))) if used.isdigit() else 0


def cached_bytes(stat: str) -> int:
    """PURE: the cached pages of files on disk in a cgroup's memory.stat, of version 2 or 1."""
    of: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", stat, re.M))
    return sum(int(of.get(f"total_{name}") or of.get(name) or 0) for name in ("active_file", "inactive_file"))


def read(path: str, offset: int = 0, limit: int | None = None) -> bytes:
    with folder.open_shared(Path(path)) as file:
        file.seek(offset)
        return file.read(-1 if limit is None else limit)


def write(path: str, data: bytes, private: bool = False) -> None:
    """Replace a file atomically. `private`: only the owner may read it, from its creation on."""
    folder.write_bytes(Path(path), data, mode=0o600 if private else 0o666)


def write_at(path: str, offset: int, data: bytes) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Choosing "r+b" or "w+b" after a check would be a race: two ranges of a new file may arrive at once.
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    with open(descriptor, "r+b") as file:
        file.seek(offset)
        file.write(data)


def replace(source: str, destination: str, holding: Sequence[Sequence[Any]] = ()) -> bool:
    """Rename a file after an fsync.

    Returns False, and does nothing, if any [offset, length, sha256] of `holding` differs from the file.
    """
    if hashes(source, [each[:2] for each in holding]) != [each[2] for each in holding]:
        return False
    with open(source, "r+b") as file:
        os.fsync(file.fileno())
    folder.replace(Path(source), Path(destination))
    return True


def truncate(path: str, size: int) -> None:
    """Set a file's size; creates the file if needed, and allocates the disk space if the system can."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        if hasattr(os, "posix_fallocate") and size > os.fstat(descriptor).st_size:
            os.posix_fallocate(descriptor, 0, size)
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None


def sha256(path: str) -> str:
    return hashes(path, [[0, 1 << 62]])[0]


def hashes(path: str, ranges: Sequence[Sequence[int]], holes: bool = False) -> list[str]:
    """Return the SHA-256 of each [offset, length] of a file, in up to 8 threads. A range past the end is cut there.

    `holes`: return '' for a range that was never written, if the system can tell, without reading it.
    """

    import hashlib  # here, or each agent would start later

    def of(each: Sequence[int]) -> str:
        digest = hashlib.sha256()
        offset, left = each
        with open(path, "rb") as file:
            if holes and _is_hole(file.fileno(), offset, left):
                return ""
            file.seek(offset)
            while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
                digest.update(chunk)
                left -= len(chunk)
        return digest.hexdigest()

    return in_threads(of, ranges, min(8, cores()))


def in_threads(work: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """Return `work` of each item, computed in up to `most` threads, or in this one if the user may start no more."""
    if len(items) <= 1:
        return [work(each) for each in items]
    from concurrent.futures import ThreadPoolExecutor  # here, or each agent and supervisor would start later

    try:
        with ThreadPoolExecutor(max_workers=most) as pool:
            return list(pool.map(work, items))
    except RuntimeError:
        return [work(each) for each in items]


def listdir(path: str) -> list[str]:
    return sorted(os.listdir(path)) if Path(path).is_dir() else []


def remove(path: str) -> None:
    folder.remove(Path(path))


def free_bytes(path: str) -> int:
    """Return the free disk space at `path`, or at its nearest existing parent."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def in_ram(path: str) -> bool:
    """Whether a file at `path` would use memory instead of disk (tmpfs, ramfs)."""
    place = Path(path).absolute()
    mounts = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            _, where, kind = line.split(" ", 3)[:3]
            if place.is_relative_to(where):
                mounts.append((len(where), kind))
    # Of two mounts at the same path, the later one is on top.
    return bool(mounts) and max(reversed(mounts), key=lambda mount: mount[0])[1] in ("tmpfs", "ramfs")


def clock() -> float:
    return time.time()


def _is_hole(descriptor: int, offset: int, length: int) -> bool:
    """Whether this range of a file is a hole that was never written."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        return error.errno == errno.ENXIO  # only a hole from there to the end


@contextlib.contextmanager
def _awaited(pid: int) -> Iterator[None]:
    running.add(pid)
    try:
        yield
    finally:
        running.discard(pid)


def _cgroup(of_version_2: str, of_version_1: str) -> str:
    """Read a file of this process's cgroup, version 2 or else version 1; empty if there is none."""
    for path in (f"/sys/fs/cgroup/{of_version_2}", f"/sys/fs/cgroup/{of_version_1}"):
        with contextlib.suppress(OSError):
            return Path(path).read_text()
    return ""


def _programmed(argv: Sequence[str]) -> list[str]:
    """Return a command that starts the agent's own Python for `python3`."""
    return [os.environ.get(PYTHON3, argv[0]) if argv[0] == "python3" else argv[0], *argv[1:]]


def _popen(
    argv: Sequence[str], cwd: str | None, env: Mapping[str, str | None] | None, *, stdin: int, stderr: int
) -> subprocess.Popen[bytes]:
    argv, merged = _programmed(argv), {**os.environ, **(env or {})}
    # cmd gets a command line as it was typed: in a list its quotes would be escaped, and cmd knows no such escapes.
    is_line = sys.platform == "win32" and tuple(argv[:-1]) == CMD
    return subprocess.Popen(
        f'{" ".join(CMD)} "{argv[-1]}"' if is_line else list(argv),
        cwd=cwd,
        env={name: value for name, value in merged.items() if value is not None},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
