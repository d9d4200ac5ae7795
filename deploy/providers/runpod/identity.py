"""What our image says of itself at boot, in its log: host keys, and what the machine really has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.providers.runpod.api import LogLine

HOST_KEY = re.compile(r"sniperface host key: ((?:ssh|ecdsa|sk)-[\w@.-]+) ([A-Za-z0-9+/]+=*)(?:\s|$)")
BAD_START = "sniperface bad start: "
READY = "sniperface ready: "
HARDWARE = re.compile(r"sniperface hardware: gpus=(\d+)(?: memory_gib=([\d.]+))?")


@dataclass(frozen=True)
class Identity:
    host_keys: tuple[str, ...] = ()
    gpus: int | None = None
    memory_gib: float | None = None
    bad_start: str = ""  # why nobody will ever be able to log in


def read(lines: Iterable[LogLine]) -> Identity:
    """Of several boots the last one counts; only what the container said, from the beginning of a line."""
    keys: dict[str, str] = {}
    gpus: int | None = None
    memory_gib: float | None = None
    bad_start = ""
    for line in lines:
        if line.source != "container":
            continue
        if found := HOST_KEY.match(line.text):
            keys[found[1]] = f"{found[1]} {found[2]}"
        elif found := HARDWARE.match(line.text):
            gpus = int(found[1])
            memory_gib = float(found[2]) if found[2] else None
        elif line.text.startswith(BAD_START):
            bad_start = line.text.removeprefix(BAD_START)
        elif line.text.startswith(READY):
            bad_start = ""
    return Identity(tuple(keys.values()), gpus, memory_gib, bad_start)
