"""The system's ssh: a real terminal for `attach`, and full speed for large files.

Windows ships ssh since 2018. It runs with a configuration of our own: the user's may enable multiplexing, which breaks
on Windows, and the host key must be the one that was checked.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import IO, Any, cast

from deploy.pod.base import folder
from deploy.shell.agent_program import BOOTSTRAP
from deploy.shell.host_keys import HostKeys
from deploy.specs.machine import Machine

# AES runs in hardware. Several streams share the processor, so the cost of each one counts. A full list, because
# Windows' first ssh cannot move single ciphers to the front ("^").
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr"
GET_SSH = "Windows: Settings, Optional features, OpenSSH Client; Debian, Ubuntu: apt-get install openssh-client"
CONNECT_S = 15
PIPE_BYTES = 1 << 20
SAYS_LAST_S = 1.0  # a process ends shortly after its output
# What a user's file may set for his own logins: it would run another program than ours, or none. Older versions of ssh
# do not know each keyword; whether the user's file is valid was asked before, with his own IgnoreUnknown.
PLAIN = {
    "IgnoreUnknown": "*",
    "RemoteCommand": "none",
    "SessionType": "default",
    "StdinNull": "no",
    "ForkAfterAuthentication": "no",
    "PermitLocalCommand": "no",
    "Tunnel": "no",
}
OWN_ERROR = 255  # exit code of ssh itself; any other is the command's
# What every login shell passes on as it is. In zsh a leading = looks a program up, in fish %self is a number and \
# escapes inside quotes too, in csh ! recalls a command, and a line end ends it.
PLAIN_WORD = re.compile(r"[\w@+:,./-][\w@%+:,./=-]*", re.ASCII)
QUOTABLE = re.compile(r"[^'\\!\r\n]*")
# Other words travel as digits. Python ignores two signals, which a program started by it would inherit.
DECODER = (
    "import os,signal as s,sys;s.signal(s.SIGPIPE,s.SIG_DFL);s.signal(s.SIGXFSZ,s.SIG_DFL);"
    "a=[bytes.fromhex(x[1:]) for x in sys.argv[1:]];os.execvp(a[0],a)"
)


def config_of(machine: Machine, host_keys: HostKeys, user: str, home: PurePath) -> str:
    """Return our ssh_config for one machine. The first value wins, so ours come before the user's file.

    Paths contain the home folder: Python finds it in the environment, ssh in the user database, and both must read the
    same files.
    """
    address = machine.address
    assert address is not None
    ours, theirs = quoted(host_keys.seen), quoted(home / ".ssh" / "known_hosts")
    own: dict[str, str | int | None] = {
        "Port": address.port,
        "User": user,
        "IdentityFile": quoted(_same_kind(home, address.key)) if address.key else None,
        "IdentitiesOnly": "yes" if address.key else None,
        "HostKeyAlias": host_keys.alias,
        "UserKnownHostsFile": ours,
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ConnectTimeout": CONNECT_S,
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
        "TCPKeepAlive": "yes",
        "Ciphers": CIPHERS,
        "Compression": "no",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "LogLevel": "ERROR",
    }
    lines = [f"{key} {value}" for key, value in PLAIN.items()]
    lines += [f"Host {address.host}"]
    lines += [f"  {key} {value}" for key, value in own.items() if value is not None]
    # For gateways as well: no multiplexing, and the host keys that were accepted for them.
    # A relative path is one in ~/.ssh. To Git's ssh for Windows, which comes first in Git Bash, C:/… is relative too.
    included = "config" if isinstance(home, PureWindowsPath) else quoted(home / ".ssh" / "config")
    lines += ["Host *", "  ControlMaster no", "  ControlPath none", f"  Include {included}"]
    lines += [f"  UserKnownHostsFile {theirs} {ours}", ""]
    return "\n".join(lines)


def write_config(machine: Machine, host_keys: HostKeys, user: str) -> Path:
    """Write the configuration file for ssh and return its path."""
    path = host_keys.seen.with_suffix(".config")
    data = config_of(machine, host_keys, user, Path.home()).encode("utf-8")
    if not path.exists() or path.read_bytes() != data:
        folder.write_bytes(path, data, mode=0o600)
    return path


def quoted(path: PurePath) -> str:
    """Quote a path for ssh_config, where a backslash escapes, % begins a token and a quote ends the string."""
    return '"' + path.as_posix().replace("%", "%%").replace('"', '\\"') + '"'


def command(config: Path, machine: Machine, argv: Sequence[str], *, terminal: bool) -> list[str]:
    """Return ssh's argument list. The machine's login shell splits the words again, so they are quoted for it."""
    return [*_ssh(config, machine, "-t" if terminal else "-T"), for_any_shell(argv)]


def for_any_shell(argv: Sequence[str]) -> str:
    """Return a line that starts a program with these words, in whichever login shell the machine has."""
    if not all(QUOTABLE.fullmatch(word) for word in argv):
        argv = ["python3", "-IS", "-c", DECODER, *("x" + os.fsencode(word).hex() for word in argv)]
    return " ".join(word if PLAIN_WORD.fullmatch(word) else f"'{word}'" for word in argv)


def agent_command(config: Path, machine: Machine) -> list[str]:
    """Return ssh's argument list for the agent. ssh must not ask anything."""
    return [*_ssh(config, machine, "-T", "-o", "BatchMode=yes"), BOOTSTRAP]


class ProcessStream:
    """Stream to an agent over a process, such as `agent_command`. Raises OSError if the program is missing."""

    def __init__(self, argv: Sequence[str]) -> None:
        # Ctrl-C must reach this program only, which decides what happens to its transfers.
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        self.process = subprocess.Popen(
            list(argv),
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
        self._hearing = threading.Thread(target=self._hear, args=(self.process.stderr,), daemon=True, name="ssh stderr")
        self._hearing.start()

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

    def exit_code(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(SAYS_LAST_S)
            return code if 0 <= code < OWN_ERROR else None
        return None

    def complaint(self) -> list[str]:
        if self.process.poll() is not None:
            self._hearing.join(SAYS_LAST_S)
        lines = []
        while not self.said.empty():
            lines.append(self.said.get())
        return lines[-10:]

    def _hear(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                self.said.put(line.decode("utf-8", errors="replace").rstrip())


def _ssh(config: Path, machine: Machine, *options: str) -> list[str]:
    assert machine.address is not None
    return ["ssh", "-F", str(config), *options, "--", machine.address.host]


def _same_kind(home: PurePath, path: str) -> PurePath:
    """Return a path of the laptop in the type of `home`, with a leading `~` expanded."""
    made = type(home)(path)
    return home.joinpath(*made.parts[1:]) if made.parts[:1] == ("~",) else made


def _widen(pipe: io.FileIO) -> None:
    """Enlarge a pipe, so that this process and ssh switch less often. Only on Linux, if the system allows it."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
