"""Run Python commands in forked processes that have loaded large packages already.

Loading packages takes most of a command's time: for `invoke` half a second, with torch two seconds or more. The tests
run hundreds of commands. So servers (tests/support/fork_server.py) load the packages once and fork for each command.
If several processes test, they share the servers.
Forks of one server have the same hash seed. So some tests start torchrun itself: tests/e2e, and those of signals.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.support.load import under_load

PROJECT = Path(__file__).parents[2]
# Packages that commands, and an SSH server of the tests, import and that keep no state between commands.
OF_INVOKE = (
    "asyncssh", "ctypes", "docker", "fabric", "invoke.main", "omegaconf", "paramiko", "requests", "rich.ansi",
    "rich.console", "rich.progress", "rich.table", "secrets", "statistics", "tomli", "yaml",
)  # fmt: skip
# Modules of the project that load, together, what most commands do.
COMMANDS = (
    "tasks", "deploy.commands.app", "deploy.commands.compare", "deploy.commands.doctor", "deploy.commands.logs",
    "deploy.commands.ps", "deploy.commands.rental", "deploy.commands.runs", "deploy.commands.status",
    "deploy.commands.stop", "deploy.commands.sweep", "deploy.commands.train", "deploy.commands.watch",
    "deploy.providers.docker", "deploy.providers.local", "deploy.providers.runpod", "deploy.providers.ssh",
    "deploy.shell.lanes", "deploy.shell.ssh",
)  # fmt: skip
TRAINING = ("app.train", "app.prepare", "app.mine", "app.evaluate")
# DistributedDataParallel loads torch._dynamo.
OF_TRAINING = (
    "torch", "torch._dynamo", "torch.distributed.launcher.api", "faiss", "hydra.compose",
    "hydra.grammar.gen.OverrideLexer", "numba.typed", "numpy", "omegaconf", "PIL.Image", "scipy.optimize",
    "scipy.sparse.csgraph", "simplejpeg", "yaml",
)  # fmt: skip
SHARED = "SNIPERFACE_TEST_FORKS"  # the folder of the servers that processes share
# Python and libraries read variables with these prefixes only when they are loaded.
READ_AT_START = ("PYTHON", "LD_", "MKL_", "NUMBA_", "OMP_")


class Process(subprocess.Popen[Any]):
    """A command that a server forks: used as any other, though it is no child of this process."""

    def __init__(
        self, address: str, argv: Sequence[str], cwd: Path, environment: Mapping[str, str], **streams: Any
    ) -> None:
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(address)
        super().__init__([*map(str, argv)], cwd=cwd, env=environment, **streams)

    def _execute_child(self, args: list[str], _: Any, *rest: Any) -> None:
        """Ask the server instead of forking; the ends of the pipes come in the order of Python 3.10 to 3.14."""
        cwd, environment = rest[3:5]
        ends = rest[8:14]
        read, _, _, write, _, error = ends
        order = json.dumps({"argv": args, "cwd": str(cwd), "env": dict(environment)}).encode()
        socket.send_fds(self._line, [len(order).to_bytes(4, "big")], [read, write, error])
        self._line.sendall(order)
        self._answer = self._line.makefile("r")
        self.pid = int(self._answer.readline())
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]

    def _wait(self, timeout: float | None) -> int:
        if self._internal_poll(timeout=timeout) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _internal_poll(self, _deadstate: Any = None, timeout: float | None = 0) -> int | None:
        if self.returncode is None and select.select([self._line], [], [], timeout)[0]:
            self.returncode = int(self._answer.readline() or -9)  # without an answer the server was killed
            self._answer.close()
            self._line.close()
        return self.returncode


def _server(address: str, modules: Sequence[str], packages: Sequence[str]) -> list[str]:
    return ["-m", "tests.support.fork_server", address, " ".join(modules), *packages]


def _wait_for(server: subprocess.Popen[Any]) -> None:
    assert server.stdout
    assert server.stdout.readline() == b"ready\n"


class Forks:
    """Client of a fork server. The server is shared, or starts at first use and ends with the tests."""

    def __init__(self, name: str, modules: Sequence[str], packages: Sequence[str], **environment: str) -> None:
        environment = {**os.environ, **environment}
        self.environment = _read_at_start(environment)
        shared = os.environ.get(SHARED)
        if shared:
            self.address = str(Path(shared, name))
            return
        self.folder = tempfile.TemporaryDirectory(prefix="forks-")
        self.address = str(Path(self.folder.name, name))
        self.process = subprocess.Popen(
            [sys.executable, *_server(self.address, modules, packages)],
            cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        _wait_for(self.process)
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
        stdin: int = subprocess.DEVNULL, stdout: Any, stderr: Any, **text: Any,
    ) -> Process:  # fmt: skip
        """Start `python *argv`. The streams and `text` are those of subprocess.Popen."""
        return Process(self.address, argv, cwd, environment, stdin=stdin, stdout=stdout, stderr=stderr, **text)

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
    return Forks("invoke", COMMANDS, OF_INVOKE, PYTHONUTF8="1") if hasattr(os, "fork") else None


@functools.cache
def training_forks() -> Forks | None:
    """The client for commands of the app; None where torch does not survive a fork."""
    return Forks("training", TRAINING, OF_TRAINING, OMP_NUM_THREADS="1") if sys.platform == "linux" else None


def share() -> None:
    """Start both servers. The processes that test, which inherit the environment, then share them."""
    invoke, training = forks(), training_forks()
    assert invoke is not None
    assert training is not None
    folder = training.folder.name
    Path(folder, "invoke").symlink_to(invoke.address)
    os.environ[SHARED] = folder


def start_command(argv: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start `python *argv` with the packages of `invoke` loaded, if possible, and with pipes for its text."""
    server = forks()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    if server is not None and server.can_run(environment):
        return server.start(argv, cwd, environment, **pipes)
    return subprocess.Popen([sys.executable, *argv], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, **pipes)


def start_server(argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `python *argv` in this project with asyncssh loaded, if possible, and with a pipe for what it prints."""
    server, utf8 = forks(), {**environment, "PYTHONUTF8": "1"}
    if server is not None and server.can_run(utf8):
        return server.start(argv, PROJECT, utf8, stdout=subprocess.PIPE, stderr=2)
    return subprocess.Popen(
        [sys.executable, *argv], cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )


def start_training(
    argv: Sequence[str], cwd: Path, environment: Mapping[str, str], *,
    stdin: int = subprocess.DEVNULL, output: IO[Any],
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Start `python *argv` with torch loaded, if possible. Both its streams go to `output`."""
    server = training_forks()
    if server is not None and server.can_run(environment):
        return server.start(argv, cwd, environment, stdin=stdin, stdout=output, stderr=output)
    return subprocess.Popen(
        [sys.executable, *argv], cwd=cwd, env=environment, stdin=stdin, stdout=output, stderr=output
    )


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
