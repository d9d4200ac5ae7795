"""Run `invoke` commands in forked processes that have Invoke and other packages loaded already.

Loading packages takes most of a command's time, and the tests run hundreds of commands. So a server loads them once and
forks for each command. It loads no code of this project: each command loads that from the folder it runs in. Each
has its own arguments, environment, streams and exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

# Packages that commands import and that keep no state between commands.
PACKAGES = ("docker", "invoke.main", "omegaconf", "paramiko", "requests", "rich.console", "rich.table", "yaml")


class Forks:
    """Client of the fork server, which starts at first use and ends with the tests."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="forks-")
        self.address = str(Path(self.folder.name, "socket"))
        self.environment = {key: value for key, value in os.environ.items() if key.startswith("PYTHON")}
        self.environment["PYTHONUTF8"] = "1"
        command = [sys.executable, "-m", "tests.support.forks", self.address]
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            env={**os.environ, **self.environment},
        )  # fmt: skip
        assert self.process.stdout
        assert self.process.stdout.readline() == b"ready\n"
        atexit.register(self.close)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()

    def can_run(self, environment: Mapping[str, str]) -> bool:
        """Whether the PYTHON* variables equal the server's: Python reads them only at startup."""
        return {key: value for key, value in environment.items() if key.startswith("PYTHON")} == self.environment

    def run(
        self, argv: Sequence[str], cwd: Path, environment: Mapping[str, str], limit_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `invoke` with these arguments. Raises subprocess.TimeoutExpired, as subprocess.run does."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(limit_s)
                line.connect(self.address)
                order = json.dumps({"argv": list(argv), "cwd": str(cwd), "env": dict(environment)}).encode()
                socket.send_fds(line, [len(order).to_bytes(4, "big")], [out.fileno(), err.fileno()])
                line.sendall(order)
                answer = line.makefile("r")
                pid = int(answer.readline())
                try:
                    code = int(answer.readline())
                except TimeoutError as error:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(argv), limit_s, _text(out), _text(err)) from error
            return subprocess.CompletedProcess(["invoke", *argv], code, _text(out), _text(err))


@functools.cache
def forks() -> Forks | None:
    """The client; None on Windows, which cannot fork."""
    return Forks() if hasattr(os, "fork") else None


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8").replace("\r\n", "\n"))


def serve(address: str) -> None:
    """Serve until killed. Forks a process per request, which waits for the command, so the server never waits."""
    for package in PACKAGES:
        __import__(package)
    gc.collect()
    gc.freeze()  # else each command spends a third of its time on freeing these packages when it ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the exit codes of these processes are not needed
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(16)
        print("ready", flush=True)
        while True:
            line, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _wait(line)
            line.close()


def _wait(line: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, fds, _, _ = socket.recv_fds(line, 4, 2)
    with line.makefile("rb") as reader:
        order = json.loads(reader.read(int.from_bytes(head, "big")))
    pid = os.fork()
    if pid == 0:
        line.close()
        _command(order, fds)
    line.sendall(b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # the client may be gone
        line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _command(order: Mapping[str, Any], fds: Sequence[int]) -> NoReturn:
    """Run as `python -m invoke` would."""
    out, err = fds
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    import invoke
    from invoke.main import program

    sys.path[0] = os.getcwd()
    sys.argv = [str(Path(invoke.__file__).with_name("__main__.py")), *order["argv"]]
    program.run()  # raises SystemExit on failure
    sys.exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
