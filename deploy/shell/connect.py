"""One Fabric connection to a machine: who it is, where it is, and a socket that is not slow on Windows."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from deploy.errors import WrongUse
from deploy.machine import Address
from deploy.shell.host_keys import HostKeys
from deploy.shell.link import BOOTSTRAP, SILENCE_S, LinkLost

if TYPE_CHECKING:
    from fabric import Connection as Connection
    from paramiko import Channel

KEEPALIVE_S = 5
FAREWELL_S = 0.5
WINDOW_BYTES = 16 << 20  # what may be on its way to us; Paramiko's 2 MiB hold a stream to 20 MB/s at 100 ms
# Paramiko sets no buffers, and Windows' 64 KiB hold a stream to some Mbit/s. Elsewhere the system knows better, and
# a size set by hand would switch its own off.
WINDOWS_BUFFER_BYTES = 32 << 20


def connect(address: Address, host_keys: HostKeys, timeout_s: float) -> Connection:
    """An open connection whose host key was checked; LinkLost when there is none to be had at the moment."""
    import paramiko
    from fabric import Config, Connection

    keys = {"key_filename": address.key} if address.key else {}
    connection = Connection(
        address.host,
        user=address.user,
        port=address.port,
        config=Config(),
        connect_kwargs={**keys, "banner_timeout": 15, "auth_timeout": 30, "transport_factory": _transport},
        connect_timeout=max(1, round(timeout_s)),
    )
    where = f"{connection.user}@{connection.host}:{connection.port}"
    host_keys.prepare(connection.client, connection.host, connection.port)
    try:
        if not connection.gateway:
            connection.connect_kwargs["sock"] = _socket(connection.host, connection.port, timeout_s)
        connection.open()
    except paramiko.BadHostKeyException as error:
        raise host_keys.changed(error.key) from error
    except paramiko.PasswordRequiredException as error:
        raise WrongUse(
            f"the key for {where} has a passphrase: give it to your SSH agent first", next_command="ssh-add"
        ) from error
    except paramiko.AuthenticationException as error:
        with_key = f"the key {address.key}" if address.key else "any key of the SSH agent or of ~/.ssh"
        raise WrongUse(
            f"{where} does not let {with_key} in: its public half must be in authorized_keys there; another one can be "
            "named with key: in the target's file",
            next_command=f"ssh -v -p {connection.port} {connection.user}@{connection.host}",
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        connection.close()
        raise LinkLost(f"{where} cannot be reached: {_words(error)}") from error
    transport = connection.transport
    transport.set_keepalive(KEEPALIVE_S)
    host_keys.note(transport.get_remote_server_key())
    return connection


class ChannelStream:
    """The agent over a channel of a Fabric connection, which it closes at its end when it is `owned`."""

    def __init__(self, connection: Connection, *, owned: bool = False) -> None:
        self.connection = connection
        self.owned = owned
        self.channel: Channel = connection.transport.open_session(window_size=WINDOW_BYTES, timeout=15)
        self.channel.exec_command(BOOTSTRAP)
        self.channel.settimeout(SILENCE_S)  # beats come much more often; a full window of a dead line ends here too

    def read_into(self, view: memoryview) -> int:
        data: bytes = self.channel.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data: bytes | memoryview) -> None:
        self.channel.sendall(data)

    def close(self) -> None:
        # Paramiko's own close waits until its message went out, which never happens on a dead line with full buffers.
        farewell = threading.Thread(target=self._close_channel, daemon=True, name="farewell")
        farewell.start()
        farewell.join(FAREWELL_S)
        if self.owned or farewell.is_alive():
            self.channel.get_transport().close()

    def release(self) -> None:
        if self.owned:
            self.connection.close()

    def _close_channel(self) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko_error()):
            self.channel.close()

    def complaint(self) -> list[str]:
        said = b""
        with contextlib.suppress(OSError, EOFError):
            while self.channel.recv_stderr_ready():
                said += self.channel.recv_stderr(1 << 16)
        return said.decode("utf-8", errors="replace").strip().splitlines()[-10:]


def paramiko_error() -> type[Exception]:
    import paramiko

    error: type[Exception] = paramiko.SSHException
    return error


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
