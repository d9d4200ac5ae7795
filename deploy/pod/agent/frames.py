"""Messages between laptop and machine: a JSON object and raw bytes, preceded by their lengths.

4 bytes  length of the JSON, big-endian
4 bytes  length of the bytes that follow it
JSON, UTF-8
bytes
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

LENGTHS = struct.Struct(">II")
HEAD_BYTES = 1 << 20  # most bytes of an answer's JSON
BODY_BYTES = 8 << 20  # most bytes of its body
LINE_BYTES = 64 << 10  # most bytes of a command's output in one message; a longer line is split
# The agent's first bytes. The laptop skips what a login script printed before them.
GREETING = b"\0sniperface agent 1\0"


class Ended(EOFError):
    """The other side has closed the connection, or it broke."""


def pack(head: dict[str, Any], body: bytes | memoryview = b"") -> bytes:
    """Return the bytes to send before `body`. The body is sent separately, because copying a large one is slow."""
    text = json.dumps(head).encode("utf-8")
    return LENGTHS.pack(len(text), len(body)) + text


class Misspoken(Exception):
    """The other side sent an invalid message."""


def lengths(read_into: Callable[[memoryview], int]) -> tuple[int, int]:
    """Read the lengths of the next answer. Raises Misspoken if they exceed the limits, before reading its content."""
    head, body = LENGTHS.unpack(exactly(read_into, LENGTHS.size))
    if head > HEAD_BYTES or body > BODY_BYTES:
        raise Misspoken(f"a message of {head} and {body} bytes")
    return head, body


def unpack(read_into: Callable[[memoryview], int]) -> tuple[dict[str, Any], bytes]:
    """Read the next message. Raises Ended at the end of the stream.

    `read_into(view)` fills 1 to len(view) bytes and returns their number, 0 at the end.
    """
    head_length, body_length = LENGTHS.unpack(exactly(read_into, LENGTHS.size))
    head: dict[str, Any] = json.loads(exactly(read_into, head_length))
    return head, exactly(read_into, body_length)


def exactly(read_into: Callable[[memoryview], int], length: int) -> bytes:
    """Read exactly `length` bytes from a stream. Raises Ended if it ends before."""
    data = bytearray(length)
    left = memoryview(data)
    while left:
        count = read_into(left)
        if not count:
            raise Ended(f"the connection ended after {length - len(left)} of {length} bytes")
        left = left[count:]
    return bytes(data)
