"""Validate single values: numbers, sizes, texts, hashes and addresses. Invalid ones raise BadAnswer."""

from __future__ import annotations

import math
import re
from ipaddress import IPv4Address
from typing import Any

from deploy.errors import BadAnswer
from deploy.pod.base.text import visible

REASON_CHARACTERS = 1000
LISTED_MOST = 10_000  # names in one folder of a machine
_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def whole(value: object, what: str, least: int = 0, most: int = 1 << 53) -> int:
    """Check a whole number within bounds. Raises BadAnswer for any other value."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadAnswer(f"{what} is {shown(value)} instead of a whole number from {least} to {most}")
    return value


def size(value: object, what: str, most: int = 1 << 53) -> int:
    """Check a number of bytes."""
    return whole(value, what, 0, most)


def number(value: object, what: str, least: float = -1e308, most: float = 1e308) -> float:
    """Check a finite number within bounds. Raises BadAnswer for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswer(f"{what} is {shown(value)} instead of a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or not least <= found <= most:
        raise BadAnswer(f"{what} is {shown(value)} instead of a number from {least:g} to {most:g}")
    return found


def unix_time(value: object, what: str) -> float:
    """Check a time of a machine's clock, in Unix seconds."""
    return number(value, what, 0, 1e11)


def text(value: object, what: str, most: int = REASON_CHARACTERS) -> str:
    """Return a text as one line that is safe to display, cut to `most` characters.

    Raises BadAnswer if it is no text.
    """
    if not isinstance(value, str):
        raise BadAnswer(f"{what} is {shown(value)} instead of text")
    return cut(visible(value[: most + 1], newlines=False), most)


def path_text(value: object, what: str) -> str:
    """Check a path on the machine that the laptop will send back to it. Raises BadAnswer for any other value."""
    if not isinstance(value, str) or not 0 < len(value) <= 4096 or not value.isprintable():
        raise BadAnswer(f"{what} is {shown(value)} instead of a path")
    return value


def sha256(value: object, what: str) -> str:
    """Check a SHA-256 of 64 hexadecimal digits. Raises BadAnswer for any other value."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise BadAnswer(f"{what} is {shown(value)} instead of a SHA-256")
    return value


def names(value: object, what: str) -> list[str]:
    """Check the names in a folder of the machine. Drops names over 255 characters.

    A name that becomes a file on the laptop needs a further check: see Name. Raises BadAnswer for any other value.
    """
    if not isinstance(value, list) or len(value) > LISTED_MOST or not all(isinstance(each, str) for each in value):
        raise BadAnswer(f"{what} is {shown(value)} instead of at most {LISTED_MOST} names")
    return [each for each in value if len(each) <= 255]


def user_name(value: object, what: str) -> str:
    """Check the name of a machine's user, which becomes part of a folder's name.

    Raises BadAnswer for any other value.
    """
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise BadAnswer(f"{what} is {shown(value)} instead of the name of a user")
    return value


def staged_images(value: object, what: str) -> list[tuple[str, int, str]]:
    """Check a list of [folder, bytes, use] about staged images. Raises BadAnswer for any other value."""
    if not isinstance(value, list) or len(value) > LISTED_MOST:
        raise BadAnswer(f"{what} is {shown(value)} instead of a list of images")
    found = []
    for each in value:
        if not isinstance(each, list | tuple) or len(each) != 3:
            raise BadAnswer(f"{what} has {shown(each)} instead of a folder, its bytes and its use")
        found.append((path_text(each[0], what), size(each[1], what, 1 << 62), text(each[2], what, 20)))
    return found


def mapping(value: object, what: str) -> dict[str, Any]:
    """Check a JSON object. Raises BadAnswer for any other value."""
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is {shown(value)} instead of an object")
    return value


def hashes(value: object, count: int, what: str, holes: bool = False) -> list[str]:
    """Check a list of `count` hashes. With `holes`, '' stands for a range without bytes.

    Raises BadAnswer for any other value.
    """
    if not isinstance(value, list) or len(value) != count:
        raise BadAnswer(f"{what} is {shown(value)} instead of {count} hashes")
    return [each if holes and each == "" else sha256(each, what) for each in value]


def cut(words: str, most: int) -> str:
    """Cut a text to at most `most` characters. A cut text ends with ` ...`."""
    return words if len(words) <= most else words[: most - 4] + " ..."


def snapshot_state(value: object, what: str) -> tuple[bool, list[str]]:
    """Check whether a code snapshot is on the machine, and the commits there. They go into git command lines.

    Raises BadAnswer for any other value.
    """
    said = mapping(value, what)
    commits = names(said.get("commits"), what)
    if not isinstance(said.get("there"), bool) or not all(_COMMIT.fullmatch(each) for each in commits):
        raise BadAnswer(f"{what} is {shown(value)} instead of a snapshot state")
    return said["there"], commits


def address(value: object, what: str) -> str:
    """Check an IPv4 address. Raises BadAnswer for any other value."""
    try:
        return str(IPv4Address(value if isinstance(value, str) else ""))
    except ValueError:
        raise BadAnswer(f"{what} is {shown(value)} instead of an IPv4 address") from None


def interface(value: object, what: str) -> str:
    """Check the name of a network interface. Empty: unknown. Raises BadAnswer for any other value."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:@-]{0,15}", value):
        raise BadAnswer(f"{what} is {shown(value)} instead of a network interface")
    return value


def heard(value: object, what: str) -> list[tuple[str, str, str]]:
    """Check how a machine reaches another one: the other's address, its own address, the interface.

    Raises BadAnswer for any other value.
    """
    if not isinstance(value, list) or not all(isinstance(each, list) and len(each) == 3 for each in value):
        raise BadAnswer(f"{what} is {shown(value)} instead of routes to another machine")
    return [(address(each[0], what), address(each[1], what), interface(each[2], what)) for each in value]


def strings(value: object, what: str) -> dict[str, str]:
    """Check an object whose values are all text. Raises BadAnswer for any other value."""
    if not isinstance(value, dict) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise BadAnswer(f"{what} is {shown(value)} instead of names and values")
    return value


def dollars(value: object, what: str) -> dict[str, float]:
    """Check the cost of machines, in dollars by name. Raises BadAnswer for any other value."""
    if not isinstance(value, dict) or len(value) > 1000:
        raise BadAnswer(f"{what} is {shown(value)} instead of dollars per machine")
    return {str(name): number(usd, f"{what}, {text(name, what)}", 0, 100_000) for name, usd in value.items()}


def shown(value: object) -> str:
    """Format a value for an error message: short, and safe on a terminal."""
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a huge number"
    try:
        words = repr(value)[:200]
    except (ValueError, RecursionError):  # a huge number inside, or very deep
        words = f"a {type(value).__name__}"
    return cut(visible(words, newlines=False), 80)
