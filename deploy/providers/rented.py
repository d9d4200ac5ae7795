"""What providers that rent machines share: the key, a clock that tests replace, unreadable entries, the SSH probe."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from deploy.errors import NoMachine, command
from deploy.pod.base.retry import MACHINE_POLLS_S, endless


class Listed(Protocol):
    """An entry of a list. `fault`: why it cannot be read."""

    @property
    def name(self) -> str: ...

    @property
    def fault(self) -> str | None: ...


F = TypeVar("F", bound=Listed)
PIECE_S = 0.5


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
        """Sleep in pieces: a console of Windows that closes interrupts none, and leaves a command 5 s."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, PIECE_S))

    def polls(self, limit_s: float) -> Iterator[float]:
        """Yield the seconds waited so far, at once and after each pause. Ends if the next one would end too late."""
        began = self.now()
        yield 0.0
        for pause_s in endless(MACHINE_POLLS_S):
            if self.now() - began + pause_s > limit_s:
                return
            self.sleep(pause_s)
            yield self.now() - began


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


def readable(found: Sequence[F], reported: set[str], say: Callable[[str], None], so: str) -> list[F]:
    """Report entries of a list that cannot be read, each once. Those with a name stay in the list."""
    for each in found:
        if each.fault and each.fault not in reported:
            reported.add(each.fault)
            with contextlib.suppress(OSError):  # a closed terminal must not prevent a release
                say(f"{each.fault}: {so}")
    return [each for each in found if each.name or not each.fault]


def refuse_unreadable(found: Sequence[F], family: str, target: str) -> None:
    """Raise NoMachine if an entry of a family cannot be read: it may be a machine to reuse, and it may bill."""
    for each in found:
        if each.fault and each.name.startswith(family):
            raise NoMachine(
                f"{each.name} exists, and its entry cannot be read ({each.fault}): no second machine is requested",
                next_command=f"{command(f'down --on {target}')}   (releases it)",
            )
