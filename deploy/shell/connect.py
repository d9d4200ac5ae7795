"""One Fabric connection to a machine: who it is, where it is, and a socket that is not slow on Windows."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import WrongUse
from deploy.shell.host_keys import HostKeys, name_of
from deploy.shell.link import BOOTSTRAP, LinkLost, last_lines
from deploy.shell.ssh_config import MOST_JUMPS, Way, parts, way_to
from deploy.specs.machine import Address

if TYPE_CHECKING:
    from fabric import Connection as Connection
    from paramiko import Channel

KEEPALIVE_S = 5
FAREWELL_S = 0.5
NO_KEY = "No authentication methods available"  # Paramiko's only sign of it; its class is that of a broken line
_AGENT = threading.Lock()
SAYS_LAST_S = 1.0  # an exit code follows the last byte closely
WINDOW_BYTES = 16 << 20  # what may be on its way to us; Paramiko's 2 MiB hold a stream to 20 MB/s at 100 ms
# Paramiko sets no buffers, and Windows' 64 KiB hold a stream to some Mbit/s. Elsewhere the system knows better, and
# a size set by hand would switch its own off.
WINDOWS_BUFFER_BYTES = 32 << 20


def broken() -> tuple[type[Exception], ...]:
    """What a broken connection raises, by way of Paramiko."""
    import paramiko

    return (paramiko.SSHException, OSError, EOFError)


def connect(address: Address, host_keys: HostKeys, timeout_s: float) -> Connection:
    """An open connection whose host key was checked; LinkLost when there is none to be had at the moment.

    `timeout_s` is for each step: until the host is reached, until it says hello, until it has let the key in.
    """
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it prints tracebacks of what is retried here
    if address.key:
        _check_key(Path(address.key))
    way = way_to(address.host, address.user, address.port)
    gateways: list[tuple[str, Connection]] = []
    connection = _connection(way, address.key, timeout_s, gateway=_gateway(way, timeout_s, gateways))
    try:
        for called, gateway in gateways:
            host_keys.prepare_gateway(gateway.client, gateway.host, gateway.port, called)
        host_keys.prepare(connection.client, connection.host, connection.port)
        with _agent(way):
            _open(connection, address, host_keys, timeout_s)
    except BaseException:
        disconnect(connection)
        raise
    for each in _chain(connection):
        each.transport.set_keepalive(KEEPALIVE_S)
    host_keys.note(connection.transport.get_remote_server_key())
    return connection


def disconnect(connection: Connection) -> None:
    """Close it, and the gateways that it went through."""
    for each in list(_chain(connection)):
        with contextlib.suppress(*broken()):
            each.client.close()
        _end_proxy(each.connect_kwargs.get("sock"))


def _connection(way: Way, key: str | None, timeout_s: float, gateway: Any) -> Connection:
    """A connection that is not open yet. Its way was read by OpenSSH, so Fabric reads no ssh_config again."""
    import paramiko
    from fabric import Config, Connection

    keys = [key] if key else list(way.keys)
    return Connection(
        way.host,
        user=way.user,
        port=way.port,
        gateway=gateway,
        config=Config(ssh_config=paramiko.SSHConfig()),
        connect_kwargs={
            **({"key_filename": keys} if keys else {}),
            "allow_agent": way.agent != "none",
            "banner_timeout": timeout_s,
            "auth_timeout": 2 * timeout_s,
            "transport_factory": _transport,
        },
        connect_timeout=max(1, round(timeout_s)),
    )


def _gateway(way: Way, timeout_s: float, made: list[tuple[str, Connection]], depth: int = 0) -> Any:
    """What stands before a host: a connection with gateways of its own, or the command that makes one.

    Every connection is added to `made`, with the name that the user's configuration gives it. False where there is
    nothing: with None, Fabric would look for a gateway itself. Raises WrongUse for gateways that lead in a circle.
    """
    if way.proxy_command and not way.jumps:
        tokens = {"%": "%", "h": way.host, "n": way.host, "p": str(way.port), "r": way.user}
        return re.sub(r"%([%hnpr])", lambda token: tokens[token[1]], way.proxy_command)
    gateway: Any = False
    for jump in way.jumps:
        if depth + len(made) >= MOST_JUMPS:
            raise WrongUse(
                f"{way.host} lies behind more than {MOST_JUMPS} gateways: look at ProxyJump in ~/.ssh/config"
            )
        user, host, port = parts(jump)
        hop = way_to(host, user, port)
        # The first gateway may lie behind others; `Host *` with a ProxyJump names a gateway for the gateway itself.
        if gateway is False and jump not in hop.jumps:
            gateway = _gateway(hop, timeout_s, made, depth + 1)
        gateway = _connection(hop, None, timeout_s, gateway)
        made.append((host, gateway))
    return gateway


@contextlib.contextmanager
def _agent(way: Way) -> Iterator[None]:
    """Paramiko finds the agent by SSH_AUTH_SOCK alone; an IdentityAgent stands there while a connection is opened."""
    if way.agent in (None, "none"):
        yield
        return
    with _AGENT:
        before = os.environ.get("SSH_AUTH_SOCK")
        os.environ["SSH_AUTH_SOCK"] = str(way.agent)
        try:
            yield
        finally:
            if before is None:
                del os.environ["SSH_AUTH_SOCK"]
            else:
                os.environ["SSH_AUTH_SOCK"] = before


def _proxy(command: str) -> Any:
    """A ProxyCommand that runs. Paramiko's own ends it by its number, which fails for one that has ended."""
    import paramiko

    proxy = paramiko.ProxyCommand(command)
    proxy.close = proxy.process.kill
    return proxy


def _end_proxy(sock: Any) -> None:
    """End a ProxyCommand, which Paramiko leaves as it is, once the thread that reads from it has seen the end."""
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


class ChannelStream:
    """The agent over a channel of a Fabric connection, which it closes at its end when it is `owned`."""

    def __init__(self, connection: Connection, *, owned: bool = False) -> None:
        self.connection = connection
        self.owned = owned
        self.channel: Channel = connection.transport.open_session(window_size=WINDOW_BYTES, timeout=15)
        self.channel.exec_command(BOOTSTRAP)
        self.channel.settimeout(None)  # who watches over the link breaks it off when it is silent

    def read_into(self, view: memoryview) -> int:
        data: bytes = self.channel.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data: bytes | memoryview) -> None:
        try:
            self.channel.sendall(data)
        except broken() as error:
            raise OSError(str(error) or type(error).__name__) from error

    def close(self) -> None:
        # Paramiko's own close waits until its message went out, which never happens on a dead line with full buffers.
        farewell = threading.Thread(target=self._close_channel, daemon=True, name="farewell")
        farewell.start()
        farewell.join(FAREWELL_S)
        if self.owned or farewell.is_alive():
            disconnect(self.connection)

    def release(self) -> None:
        """A channel has no descriptor of its own."""

    def exit_code(self) -> int | None:
        self.channel.status_event.wait(SAYS_LAST_S)
        return int(self.channel.exit_status) if self.channel.exit_status >= 0 else None

    def complaint(self) -> list[str]:
        said = b""
        with contextlib.suppress(*broken()):
            while self.channel.recv_stderr_ready():
                said += self.channel.recv_stderr(1 << 16)
        return last_lines(said)

    def _close_channel(self) -> None:
        with contextlib.suppress(*broken()):
            self.channel.close()


def _open(connection: Connection, address: Address, host_keys: HostKeys, timeout_s: float) -> None:
    import paramiko

    def stuck() -> Connection:
        """The first one on the way that did not open."""
        return next((each for each in reversed(list(_chain(connection))) if not each.is_connected), connection)

    def where() -> str:
        return f"{stuck().user}@{name_of(stuck().host, stuck().port)}"

    proxy = None
    try:
        if not connection.gateway:
            connection.connect_kwargs["sock"] = _socket(connection.host, connection.port, timeout_s)
        elif isinstance(connection.gateway, str):
            connection.connect_kwargs["sock"] = proxy = _proxy(connection.gateway)
            connection.gateway = False  # else Fabric starts the command a second time
        connection.open()
    except paramiko.BadHostKeyException as error:
        raise host_keys.changed(name_of(stuck().host, stuck().port), error.key) from error
    except paramiko.PasswordRequiredException as error:
        raise WrongUse(
            f"the key for {where()} has a passphrase: give it to your SSH agent first",
            next_command=f'ssh-add "{address.key}"' if address.key else "ssh-add",
        ) from error
    except paramiko.AuthenticationException as error:
        with_key = f"the key {address.key}" if address.key else "any key of the SSH agent or of ~/.ssh"
        raise WrongUse(
            f"{where()} does not let {with_key} in: its public half must be in authorized_keys there; another one can "
            "be named with key: in the target's file",
            next_command=f"ssh -v -p {connection.port} {connection.user}@{connection.host}",
        ) from error
    except broken() as error:
        if NO_KEY in str(error):
            raise WrongUse(
                f"{where()} answers, and this computer has no key to log in with: no SSH agent has one, and none is in "
                "~/.ssh. Make one, add its public half to authorized_keys there, or name one with key: in the "
                "target's file",
                next_command="ssh-keygen -t ed25519",
            ) from error
        said = _last_words(proxy)
        through = f" through its ProxyCommand ({said})" if said else ""
        raise LinkLost(f"{where()} cannot be reached{through}: {_words(error)}") from error


def _last_words(proxy: Any) -> str:
    """What a ProxyCommand that has ended complained about."""
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


def _chain(connection: Any) -> Iterator[Any]:
    """The connection, and behind it its gateways."""
    from fabric import Connection

    while isinstance(connection, Connection):
        yield connection
        connection = connection.gateway


def _check_key(path: Path) -> None:
    """Files that are taken for private keys, and what to do about them."""
    try:
        start = path.expanduser().read_bytes()[:4096]
    except OSError as error:
        reason = error.strerror or str(error)
        raise WrongUse(f"the key file {path} cannot be read ({reason}): set key: in the target's file") from error
    if start.startswith(b"PuTTY-User-Key-File"):
        raise WrongUse(f"{path} is a key of PuTTY: export it as an OpenSSH key (puttygen, Conversions)")
    if b"PRIVATE KEY-----" not in start:
        is_public = path.suffix == ".pub" or start.split(b" ")[0].startswith((b"ssh-", b"ecdsa-"))
        hint = "it is the public half: name the file without .pub" if is_public else "ssh-keygen makes one"
        raise WrongUse(f"{path} is no private key: {hint}")


def _transport(sock: Any, **options: Any) -> Any:
    """AES-GCM first: one pass over the bytes instead of two, and the processor does it."""
    import paramiko

    transport = paramiko.Transport(sock, **options)
    if hasattr(sock, "process"):
        sock.reader = transport
    security = transport.get_security_options()
    ciphers = list(security.ciphers)
    security.ciphers = sorted(ciphers, key=lambda name: not name.endswith("gcm@openssh.com"))
    return transport


def _socket(host: str, port: int, timeout_s: float) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "win32":
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, buffer, WINDOWS_BUFFER_BYTES)
    return sock


def _words(error: BaseException) -> str:
    if isinstance(error, socket.gaierror):
        return "there is no host of this name"
    if isinstance(error, TimeoutError):
        return "no answer"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip()[:200]
