"""Messages between laptop and machine: a JSON object and raw bytes, each with its length in front.

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
# What an agent says first. Whatever a login script printed before it is skipped.
GREETING = b"\0sniperface agent 1\0"


class Ended(EOFError):
    """The other side has closed the connection, or it broke."""


def pack(head: dict[str, Any], body: bytes | memoryview = b"") -> bytes:
    """The bytes in front of `body`, which is sent by itself: it may be large, and copying it costs."""
    text = json.dumps(head).encode("utf-8")
    return LENGTHS.pack(len(text), len(body)) + text


def unpack(read: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    """The next message from `read(n)`, which gives 1 to n bytes, or none at the end; raises Ended there."""
    head_length, body_length = LENGTHS.unpack(exactly(read, LENGTHS.size))
    head: dict[str, Any] = json.loads(exactly(read, head_length))
    return head, exactly(read, body_length)


def exactly(read: Callable[[int], bytes], length: int) -> bytes:
    """`length` bytes from a stream that gives them in pieces."""
    pieces = bytearray()
    while len(pieces) < length:
        piece = read(length - len(pieces))
        if not piece:
            raise Ended(f"the connection ended after {len(pieces)} of {length} bytes")
        if len(piece) == length:
            return piece
        pieces += piece
    return bytes(pieces)
