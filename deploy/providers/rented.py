"""What providers that rent machines share: the account's key, a clock that tests replace, the probe of SSH."""

from __future__ import annotations

import socket
import time
from typing import Any


class Key:
    """The API key. It never appears in prints, logs or tracebacks."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Key(***)"

    __str__ = __repr__

    def reveal(self) -> str:
        return self._text

    def sign(self, request: Any) -> Any:
        """Add the key to a prepared request; this is the `auth` of a session of the package requests."""
        request.headers["Authorization"] = f"Bearer {self._text}"
        return request

    def mask(self, text: str) -> str:
        """Replace the key, if present, in a text from outside."""
        return text.replace(self._text, "***")


class Clock:
    def now(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        """Unix seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def answers_ssh(host: str, port: int, limit_s: float) -> bool:
    """Return whether an SSH server sends its banner. A RUNNING pod may be minutes away from that."""
    try:
        with socket.create_connection((host, port), timeout=limit_s) as connection:
            connection.settimeout(limit_s)
            heard = b""
            while len(heard) < 4096:  # a server may send other lines before its banner
                part = connection.recv(256)
                heard += part
                if any(line.startswith(b"SSH-") for line in heard.splitlines()):
                    return True
                if not part:
                    return False
    except OSError:
        pass
    return False
