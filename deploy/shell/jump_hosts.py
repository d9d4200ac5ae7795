"""The way to a machine through others: the gateways of `ProxyJump`, and the program of a `ProxyCommand`."""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from deploy.errors import WrongUse
from deploy.shell.base import last_lines
from deploy.shell.ssh_config import MOST_JUMPS, Way, parts, way_to

if TYPE_CHECKING:
    from fabric import Connection as Connection

SAYS_LAST_S = 1.0  # the last words of a program follow shortly after its end
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


def start_proxy(command: str) -> Any:
    """Start a ProxyCommand.

    Paramiko's `close` kills it by pid, which fails if it has ended. Its `recv` keeps a core busy until its timeout
    when the command has ended.
    """
    import paramiko

    proxy = paramiko.ProxyCommand(command)
    output = proxy.process.stdout.fileno()

    def recv(size: int) -> bytes:
        if not select.select([output], [], [], proxy.timeout)[0]:
            raise TimeoutError
        return os.read(output, size)

    proxy.close = proxy.process.kill
    proxy.recv = recv
    return proxy


def end_proxy(sock: Any) -> None:
    """Kill a ProxyCommand, which Paramiko does not, and close its pipes after the reading thread has seen the end."""
    process = getattr(sock, "process", None)
    if process is None:
        return
    process.kill()
    process.wait()
    reader = getattr(sock, "reader", None)
    if reader is not None and reader.is_alive():
        reader.join(SAYS_LAST_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            pipe.close()


def last_words(proxy: Any) -> str:
    """Return the last lines of a ProxyCommand's stderr."""
    said: list[bytes] = []

    def listen() -> None:  # in a thread: a child of the command may hold its stderr open
        with contextlib.suppress(OSError, ValueError):
            while data := proxy.process.stderr.read(1 << 12):
                said.append(data)

    if proxy is not None:
        hearing = threading.Thread(target=listen, daemon=True, name="proxy stderr")
        hearing.start()
        hearing.join(SAYS_LAST_S)
    return " ".join(last_lines(b"".join(said))[-3:])[:200]
