"""PURE: what RunPod's host says in a pod's log while the pod starts, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.pod.base.text import visible
from deploy.providers.runpod.api import LogLine
from deploy.providers.runpod.identity import READY

WORDS = 200  # of a line that is shown
# Another host may do better: its driver, its disk, the pulls that a registry grants its address.
HOST = re.compile(
    r"toomanyrequests|rate limit|requirement error|unsatisfied condition|nvidia-container-cli|"
    r"driver/library version mismatch|could not select device driver|no space left on device|disk quota exceeded|"
    r"error (starting|creating) container|failed to create (shim )?task|oci runtime create failed",
    re.IGNORECASE,
)
# Every host would say the same of this image.
IMAGE = re.compile(
    r"manifest unknown|manifest for .{1,300} not found|no matching manifest|pull access denied|"
    r"repository does not exist|access to the resource is denied|unauthorized|authentication required|"
    r"invalid reference format",
    re.IGNORECASE,
)
PULL_LIMIT = re.compile(r"toomanyrequests|rate limit", re.IGNORECASE)


@dataclass(frozen=True)
class Signs:
    """`fault`: the host's words, when the pod will never run there. `everywhere`: nor will it on another host."""

    fault: str = ""
    everywhere: bool = False
    last: str = ""  # the newest line of anybody: a sign of life


def read(lines: Iterable[LogLine]) -> Signs:
    """Only the host's own lines name a fault; our image's word that it is ready ends an earlier one."""
    fault, everywhere, last = "", False, ""
    for line in lines:
        last = visible(line.text[:WORDS], newlines=False)
        if line.source == "container" and line.text.startswith(READY):
            fault, everywhere = "", False
        elif line.source == "system" and (HOST.search(line.text) or IMAGE.search(line.text)):
            fault = last
            everywhere = bool(IMAGE.search(line.text)) and not PULL_LIMIT.search(line.text)
    return Signs(fault, everywhere, last)
