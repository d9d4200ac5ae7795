"""The system's own ssh: a real terminal for `attach`, and full speed for large files.

Windows ships it since 2018. It is used with a configuration of our own: the user's may ask for multiplexing, which
breaks it on Windows, and the host key must be the one that was checked.
"""

from __future__ import annotations

import contextlib
import io
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from deploy.machine import Machine
from deploy.shell.host_keys import HostKeys
from deploy.shell.link import BOOTSTRAP

# Hardware does AES; several streams share the processor, so what one costs is what counts. A whole list, for Windows'
# first ssh does not know how to put a few in front ("^").
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr"
PIPE_BYTES = 1 << 20


def write_config(machine: Machine, host_keys: HostKeys, user: str) -> Path:
    """Our ssh_config for one machine. First values win, so ours stand before the user's own file."""
    address = machine.address
    assert address is not None
    own: dict[str, str | int | None] = {
        "Port": address.port,
        "User": user,
        "IdentityFile": _quoted(Path(address.key)) if address.key else None,
        "IdentitiesOnly": "yes" if address.key else None,
        "HostKeyAlias": host_keys.alias,
        "UserKnownHostsFile": _quoted(host_keys.seen),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
        "TCPKeepAlive": "yes",
        "Ciphers": CIPHERS,
        "Compression": "no",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "LogLevel": "ERROR",
    }
    lines = [f"Host {address.host}"]
    lines += [f"  {key} {value}" for key, value in own.items() if value is not None]
    lines += ["Host *", "Include ~/.ssh/config", ""]
    path = host_keys.seen.with_suffix(".config")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _quoted(path: Path) -> str:
    """A path as ssh_config reads it back: % begins a token there, and a quote ends what is quoted."""
    text = path.as_posix().replace("%", "%%").replace('"', '\\"')
    return f'"{text}"'


def command(config: Path, machine: Machine, argv: Sequence[str], *, terminal: bool) -> list[str]:
    """ssh's argument list. The machine's login shell splits the words again, so they are quoted for it."""
    assert machine.address is not None
    tty = ["-t"] if terminal else ["-T", "-o", "BatchMode=yes"]
    return ["ssh", "-F", str(config), *tty, machine.address.host, shlex.join(argv)]


class ProcessStream:
    """The agent over a process of the system's ssh."""

    def __init__(self, config: Path, machine: Machine) -> None:
        argv = [*command(config, machine, ["true"], terminal=False)[:-1], BOOTSTRAP]
        # Ctrl-C belongs to this program, which decides what becomes of its transfers.
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            **options,
        )
        assert self.process.stdin
        assert self.process.stdout
        self._in = cast(io.FileIO, self.process.stdin)
        self._out = cast(io.FileIO, self.process.stdout)
        for pipe in (self._in, self._out):
            _widen(pipe)
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._hear, args=(self.process.stderr,), daemon=True).start()

    def read_into(self, view: memoryview) -> int:
        return self._out.readinto(view) or 0

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[self._in.write(left) :]

    def close(self) -> None:
        self.process.kill()

    def release(self) -> None:
        self.process.wait()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):
                pipe.close()

    def complaint(self) -> list[str]:
        lines = []
        while not self.said.empty():
            lines.append(self.said.get())
        return lines[-10:]

    def _hear(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                self.said.put(line.decode("utf-8", errors="replace").rstrip())


def _widen(pipe: io.FileIO) -> None:
    """Fewer turns between this process and ssh; where the system allows it."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
