"""Parse what our image prints to its log at boot: host keys, and the machine's real hardware."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.pod.base.text import visible
from deploy.providers.runpod.api import LogLine

# The machine writes this log, so every value taken from it is bounded.
HOST_KEY = re.compile(r"sniperface host key: ((?:ssh|ecdsa|sk)-[\w@.-]{1,60}) ([A-Za-z0-9+/]{1,2000}={0,2})(?:\s|$)")
MOST_KEYS = 8
BAD_START = "sniperface bad start: "
READY = "sniperface ready: "
HARDWARE = re.compile(r"sniperface hardware: gpus=(\d{1,4})\b(?: memory_gib=(\d{1,6}(?:\.\d{1,6})?))?")


@dataclass(frozen=True)
class Identity:
    host_keys: tuple[str, ...] = ()
    gpus: int | None = None
    memory_gib: float | None = None
    bad_start: str = ""  # why a login will never work


def read(lines: Iterable[LogLine]) -> Identity:
    """Read the identity. Only container lines count, matched at their start. The last of several boots wins."""
    keys: dict[str, str] = {}
    gpus: int | None = None
    memory_gib: float | None = None
    bad_start = ""
    for line in lines:
        if line.source != "container":
            continue
        if (found := HOST_KEY.match(line.text)) and (found[1] in keys or len(keys) < MOST_KEYS):
            keys[found[1]] = f"{found[1]} {found[2]}"
        elif found := HARDWARE.match(line.text):
            gpus = int(found[1])
            memory_gib = float(found[2]) if found[2] else None
        elif line.text.startswith(BAD_START):
            bad_start = visible(line.text.removeprefix(BAD_START)[:300], newlines=False)
        elif line.text.startswith(READY):
            bad_start = ""
    return Identity(tuple(keys.values()), gpus, memory_gib, bad_start)
