"""Ports that tests give to servers stay free until the server binds them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support import ports

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_each_port_is_free_and_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.free_port()))
        used = taken.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", [used, *(ports.free_port() for _ in range(2))])
        monkeypatch.setattr(ports, "_given", set())
        assert {ports.free_port(), ports.free_port()} == set(ports.PORTS) - {used}


@pytest.mark.skipif(not RANGE.exists(), reason="needs /proc: run this on Linux")
def test_the_system_gives_none_of_them_away() -> None:
    first, last = map(int, RANGE.read_text().split())
    assert not set(ports.PORTS) & set(range(first, last + 1))
