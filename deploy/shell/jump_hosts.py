"""The way to a machine through others: the gateways of `ProxyJump`, and the program of a `ProxyCommand`."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from deploy.errors import WrongUse
from deploy.shell.base import last_lines
from deploy.shell.ssh_config import MOST_JUMPS, Way, parts, way_to

if TYPE_CHECKING:
    from fabric import Connection as Connection

SAYS_LAST_S = 1.0  # the last words of a program follow shortly after its end
PIECE_BYTES = 64 << 10
HELD_BYTES = 1 << 20  # unread output of a ProxyCommand; above it the program has to wait
Make = Callable[[Way, Any], "Connection"]


def gateway_of(way: Way, make: Make, made: list[tuple[str, Connection]], depth: int = 0) -> Any:
    """Make the gateway of a host: a connection, perhaps behind further gateways, or a ProxyCommand.

    `make(way, gateway)` makes a connection without opening it. Each is added to `made`, with its name in the user's
    configuration. Returns False without a gateway: with None, Fabric would look for one itself. Raises WrongUse above
    MOST_JUMPS gateways, such as in a cycle.
    """
    if way.proxy_command and not way.jumps:
        tokens = {"%": "%", "h": way.host, "n": way.host, "p": str(way.port), "r": way.user}
        return re.sub(r"%([%hnpr])", lambda token: tokens[token[1]], way.proxy_command)
    gateway: Any = False
    for jump in way.jumps:
        if depth + len(made) >= MOST_JUMPS:
            raise WrongUse(f"{way.host} needs more than {MOST_JUMPS} gateways: check ProxyJump in ~/.ssh/config")
        user, host, port = parts(jump)
        hop = way_to(host, user, port)
        # The first gateway may be behind others. A `ProxyJump` under `Host *` names a gateway for the gateway itself.
        if gateway is False and jump not in hop.jumps:
            gateway = gateway_of(hop, make, made, depth + 1)
        gateway = make(hop, gateway)
        made.append((host, gateway))
    return gateway


def chain(connection: Any) -> Iterator[Any]:
    """Yield the connection, then its gateways."""
    from fabric import Connection

    while isinstance(connection, Connection):
        yield connection
        connection = connection.gateway


class ProxyProgram:
    """The program of a ProxyCommand, as the socket that Paramiko expects.

    Paramiko's own class waits with `select`, which takes no pipes on Windows, splits a Windows path at its backslashes,
    and keeps a core busy until its timeout once the program has ended. Here a thread reads.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        argv = command if sys.platform == "win32" else shlex.split(command)  # Windows starts programs by a line
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        self.timeout: float | None = None
        self.transport: threading.Thread | None = None  # that calls `recv`
        self._closed = False
        self._held = bytearray()
        self._is_over = False
        self._changed = threading.Condition()
        self._reading = threading.Thread(target=self._read, daemon=True, name="proxy stdout")
        self._reading.start()

    def settimeout(self, timeout_s: float | None) -> None:
        self.timeout = timeout_s

    def send(self, data: bytes) -> int:
        """Send the beginning of `data`; returns its length. Raises ProxyCommandFailure once the program has ended."""
        import paramiko

        assert self.process.stdin
        try:
            return int(self.process.stdin.write(data))
        except (OSError, ValueError) as error:  # the program has ended, or `end` closed its input
            raise paramiko.ProxyCommandFailure(self.command, str(error)) from error

    def recv(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._held or self._is_over or self._closed, self.timeout):
                raise TimeoutError
            data = bytes(self._held[:size])
            del self._held[:size]
            self._changed.notify_all()
            return data

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.process.kill()

    def end(self) -> None:
        """Kill the program and close its pipes, after the thread of Paramiko has seen the end."""
        self.close()
        self.process.wait()
        for thread, pipe in ((self.transport, self.process.stdin), (self._reading, self.process.stderr)):
            if thread is not None and thread.is_alive():
                thread.join(SAYS_LAST_S)
            if pipe:  # a child that outlives the program may read until its input is closed
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        assert self.process.stdout
        with contextlib.suppress(OSError), self.process.stdout as output:
            while data := output.read(PIECE_BYTES):
                with self._changed:
                    self._changed.wait_for(lambda: len(self._held) < HELD_BYTES or self._closed)
                    self._held += data
                    self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


def last_words(proxy: ProxyProgram | None) -> str:
    """Return the last lines of a ProxyCommand's stderr."""
    said: list[bytes] = []
    errors = proxy.process.stderr if proxy else None

    def listen() -> None:  # in a thread: a child of the command may hold its stderr open
        with contextlib.suppress(OSError, ValueError):
            while errors and (data := errors.read(1 << 12)):
                said.append(data)

    if proxy is not None:
        hearing = threading.Thread(target=listen, daemon=True, name="proxy stderr")
        hearing.start()
        hearing.join(SAYS_LAST_S)
    return " ".join(last_lines(b"".join(said))[-3:])[:200]
