"""Text that a terminal shows and does not obey."""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, bidirectional marks, the two Unicode line separators, and lone surrogates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_WITH_NEWLINES = re.compile(f"{_OBEYED.pattern[:-1]}\n]")
_COLOURS = re.compile("\x1b\\[[0-9;:]{0,40}m")


def visible(text: str, *, newlines: bool = True) -> str:
    """Control characters, escapes and marks of direction as readable codes, such as \\x1b.

    Tabs stay, and newlines where `newlines` says so.
    """
    return (_OBEYED if newlines else _WITH_NEWLINES).sub(_code, text)


def visible_log(text: str) -> str:
    """As `visible`, for the output of a job: colours are left out, and a carriage return begins a new line."""
    return visible(_COLOURS.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    named = {"\n": "\\n", "\r": "\\r"}
    return named.get(found[0]) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
