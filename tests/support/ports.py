"""Ports for servers that cannot choose one themselves."""

from __future__ import annotations

import random
import socket

# Below the range from which the system takes ports of outgoing connections and of servers that ask for any: 32768 to
# 60999 on Linux, 49152 to 65535 elsewhere. Such a port would be gone before the server binds it.
PORTS = range(15_000, 30_000)
_given: set[int] = set()
_draw = random.SystemRandom()  # tests seed the common one: two processes would draw the same ports


def free_port() -> int:
    """Return a port that no address of this computer uses. This process gets each port once."""
    while True:
        port = _draw.choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        _given.add(port)
        return port
