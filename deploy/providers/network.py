"""Describe network errors for users, and detect requests that were never sent. Pure functions, no I/O."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from datetime import timezone
from email.utils import parsedate_to_datetime

from deploy.pod.base.clock import whole_minutes

# Class names, because the libraries below `requests` raise their own errors and keep the reason inside.
NEVER_SENT = ("NewConnectionError", "NameResolutionError", "ConnectTimeout", "ConnectTimeoutError", "SSLError")
WINSOCK = 10000  # Windows' numbers of errors of sockets begin here
WORDS = {
    errno.ECONNREFUSED: "the connection is refused",
    errno.ENETUNREACH: "the network is unreachable",
    errno.EHOSTUNREACH: "there is no route to the host",
    errno.ETIMEDOUT: "the connection timed out",
    errno.ECONNRESET: "the connection was cut",
}


def in_words(error: BaseException) -> str:
    """Describe why there is no answer, without the library's addresses and counts."""
    chain = list(causes(error))
    names = {type(each).__name__ for each in chain}
    if "ProxyError" in names:
        return "the connection through this computer's proxy (HTTPS_PROXY) failed"
    if "SSLError" in names or "SSLCertVerificationError" in names:
        why = f"its certificate failed verification ({_reason(chain)})"
        return f"{why}; where a company's proxy replaces it, set REQUESTS_CA_BUNDLE to a file with the proxy's own"
    if "NameResolutionError" in names or any(isinstance(each, socket.gaierror) for each in chain):
        return "its host name cannot be resolved (is this computer online?)"
    if names & {"ConnectTimeout", "ConnectTimeoutError"}:
        return "no answer (is there a firewall or a proxy?)"
    if names & {"ReadTimeout", "ReadTimeoutError", "TimeoutError"}:
        return "the request timed out"
    for each in chain:
        if isinstance(each, OSError) and each.errno in WORDS:
            return WORDS[each.errno]
    if names & {"RemoteDisconnected", "ProtocolError", "ChunkedEncodingError", "ConnectionResetError"}:
        return "the connection was cut"
    return f"the connection failed ({_reason(chain)})"


def was_never_sent(error: BaseException) -> bool:
    """Return whether there was no connection at all: then nothing was sent, and nothing was done."""
    return any(type(each).__name__ in NEVER_SENT for each in causes(error))


def ahead_s(date: str | None, now: float, known_s: float) -> float:
    """Return how far the clock of a server is ahead, in whole minutes, by the header Date of an answer at Unix `now`.

    `known_s`: of an earlier answer, for one without a valid date. Times that a provider reports are by its clock, and a
    laptop's may be off by an hour, as after another system has set it.
    """
    try:
        told = parsedate_to_datetime(date or "")
        return whole_minutes(told.replace(tzinfo=told.tzinfo or timezone.utc).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return known_s


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the errors inside it: its cause, context, `reason` and arguments."""
    seen: list[BaseException] = []
    left: list[object] = [error]
    while left and len(seen) < 20:
        each = left.pop(0)
        if isinstance(each, BaseException) and not any(each is one for one in seen):
            seen.append(each)
            left += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
    yield from seen


def _reason(chain: list[BaseException]) -> str:
    """Return the last message in the chain that names no object's address."""
    for each in reversed(chain):
        words = _told(each) if isinstance(each, OSError) and each.errno else str(each)
        if words and not re.search(r"0x[0-9a-f]+|Pool\(", words):
            return words[:120]
    return type(chain[0]).__name__


def _told(error: OSError) -> str:
    """The system's words. Windows' C library has none for errors of sockets: the error itself brings them."""
    return str(error.strerror) if error.errno and error.errno >= WINSOCK else os.strerror(error.errno or 0)
