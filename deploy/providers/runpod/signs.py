"""Find faults that RunPod's host reports in a pod's log while the pod starts. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.pod.base.text import visible
from deploy.providers.runpod.api import LogLine
from deploy.providers.runpod.identity import READY

WORDS = 200  # characters of a line that is displayed
# Parts of the reasons for a refusal; messages.py gives each its advice.
EMPTY_LOG, CLOSED_PORT = "but its log is empty", "does not answer this computer"
# Faults of this host: its driver, its disk, its address's pull limit at a registry. Another host may work.
HOST = re.compile(
    r"toomanyrequests|rate limit|requirement error|unsatisfied condition|nvidia-container-cli|"
    r"driver/library version mismatch|could not select device driver|no space left on device|disk quota exceeded|"
    r"error (starting|creating) container|failed to create (shim )?task|oci runtime create failed",
    re.IGNORECASE,
)
# Faults of the image, the same on every host.
IMAGE = re.compile(
    r"manifest unknown|manifest for .{1,300} not found|no matching manifest|pull access denied|"
    r"repository does not exist|access to the resource is denied|unauthorized|authentication required|"
    r"invalid reference format",
    re.IGNORECASE,
)
PULL_LIMIT = re.compile(r"toomanyrequests|rate limit", re.IGNORECASE)


@dataclass(frozen=True)
class Signs:
    """`fault`: the host's message, when the pod will never run there. `everywhere`: nor on any other host."""

    fault: str
    everywhere: bool
    last: str  # the newest line from any source: a sign of life
    is_ready: bool  # the SSH server of the newest boot listens


def read(lines: Iterable[LogLine]) -> Signs:
    """Read the signs in a log. Only the host's lines name a fault; a ready line of our image clears earlier ones."""
    fault, everywhere, last, is_ready = "", False, "", False
    for line in lines:
        last = visible(line.text[:WORDS], newlines=False)
        if line.source == "container" and line.text.startswith(READY):
            fault, everywhere, is_ready = "", False, True
        elif line.source == "system" and (HOST.search(line.text) or IMAGE.search(line.text)):
            fault = last
            everywhere = bool(IMAGE.search(line.text)) and not PULL_LIMIT.search(line.text)
    return Signs(fault, everywhere, last, is_ready)
