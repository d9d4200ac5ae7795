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
HEAD_BYTES = 1 << 20  # of the JSON of an answer
BODY_BYTES = 8 << 20  # of what follows it
LINE_BYTES = 64 << 10  # of a command's output, in one message; a longer line comes in several
# What an agent says first. Whatever a login script printed before it is skipped.
GREETING = b"\0sniperface agent 1\0"


class Ended(EOFError):
    """The other side has closed the connection, or it broke."""


def pack(head: dict[str, Any], body: bytes | memoryview = b"") -> bytes:
    """The bytes in front of `body`, which is sent by itself: it may be large, and copying it costs."""
    text = json.dumps(head).encode("utf-8")
    return LENGTHS.pack(len(text), len(body)) + text


class Misspoken(Exception):
    """The other side sends what is no message of ours."""


def lengths(read_into: Callable[[memoryview], int]) -> tuple[int, int]:
    """The lengths of the next answer; raises Misspoken for more than an answer may have, before any of it is read."""
    head, body = LENGTHS.unpack(exactly(read_into, LENGTHS.size))
    if head > HEAD_BYTES or body > BODY_BYTES:
        raise Misspoken(f"a message of {head} and {body} bytes")
    return head, body


def unpack(read_into: Callable[[memoryview], int]) -> tuple[dict[str, Any], bytes]:
    """The next message; raises Ended where the stream ends.

    `read_into(view)` fills 1 to len(view) bytes, and 0 at the end.
    """
    head_length, body_length = LENGTHS.unpack(exactly(read_into, LENGTHS.size))
    head: dict[str, Any] = json.loads(exactly(read_into, head_length))
    return head, exactly(read_into, body_length)


def exactly(read_into: Callable[[memoryview], int], length: int) -> bytes:
    """`length` bytes from a stream that gives them in pieces."""
    data = bytearray(length)
    left = memoryview(data)
    while left:
        count = read_into(left)
        if not count:
            raise Ended(f"the connection ended after {length - len(left)} of {length} bytes")
        left = left[count:]
    return bytes(data)
