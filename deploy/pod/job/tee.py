"""Copy a job's output to the terminal that `attach` opens and to the log of the container.

The provider shows the container's log even if SSH is down. Neither copy may block or end the job.
"""

from __future__ import annotations

import contextlib
import os
import sys

OUR_IMAGE = "SNIPERFACE_PYTHON"
CONTAINER_LOG = "/proc/1/fd/1"  # the standard output of a container's first process


class Echo:
    """Write bytes to each destination until it fails. Drops them if the container's log is full."""

    def __init__(self) -> None:
        self._places: list[int] = []
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._places.append(sys.stdout.fileno())
        if os.environ.get(OUR_IMAGE) and hasattr(os, "O_NONBLOCK"):
            # Opened anew, so that O_NONBLOCK affects only this process. A full log would block the supervisor.
            with contextlib.suppress(OSError):
                self._places.append(os.open(CONTAINER_LOG, os.O_WRONLY | os.O_NONBLOCK))

    def __call__(self, text: bytes) -> None:
        for place in list(self._places):
            try:
                os.write(place, text)
            except BlockingIOError:  # full; the bytes are in train.log anyway
                continue
            except OSError:
                self._places.remove(place)
