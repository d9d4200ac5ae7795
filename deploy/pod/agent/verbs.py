"""What a machine can be asked for. The laptop calls these functions directly, another machine's agent calls them there.

Paths are the machine's own. Nothing here goes through a command interpreter.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from deploy.pod.agent.frames import BODY_BYTES, LINE_BYTES
from deploy.pod.base import folder, processes

CHUNK_BYTES = BODY_BYTES
NO_LIMIT_BYTES = 1 << 50  # what cgroups tell where there is no limit is larger than any memory


running: set[int] = set()  # the commands that somebody waits for


class Overdue(Exception):
    """A command did not end in time, and was ended; `output` is what it had said."""

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
    """Exit code, standard output, standard error. `env` is added to the machine's own; None takes a name out."""
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
        raise OSError(errno.EFBIG, f"it said more than {BODY_BYTES} bytes", argv[0])
    return process.returncode, stdout, stderr


def lines(argv: Sequence[str], cwd: str | None = None) -> Generator[bytes, None, int]:
    """The output of a command, line by line while it runs, a long line in pieces; returns its exit code."""
    with _popen(argv, cwd, None, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process, _awaited(process.pid):
        try:
            if process.stdout:
                yield from iter(partial(process.stdout.readline, LINE_BYTES), b"")
        except BaseException:
            processes.kill_tree(process.pid)
            raise
    return process.returncode


def end_awaited() -> None:
    """End the commands that are run at the moment: nobody waits for them any more."""
    for pid in list(running):
        processes.kill_tree(pid)


def spawn(argv: Sequence[str], cwd: str) -> int:
    """Start a process that outlives this one and its terminal; its pid."""
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        # A console of its own that nobody sees: without one, every child would open a window.
        options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    null = subprocess.DEVNULL
    process = subprocess.Popen(list(argv), cwd=cwd, stdin=null, stdout=null, stderr=null, **options)
    process.returncode = 0  # it is meant to outlive this process, so its destructor must not complain
    return process.pid


def which(program: str) -> str | None:
    return shutil.which(program)


def environment() -> dict[str, str]:
    """Names and values that a command gets here; what is no text is left out."""
    return {name: value for name, value in os.environ.items() if value.isprintable() or value.isascii()}


def expand(path: str) -> str:
    """A path with ~ at its beginning as an absolute one."""
    return os.path.abspath(os.path.expanduser(path))


def hardware() -> dict[str, Any]:
    """Cores and memory that this machine may use, not those of its host. Of GPUs only the job's environment knows."""
    shm = "/dev/shm"  # noqa: S108 - this machine's own
    shm_bytes = shutil.disk_usage(shm).total if os.path.isdir(shm) else None
    return {"gpus": 0, "cores": cores(), "memory_bytes": memory_bytes(), "shm_bytes": shm_bytes}


def cores() -> int:
    """Fewer than the computer has, where this process was given a part of it: by affinity, or by a cgroup's quota."""
    count = os.cpu_count() or 1
    if sys.platform == "linux":
        count = len(os.sched_getaffinity(0))
        quota, period = [*_cgroup("cpu.max", "cpu/cpu.cfs_quota_us").split(), "max", "100000"][:2]
        if quota.isdigit():
            period = period if period.isdigit() and int(period) else "100000"
            count = min(count, max(1, int(quota) // int(period)))
    return count


def memory_bytes() -> int | None:
    """The cgroup's limit or the whole memory, whichever is less; None where neither can be told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        match = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        whole = int(match[1]) * 1024 if match else NO_LIMIT_BYTES
        limit = _cgroup("memory.max", "memory/memory.limit_in_bytes").strip()
        return min(whole, int(limit) if limit.isdigit() else whole)
    return None


def memory_used_bytes() -> int:
    """What counts against the memory limit already, files in RAM included; 0 where it cannot be told."""
    used = _cgroup("memory.current", "memory/memory.usage_in_bytes").strip()
    cache = re.search(r"^(?:total_)?inactive_file (\d+)", _cgroup("memory.stat", "memory/memory.stat"), re.M)
    return max(0, int(used) - int(cache[1] if cache else 0)) if used.isdigit() else 0


def read(path: str, offset: int = 0, limit: int | None = None) -> bytes:
    with folder.open_shared(Path(path)) as file:
        file.seek(offset)
        return file.read(-1 if limit is None else limit)


def write(path: str, data: bytes, private: bool = False) -> None:
    """`private`: nobody but the owner may read it, from its first moment on."""
    folder.write_bytes(Path(path), data, mode=0o600 if private else 0o666)


def write_at(path: str, offset: int, data: bytes) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Not "r+b" or "w+b" by a look beforehand: two ranges of one new file may arrive at once.
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    with open(descriptor, "r+b") as file:
        file.seek(offset)
        file.write(data)


def replace(source: str, destination: str, holding: Sequence[Sequence[Any]] = ()) -> bool:
    """Rename, after the bytes have reached the disk; only if each [offset, length, sha256] of `holding` is true."""
    if hashes(source, [each[:2] for each in holding]) != [each[2] for each in holding]:
        return False
    with open(source, "r+b") as file:
        os.fsync(file.fileno())
    folder.replace(Path(source), Path(destination))
    return True


def truncate(path: str, size: int) -> None:
    """Give a file, made where it is not there, exactly this size, with room behind it where that can be promised."""
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
    """SHA-256 of each [offset, length] of a file, as far as it reaches; several at a time, on all cores.

    `holes`: a range that nothing was ever written to has '', where the system can tell, and is not read.
    """

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

    if len(ranges) == 1:
        return [of(ranges[0])]
    with ThreadPoolExecutor(max_workers=min(8, cores())) as pool:
        return list(pool.map(of, ranges))


def listdir(path: str) -> list[str]:
    return sorted(os.listdir(path)) if Path(path).is_dir() else []


def remove(path: str) -> None:
    if Path(path).is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def free_bytes(path: str) -> int:
    """Room on the disk of the nearest folder that exists."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def in_ram(path: str) -> bool:
    """Whether a file there would take memory instead of disk."""
    place = Path(path).absolute()
    mounts = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            _, where, kind = line.split(" ", 3)[:3]
            if place == Path(where) or Path(where) in place.parents:
                mounts.append((len(where), kind))
    # Of two at one place, the later one is on top.
    return bool(mounts) and max(reversed(mounts), key=lambda mount: mount[0])[1] in ("tmpfs", "ramfs")


def clock() -> float:
    return time.time()


def _is_hole(descriptor: int, offset: int, length: int) -> bool:
    """Whether a file was made longer there, and never written to."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        return error.errno == errno.ENXIO  # nothing but a hole from there to the end


@contextlib.contextmanager
def _awaited(pid: int) -> Iterator[None]:
    running.add(pid)
    try:
        yield
    finally:
        running.discard(pid)


def _cgroup(of_version_2: str, of_version_1: str) -> str:
    """A file of the control group that this process sees as its own; empty where there is none."""
    for path in (f"/sys/fs/cgroup/{of_version_2}", f"/sys/fs/cgroup/{of_version_1}"):
        with contextlib.suppress(OSError):
            return Path(path).read_text()
    return ""


def _popen(
    argv: Sequence[str], cwd: str | None, env: Mapping[str, str | None] | None, *, stdin: int, stderr: int
) -> subprocess.Popen[bytes]:
    merged = {**os.environ, **(env or {})}
    return subprocess.Popen(
        list(argv),
        cwd=cwd,
        env={name: value for name, value in merged.items() if value is not None},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
