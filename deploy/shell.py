"""The only place that runs a command on a machine, or touches its files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

from deploy.errors import StepFailed
from deploy.machine import Hardware, Machine
from deploy.pod import folder, processes

CHUNK_BYTES = 8 << 20
EVIDENCE_LINES = 10


@dataclass(frozen=True)
class Result:
    """How a command ended; true when it succeeded."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    def __bool__(self) -> bool:
        return self.exit_code == 0

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", errors="replace")

    @property
    def complaint(self) -> list[str]:
        """The last lines that the command said, on either stream."""
        return (self.stderr or self.stdout).decode("utf-8", errors="replace").strip().splitlines()[-EVIDENCE_LINES:]


class Shell(Protocol):
    """What a machine can be asked for. Paths belong to the machine; every command has a limit."""

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: PurePath | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        limit_s: float = 60,
        check: bool = True,
    ) -> Result: ...

    def stream(self, argv: Sequence[str], *, cwd: PurePath | None = None) -> Iterator[str]:
        """The lines of a command while it runs; raises StepFailed with the last of them when it fails."""

    def spawn(self, argv: Sequence[str], *, cwd: PurePath) -> int:
        """Start a process that outlives this one and its terminal; its pid."""

    def which(self, program: str) -> str | None: ...

    def hardware(self) -> Hardware: ...

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
        """Bytes of a file from an offset; empty behind its end; FileNotFoundError when it is not there."""

    def write(self, path: PurePath, data: bytes) -> None:
        """Replace a whole file in one step."""

    def write_at(self, path: PurePath, offset: int, data: bytes) -> None:
        """Write a range of a file, which is made, with its folders, when it is not there."""

    def replace(self, source: PurePath, destination: PurePath) -> None:
        """Flush `source` to disk and rename it over `destination`."""

    def size(self, path: PurePath) -> int | None: ...

    def sha256(self, path: PurePath) -> str: ...

    def listdir(self, path: PurePath) -> list[str]: ...

    def remove(self, path: PurePath) -> None:
        """Remove a file or a folder; removing what is gone is success."""

    def free_bytes(self, path: PurePath) -> int: ...

    def clock(self) -> float:
        """The machine's own time, in Unix seconds: heartbeats are compared with it."""


def open_shell(machine: Machine) -> Shell:
    return LocalShell()


class LocalShell:
    """This computer. No command ever goes through a command interpreter."""

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: PurePath | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        limit_s: float = 60,
        check: bool = True,
    ) -> Result:
        with self._popen(argv, cwd, env, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=limit_s)
            except subprocess.TimeoutExpired:
                processes.kill_tree(process.pid)
                stdout, stderr = process.communicate()
                raise StepFailed(
                    f"{_name(argv)} did not end within {limit_s:g} s", evidence=_last_lines(stderr or stdout)
                ) from None
            except BaseException:
                processes.kill_tree(process.pid)
                raise
        result = Result(tuple(argv), process.returncode, stdout, stderr)
        if check and not result:
            raise StepFailed(f"{_name(argv)} failed with exit code {result.exit_code}", evidence=result.complaint)
        return result

    def stream(self, argv: Sequence[str], *, cwd: PurePath | None = None) -> Iterator[str]:
        seen: list[str] = []
        with self._popen(argv, cwd, None, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
            try:
                for line in process.stdout or ():
                    seen = [
                        *seen[1 - EVIDENCE_LINES :],
                        line.decode("utf-8", errors="replace").rstrip("\r\n"),
                    ]
                    yield seen[-1]
            except BaseException:
                processes.kill_tree(process.pid)
                raise
        if process.returncode != 0:
            raise StepFailed(f"{_name(argv)} failed with exit code {process.returncode}", evidence=seen)

    def spawn(self, argv: Sequence[str], *, cwd: PurePath) -> int:
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            # A console of its own that nobody sees: without one, every child would open a window.
            options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        null = subprocess.DEVNULL
        process = subprocess.Popen(list(argv), cwd=cwd, stdin=null, stdout=null, stderr=null, **options)
        process.returncode = 0  # it is meant to outlive this process, so its destructor must not complain
        return process.pid

    def foreground(self, argv: Sequence[str], *, cwd: Path, without: Sequence[str] = ()) -> int:
        """Lend this terminal to a command until it ends; its exit code."""
        env = {name: value for name, value in os.environ.items() if name not in without}
        return subprocess.call(list(argv), cwd=cwd, env=env)

    def which(self, program: str) -> str | None:
        return shutil.which(program)

    def hardware(self) -> Hardware:
        cores = os.cpu_count() or 1
        if sys.platform == "linux":  # fewer where this process was given a part of the computer
            cores = len(os.sched_getaffinity(0))
        smi = self.which("nvidia-smi")
        listing = self.run([smi, "-L"], limit_s=30, check=False).text if smi else ""
        return Hardware(gpus=sum(line.startswith("GPU ") for line in listing.splitlines()), cores=cores)

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
        with folder.open_shared(Path(path)) as file:
            file.seek(offset)
            return file.read(-1 if limit is None else limit)

    def write(self, path: PurePath, data: bytes) -> None:
        folder.write_bytes(Path(path), data)

    def write_at(self, path: PurePath, offset: int, data: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "r+b" if Path(path).exists() else "w+b") as file:
            file.seek(offset)
            file.write(data)

    def replace(self, source: PurePath, destination: PurePath) -> None:
        with open(source, "r+b") as file:
            os.fsync(file.fileno())
        folder.replace(Path(source), Path(destination))

    def size(self, path: PurePath) -> int | None:
        try:
            return Path(path).stat().st_size
        except OSError:
            return None

    def sha256(self, path: PurePath) -> str:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def listdir(self, path: PurePath) -> list[str]:
        return sorted(os.listdir(path)) if Path(path).is_dir() else []

    def remove(self, path: PurePath) -> None:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def free_bytes(self, path: PurePath) -> int:
        """Room on the disk of the nearest folder that exists."""
        place = Path(path).absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def clock(self) -> float:
        return time.time()

    @staticmethod
    def _popen(
        argv: Sequence[str], cwd: PurePath | None, env: Mapping[str, str] | None, *, stdin: int, stderr: int
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=dict(env) if env is not None else None,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        except FileNotFoundError as error:
            raise StepFailed(f"{argv[0]} was not found") from error


def _name(argv: Sequence[str]) -> str:
    """A command as a person would call it: `git add`, `python -m app.config`."""
    words = [Path(argv[0]).stem, *argv[1:3]]
    return " ".join(words[: 3 if words[1:2] == ["-m"] else 2])


def _last_lines(output: bytes) -> list[str]:
    return output.decode("utf-8", errors="replace").strip().splitlines()[-EVIDENCE_LINES:]
