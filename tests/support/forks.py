"""Run Python commands in forked processes that have loaded large packages already.

Loading packages takes most of a command's time: for `invoke` half a second, with torch two seconds or more. The tests
run hundreds of commands. So servers (tests/support/fork_server.py) load the packages once and fork for each command.
Forks of one server have the same hash seed. So some tests start torchrun itself: tests/e2e, and those of signals.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.support.load import under_load

PROJECT = Path(__file__).parents[2]
# Packages that commands import and that keep no state between commands.
OF_INVOKE = ("docker", "invoke.main", "omegaconf", "paramiko", "requests", "rich.console", "rich.table", "yaml")
# Modules of the project whose dataclasses most commands define.
COMMANDS = ("tasks", "deploy.commands.train", "deploy.commands.status", "deploy.commands.down", "deploy.commands.runs")
TRAINING = ("app.train", "app.prepare", "app.mine", "app.evaluate")
# DistributedDataParallel loads torch._dynamo.
OF_TRAINING = (
    "torch", "torch._dynamo", "torch.distributed.launcher.api", "faiss", "hydra.compose",
    "hydra.grammar.gen.OverrideLexer", "numba.typed", "numpy", "omegaconf", "PIL.Image", "scipy.optimize",
    "scipy.sparse.csgraph", "simplejpeg", "yaml",
)  # fmt: skip
# Python and libraries read variables with these prefixes only when they are loaded.
READ_AT_START = ("PYTHON", "LD_", "MKL_", "NUMBA_", "OMP_")


class Process:
    """A forked command: what the tests use of subprocess.Popen."""

    def __init__(self, line: socket.socket, args: Sequence[str], stdin: IO[bytes] | None) -> None:
        self.args, self.stdin, self.returncode = list(args), stdin, None
        self._line = line
        self._answer = line.makefile("r")
        self.pid = int(self._answer.readline())

    def poll(self) -> int | None:
        self._listen(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired."""
        self._listen(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stdin:
            self.stdin.close()
        self.wait()

    def _listen(self, timeout: float | None) -> None:
        if self.returncode is None and select.select([self._line], [], [], timeout)[0]:
            self.returncode: int | None = int(self._answer.readline())
            self._answer.close()
            self._line.close()


class Forks:
    """Client of a fork server, which starts at first use and ends with the tests."""

    def __init__(self, modules: Sequence[str], packages: Sequence[str], **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="forks-")
        self.address = str(Path(self.folder.name, "socket"))
        self.environment = _read_at_start({**os.environ, **environment})
        command = [sys.executable, "-m", "tests.support.fork_server", self.address, " ".join(modules), *packages]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment}
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == b"ready\n"
        atexit.register(self.close)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()

    def can_run(self, environment: Mapping[str, str]) -> bool:
        """Whether the variables that count only at start equal the server's."""
        return _read_at_start(environment) == self.environment

    def start(
        self, argv: Sequence[str], cwd: Path, environment: Mapping[str, str], *,
        stdin: int | None = None, stdout: IO[Any], stderr: IO[Any],
    ) -> Process:  # fmt: skip
        """Start `python *argv`. `stdin` may be subprocess.PIPE; without it, there is no input."""
        read, write = os.pipe() if stdin == subprocess.PIPE else (os.open(os.devnull, os.O_RDONLY), None)
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(self.address)
            order = json.dumps({"argv": [*map(str, argv)], "cwd": str(cwd), "env": dict(environment)}).encode()
            socket.send_fds(line, [len(order).to_bytes(4, "big")], [read, stdout.fileno(), stderr.fileno()])
            line.sendall(order)
        finally:
            os.close(read)
        return Process(line, argv, None if write is None else open(write, "wb", buffering=0))

    def run(
        self, argv: Sequence[str], cwd: Path, environment: Mapping[str, str], limit_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `python *argv`. Raises subprocess.TimeoutExpired, as subprocess.run does."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self.start(argv, cwd, environment, stdout=out, stderr=err)
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired as error:
                process.kill()
                process.wait()
                raise subprocess.TimeoutExpired([*argv], limit_s, _text(out), _text(err)) from error
            return subprocess.CompletedProcess([*argv], code, _text(out), _text(err))


@functools.cache
def forks() -> Forks | None:
    """The client for commands of `invoke`; None on Windows, which cannot fork."""
    return Forks(COMMANDS, OF_INVOKE, PYTHONUTF8="1") if hasattr(os, "fork") else None


@functools.cache
def training_forks() -> Forks | None:
    """The client for commands of the app; None where torch does not survive a fork."""
    return Forks(TRAINING, OF_TRAINING, OMP_NUM_THREADS="1") if sys.platform == "linux" else None


def start_training(
    argv: Sequence[str], cwd: Path, environment: Mapping[str, str], *, stdin: int | None = None, output: IO[Any]
) -> Process | subprocess.Popen[bytes]:
    """Start `python *argv` with torch loaded, if possible. Both its streams go to `output`."""
    server = training_forks()
    if server is not None and server.can_run(environment):
        return server.start(argv, cwd, environment, stdin=stdin, stdout=output, stderr=output)
    return subprocess.Popen(
        [sys.executable, *argv], cwd=cwd, env=environment,
        stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=output, stderr=output,
    )  # fmt: skip


def run_training(
    argv: Sequence[str], cwd: Path, environment: Mapping[str, str], limit_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `python *argv` with torch loaded, if possible. `limit_s` is for an idle computer.

    Raises subprocess.TimeoutExpired.
    """
    limit_s = under_load(limit_s)
    server = training_forks()
    if server is not None and server.can_run(environment):
        return server.run(argv, cwd, environment, limit_s)
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=limit_s, check=False,
    )  # fmt: skip


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(READ_AT_START)}


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8").replace("\r\n", "\n"))
