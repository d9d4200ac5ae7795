"""Make text safe to print on a terminal: control characters become visible codes."""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, bidirectional marks, the two Unicode line separators, and lone surrogates.
_OBEYED = [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F)]
_OBEYED += [*range(0x2066, 0x206A), *range(0xD800, 0xE000)]
_CODES = {number: f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" for number in _OBEYED}
_CODES[0x0D] = "\\r"
_LINE_CODES = {**_CODES, 0x0A: "\\n"}
_PLAIN = bytes(range(0x20, 0x7F))
_PLAIN_LINES = _PLAIN + b"\n\t"
_COLOURS = re.compile("\x1b\\[[0-9;:]{0,40}m")


def visible(text: str, *, newlines: bool = True) -> str:
    """Replace control characters, escapes and direction marks by readable codes, such as \\x1b.

    Tabs stay; newlines stay if `newlines` is true.
    """
    # What is neither plain ASCII nor a line end is little of a log, so this is the fastest way to look for it.
    rest = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN_LINES if newlines else _PLAIN)
    plain = not rest or rest.decode("utf-8", "surrogatepass").isprintable()
    if plain:
        return text
    return text.translate(_CODES if newlines else _LINE_CODES)  # re.sub would take 60 bytes for each match


def visible_log(text: str) -> str:
    """Like `visible`, for the output of a job: removes colours, and turns carriage returns into newlines."""
    without = _COLOURS.sub("", text) if "\x1b" in text else text
    return visible(without.replace("\r\n", "\n").replace("\r", "\n") if "\r" in without else without)
