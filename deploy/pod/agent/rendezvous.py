"""Find an address of one machine that the others reach, and the network interfaces that they use for it.

Host names are not used: a host's own name often resolves to 127.0.1.1 on itself, and by default gloo and NCCL then
listen where no other machine connects. An address may also belong to another host with the same address in another
network. So one machine answers with a secret word, and the others use the addresses on which they receive it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading

from deploy.pod.agent import verbs

SIOCGIFADDR = 0x8915
REACH_S = 5.0

_listening: list[socket.socket] = []


def open_rendezvous(port: int, word: str) -> list[str]:
    """Answer every connection to `port` with `word` until `close_rendezvous`.

    Returns this machine's addresses, likely ones first. Raises OSError; EADDRINUSE if the port is taken.
    """
    close_rendezvous()
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    _listening.append(listener)
    threading.Thread(target=_answer, args=(listener, word.encode("ascii")), daemon=True).start()
    return _addresses()


def close_rendezvous() -> None:
    while _listening:
        listener = _listening.pop()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        listener.close()


def reach_rendezvous(addresses: list[str], port: int, word: str) -> list[list[str]]:
    """Return [address, own address, own interface] for each address that answers with `word`, in the given order."""

    def heard(address: str) -> list[str] | None:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=REACH_S) as connection:
            own = str(connection.getsockname()[0])
            if _read(connection, len(word)) == word.encode("ascii"):
                return [address, own, interface_of(own)]
        return None

    return [each for each in verbs.in_threads(heard, addresses, len(addresses)) if each]


def interface_of(address: str) -> str:
    """Return the name of the network interface with this IPv4 address; empty if unknown."""
    return next((name for name, its in _interfaces() if its == address), "lo" if address.startswith("127.") else "")


def _addresses() -> list[str]:
    """Return this machine's addresses: RunPod's cluster address, the one that SSH connected to, then all others."""
    told = [os.environ.get("NODE_ADDR", "").partition("/")[0]]
    told += os.environ.get("SSH_CONNECTION", "").split(" ")[2:3]
    return list(dict.fromkeys(address for address in [*told, *(its for _, its in _interfaces())] if address))


def _interfaces() -> list[tuple[str, str]]:
    """Return interface names and IPv4 addresses, the loopback last: it works only if all machines are this one."""
    if sys.platform != "linux":
        return []
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without IPv4 address
                told = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append((name, socket.inet_ntoa(told[20:24])))
    return sorted(found, key=lambda each: each[1].startswith("127."))


def _answer(listener: socket.socket, word: bytes) -> None:
    with contextlib.suppress(OSError):  # closed
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection:
                connection.settimeout(REACH_S)
                connection.sendall(word)
                connection.recv(1)  # the client closes first, so that TIME_WAIT is on its side and not on this port


def _read(connection: socket.socket, count: int) -> bytes:
    said = b""
    while len(said) < count and (more := connection.recv(count - len(said))):
        said += more
    return said
