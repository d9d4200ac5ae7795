"""Values: numbers, sizes, texts, hashes and addresses, each within bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

from deploy.errors import BadAnswer
from deploy.pod.base.text import visible

REASON_CHARACTERS = 1000
LISTED_MOST = 10_000  # names in one folder of a machine
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def whole(value: object, what: str, least: int = 0, most: int = 1 << 53) -> int:
    """A whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadAnswer(f"{what} is {shown(value)} instead of a whole number from {least} to {most}")
    return value


def size(value: object, what: str, most: int = 1 << 53) -> int:
    """A number of bytes."""
    return whole(value, what, 0, most)


def number(value: object, what: str, least: float = -1e308, most: float = 1e308) -> float:
    """A finite number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswer(f"{what} is {shown(value)} instead of a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or not least <= found <= most:
        raise BadAnswer(f"{what} is {shown(value)} instead of a number from {least:g} to {most:g}")
    return found


def text(value: object, what: str, most: int = REASON_CHARACTERS) -> str:
    """One line that is safe to show; a longer one is cut."""
    if not isinstance(value, str):
        raise BadAnswer(f"{what} is {shown(value)} instead of text")
    return cut(visible(value[: most + 1], newlines=False), most)


def path_text(value: object, what: str) -> str:
    """A path of the machine, to be sent back to it."""
    if not isinstance(value, str) or not 0 < len(value) <= 4096 or not value.isprintable():
        raise BadAnswer(f"{what} is {shown(value)} instead of a path")
    return value


def sha256(value: object, what: str) -> str:
    """A hash as 64 hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise BadAnswer(f"{what} is {shown(value)} instead of a SHA-256")
    return value


def names(value: object, what: str) -> list[str]:
    """The names in a folder of the machine. Each is still to be checked where it names a file of the laptop."""
    if not isinstance(value, list) or len(value) > LISTED_MOST or not all(isinstance(each, str) for each in value):
        raise BadAnswer(f"{what} is {shown(value)} instead of at most {LISTED_MOST} names")
    return [each for each in value if len(each) <= 255]


def mapping(value: object, what: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is {shown(value)} instead of an object")
    return value


def hashes(value: object, count: int, what: str, holes: bool = False) -> list[str]:
    """So many hashes; with `holes`, '' for a range without bytes."""
    if not isinstance(value, list) or len(value) != count:
        raise BadAnswer(f"{what} is {shown(value)} instead of {count} hashes")
    return [each if holes and each == "" else sha256(each, what) for each in value]


def cut(words: str, most: int) -> str:
    """A text of at most `most` characters, with a mark where it was cut."""
    return words if len(words) <= most else words[: most - 4] + " ..."


def snapshot_state(value: object, what: str) -> tuple[bool, list[str]]:
    """Whether a snapshot of the code is on the machine, and the commits there: they go into command lines of git."""
    said = mapping(value, what)
    commits = names(said.get("commits"), what)
    if not isinstance(said.get("there"), bool) or not all(_COMMIT.fullmatch(each) for each in commits):
        raise BadAnswer(f"{what} is {shown(value)} instead of a state of snapshots")
    return said["there"], commits


def address(value: object, what: str) -> str:
    """An IPv4 address."""
    try:
        return str(IPv4Address(value if isinstance(value, str) else ""))
    except ValueError:
        raise BadAnswer(f"{what} is {shown(value)} instead of an IPv4 address") from None


def interface(value: object, what: str) -> str:
    """The name of a network interface; empty where it could not be told."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:@-]{0,15}", value):
        raise BadAnswer(f"{what} is {shown(value)} instead of a network interface")
    return value


def heard(value: object, what: str) -> list[tuple[str, str, str]]:
    """How a machine reaches another: the other's address, its own, the interface."""
    if not isinstance(value, list) or not all(isinstance(each, list) and len(each) == 3 for each in value):
        raise BadAnswer(f"{what} is {shown(value)} instead of ways to another machine")
    return [(address(each[0], what), address(each[1], what), interface(each[2], what)) for each in value]


def strings(value: object, what: str) -> dict[str, str]:
    """Names and values, all text."""
    if not isinstance(value, dict) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise BadAnswer(f"{what} is {shown(value)} instead of names and values")
    return value


def dollars(value: object, what: str, machines: Sequence[str] = ()) -> dict[str, float]:
    """What machines have cost, by name; only of those that are known, where they are given."""
    if not isinstance(value, dict) or len(value) > 1000:
        raise BadAnswer(f"{what} is {shown(value)} instead of dollars by machine")
    told = {str(name): number(usd, f"{what}, {text(name, what)}", 0, 100_000) for name, usd in value.items()}
    return {name: usd for name, usd in told.items() if not machines or name in machines}


def shown(value: object) -> str:
    """A value in an error: short, and safe on a terminal."""
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a huge number"
    return cut(visible(repr(value)[:200], newlines=False), 80)
