"""One Fabric connection to a machine: credentials, host keys, and a socket that is fast on Windows too."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import StepFailed, WrongUse, quoted
from deploy.pod.base.text import visible
from deploy.shell.agent_keys import KEY_FILE_BYTES, AgentKeys
from deploy.shell.agent_program import BOOTSTRAP
from deploy.shell.base import last_lines
from deploy.shell.host_keys import HostKeys, name_of
from deploy.shell.jump_hosts import ProxyProgram, chain, gateway_of, last_words
from deploy.shell.link import LinkLost
from deploy.shell.ssh_config import Way, way_to
from deploy.specs.machine import Address

if TYPE_CHECKING:
    from fabric import Connection as Connection
    from paramiko import Channel

KEEPALIVE_S = 5
FAREWELL_S = 0.5
HUNG_UP = "No existing session"  # Paramiko's words at the next request
NO_KEY = "No authentication methods available"  # Paramiko's only sign of it; the class is that of a broken connection
# Windows ships its agent as a service that is disabled.
ENABLE_AGENT = "Set-Service ssh-agent -StartupType Automatic; Start-Service ssh-agent"
AGENT_HINT = f", which an administrator's PowerShell starts: {ENABLE_AGENT}" if sys.platform == "win32" else ""
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}  # AddressFamily of ssh_config
_AGENT = threading.Lock()
SAYS_LAST_S = 1.0  # an exit code follows shortly after the last byte
WINDOW_BYTES = 16 << 20  # in flight to the laptop; Paramiko's 2 MiB limit a stream to 20 MB/s at 100 ms
# Paramiko sets no buffers, and Windows' 64 KiB limit a stream to some Mbit/s. Other systems tune the size themselves,
# and a fixed size would disable that.
WINDOWS_BUFFER_BYTES = 32 << 20


def load() -> None:
    """Import Fabric, with Paramiko, ahead of the first connection."""
    import fabric  # noqa: F401


def broken() -> tuple[type[Exception], ...]:
    """Return the exceptions that Paramiko raises for a broken connection."""
    import paramiko

    return (paramiko.SSHException, OSError, EOFError)


def connect(address: Address, host_keys: HostKeys, timeout_s: float) -> Connection:
    """Open a connection and check its host key. Raises LinkLost if the machine cannot be reached now.

    `timeout_s` applies to each step: TCP connection, banner, authentication (twice as long).
    """
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it prints tracebacks of errors retried here
    if address.key:
        check_key(Path(address.key))
    way = way_to(address.host, address.user, address.port)
    gateways: list[tuple[str, Connection]] = []
    gateway = gateway_of(way, lambda hop, behind: _connection(hop, None, timeout_s, behind), gateways)
    connection = _connection(way, address.key, timeout_s, gateway=gateway)
    try:
        for called, gateway in gateways:
            host_keys.prepare_gateway(gateway.client, gateway.host, gateway.port, called)
        host_keys.prepare(connection.client, connection.host, connection.port)
        with _agent(way):
            _open(connection, address, host_keys, timeout_s)
    except BaseException:
        disconnect(connection)
        raise
    for each in chain(connection):
        each.transport.set_keepalive(KEEPALIVE_S)
    host_keys.note(connection.transport.get_remote_server_key())
    return connection


def disconnect(connection: Connection) -> None:
    """Close a connection and its gateways."""
    for each in list(chain(connection)):
        with contextlib.suppress(*broken()):
            each.client.close()
        if isinstance(proxy := each.connect_kwargs.get("sock"), ProxyProgram):
            proxy.end()


def _connection(way: Way, key: str | None, timeout_s: float, gateway: Any) -> Connection:
    """Make a connection without opening it. OpenSSH has read the configuration, so Fabric reads no ssh_config again."""
    import paramiko
    from fabric import Config, Connection

    only = way.only or key is not None
    named = [key] if key else [*way.keys, *way.usual]
    keys = named if only else list(way.keys)  # Paramiko finds the usual ones itself, after those of the agent
    connection = Connection(
        way.host,
        user=way.user,
        port=way.port,
        gateway=gateway,
        config=Config(ssh_config=paramiko.SSHConfig()),
        connect_kwargs={
            **({"key_filename": keys} if keys else {}),
            "allow_agent": way.agent != "none",
            "look_for_keys": not only,
            "banner_timeout": timeout_s,
            "auth_timeout": 2 * timeout_s,
            "transport_factory": _transport,
        },
        connect_timeout=max(1, round(timeout_s)),
    )
    connection._set(family=FAMILIES.get(way.family, socket.AF_UNSPEC))
    connection.client._agent = AgentKeys([os.path.expanduser(each) for each in named], only=only)
    return connection


@contextlib.contextmanager
def _agent(way: Way) -> Iterator[None]:
    """Set SSH_AUTH_SOCK to an IdentityAgent while a connection is opened: Paramiko finds an agent only there."""
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


class ChannelStream:
    """Stream to an agent over a channel of a Fabric connection. `owned`: close the connection with it."""

    def __init__(self, connection: Connection, *, owned: bool = False) -> None:
        self.connection = connection
        self.owned = owned
        self.channel: Channel = connection.transport.open_session(window_size=WINDOW_BYTES, timeout=15)
        self.channel.exec_command(BOOTSTRAP)
        self.channel.settimeout(None)  # Link closes a silent stream

    def read_into(self, view: memoryview) -> int:
        data: bytes = self.channel.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data: bytes | memoryview) -> None:
        """Send all bytes. Raises OSError if the connection breaks."""
        try:
            self.channel.sendall(data)
        except broken() as error:
            raise OSError(str(error) or type(error).__name__) from error

    def close(self) -> None:
        # Paramiko's close waits until its message is sent, which never happens on a dead connection with full buffers.
        farewell = threading.Thread(target=self._close_channel, daemon=True, name="farewell")
        farewell.start()
        farewell.join(FAREWELL_S)
        if self.owned or farewell.is_alive():
            disconnect(self.connection)

    def release(self) -> None:
        """Do nothing: a channel has no descriptor of its own."""

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
    proxy = None
    try:
        *_, nearest = chain(connection)
        if not nearest.gateway:
            nearest.connect_kwargs["sock"] = _socket(nearest.host, nearest.port, timeout_s, nearest.family)
        elif isinstance(connection.gateway, str):
            connection.connect_kwargs["sock"] = proxy = ProxyProgram(connection.gateway)
            connection.gateway = False  # else Fabric starts the command a second time
        connection.open()
    except broken() as error:
        raise _explained(error, connection, address, host_keys, proxy) from error


def _explained(
    error: Exception, connection: Connection, address: Address, host_keys: HostKeys, proxy: ProxyProgram | None
) -> StepFailed | WrongUse:
    """Return the error that tells why a connection did not open, and what to do."""
    import paramiko

    # The first connection on the way that is not open.
    stuck = next((each for each in reversed(list(chain(connection))) if not each.is_connected), connection)
    name = name_of(stuck.host, stuck.port)
    where = f"{stuck.user}@{name}"
    transport = stuck.client.get_transport()
    login = transport.auth_handler if transport else None
    if isinstance(error, paramiko.BadHostKeyException):
        return host_keys.changed(name, error.key)
    if isinstance(error, paramiko.PasswordRequiredException):
        return WrongUse(
            f"the key for {where} has a passphrase: add it to your SSH agent first{AGENT_HINT}",
            next_command=f"ssh-add {quoted(address.key)}" if address.key else "ssh-add",
        )
    if isinstance(error, paramiko.AuthenticationException):
        if login and login.auth_method == "keyboard-interactive":
            return WrongUse(
                f"{where} accepts the key, and asks for a second factor, which it did not get: enter it in a "
                "terminal for each connection, or use a host that needs none"
            )
        with_key = f"the key {address.key}" if address.key else "every key of the SSH agent and of ~/.ssh"
        return WrongUse(
            f"{where} rejects {with_key}: add the public half to authorized_keys there, or name another key with "
            "key: in the target's file",
            next_command=f"ssh -v -p {connection.port} {connection.user}@{connection.host}",
        )
    if NO_KEY in str(error):
        return WrongUse(
            f"{where} answers, but this computer has no key to log in with: the SSH agent and ~/.ssh hold none "
            "that your SSH configuration permits; create a key and add its public half to authorized_keys there, "
            "or name a key with key: in the target's file",
            next_command="ssh-keygen -t ed25519",
        )
    if str(error) == HUNG_UP and login is not None:
        return LinkLost(
            f"{where} ended the connection after some of this computer's keys, as with `MaxAuthTries`: name the "
            "right one with key: in the target's file",
            next_command="ssh-add -l",
        )
    said = last_words(proxy)
    through = f" through its ProxyCommand ({said})" if said else ""
    return LinkLost(f"{where} cannot be reached{through}: {_words(error)}")


def check_key(path: Path) -> None:
    """Raise WrongUse, with the fix, for a file that is not a private key, or one that OpenSSH cannot read."""
    try:
        start = path.expanduser().read_bytes()[:KEY_FILE_BYTES]
    except OSError as error:
        reason = error.strerror or str(error)
        raise WrongUse(f"the key file {path} cannot be read ({reason}): set key: in the target's file") from error
    if start.startswith(b"PuTTY-User-Key-File"):
        raise WrongUse(f"{path} is a PuTTY key: export it as an OpenSSH key (puttygen, Conversions)")
    if b"PRIVATE KEY-----" not in start:
        is_public = path.suffix == ".pub" or start.split(b" ")[0].startswith((b"ssh-", b"ecdsa-"))
        hint = "it is the public half: name the file without .pub" if is_public else "create one with ssh-keygen"
        raise WrongUse(f"{path} is not a private key: {hint}")
    # Paramiko reads it, but `attach`, `ssh`, `exec` and large files use OpenSSH. In the older PEM format it may be so.
    if b"OPENSSH" in start and (not start.startswith(b"-----") or b"\r" in start or not start.endswith(b"\n")):
        raise WrongUse(
            f"{path} is a private key that an editor changed, so ssh refuses it: save it as UTF-8 without a byte order "
            "mark, with LF (not CRLF) at the end of each line, also of the last one"
        )


def _transport(sock: Any, **options: Any) -> Any:
    """Make a transport that prefers AES-GCM: one pass over the bytes instead of two, in hardware."""
    import paramiko

    transport = paramiko.Transport(sock, **options)
    if isinstance(sock, ProxyProgram):
        sock.transport = transport
    transport.auth_interactive_dumb = lambda user: transport.auth_interactive(user, _second_factor)  # else on stdout
    security = transport.get_security_options()
    ciphers = list(security.ciphers)
    security.ciphers = sorted(ciphers, key=lambda name: not name.endswith("gcm@openssh.com"))
    return transport


def _second_factor(title: str, instructions: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
    """Ask for what a server wants to know beside the key. Raises EOFError without a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise EOFError
    about = [line for each in (title, instructions) if (line := visible(each).strip())]
    return [getpass.getpass("\n".join([*about, f"{visible(prompt).strip()} "])) for prompt, _ in prompts]


def _socket(host: str, port: int, timeout_s: float, family: int) -> socket.socket:
    sock = _connected(host, port, timeout_s, family)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "win32":
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, buffer, WINDOWS_BUFFER_BYTES)
    return sock


def _connected(host: str, port: int, timeout_s: float, family: int) -> socket.socket:
    """Connect to the first address of a host that answers, of one family or of any."""
    *others, last = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    for kind, *_, place in others:
        with contextlib.suppress(OSError):
            return _connected_to(kind, place, timeout_s)
    return _connected_to(last[0], last[4], timeout_s)


def _connected_to(family: int, place: Any, timeout_s: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(place)
    except BaseException:
        sock.close()
        raise
    return sock


def _words(error: BaseException) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "no answer"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip()[:200]
