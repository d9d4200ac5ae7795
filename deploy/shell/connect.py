"""One Fabric connection to a machine: who it is, where it is, and a socket that is not slow on Windows."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import WrongUse
from deploy.machine import Address
from deploy.shell.host_keys import HostKeys
from deploy.shell.link import BOOTSTRAP, LinkLost, last_lines

if TYPE_CHECKING:
    from fabric import Connection as Connection
    from paramiko import Channel

KEEPALIVE_S = 5
FAREWELL_S = 0.5
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
    from fabric import Config, Connection

    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it prints tracebacks of what is retried here
    if address.key:
        _check_key(Path(address.key))
    options = {"banner_timeout": timeout_s, "auth_timeout": 2 * timeout_s, "transport_factory": _transport}
    keys = {"key_filename": address.key} if address.key else {}
    connection = Connection(
        address.host,
        user=address.user,
        port=address.port,
        config=Config(),
        connect_kwargs={**keys, **options},
        connect_timeout=max(1, round(timeout_s)),
    )
    try:
        for gateway in list(_chain(connection))[1:]:
            gateway.connect_kwargs.update(options)
            host_keys.prepare_gateway(gateway.client, gateway.host, gateway.port)
        host_keys.prepare(connection.client, connection.host, connection.port)
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

    def where() -> str:
        """The first one on the way that did not open."""
        stuck = next((each for each in reversed(list(_chain(connection))) if not each.is_connected), connection)
        return f"{stuck.user}@{stuck.host}:{stuck.port}"

    try:
        if not connection.gateway:
            connection.connect_kwargs["sock"] = _socket(connection.host, connection.port, timeout_s)
        connection.open()
    except paramiko.BadHostKeyException as error:
        raise host_keys.changed(error.hostname, error.key) from error
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
        raise LinkLost(f"{where()} cannot be reached: {_words(error)}") from error


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
