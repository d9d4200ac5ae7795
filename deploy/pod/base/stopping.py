"""Stop requests to a supervisor: a file or one signal to stop, a second signal to stop at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import RunFolder, read_json, write_json


class Stops:
    """Stop requests received so far. A closed terminal (SIGHUP) is ignored."""

    def __init__(self, folder: RunFolder) -> None:
        self.request = Path(folder.stop_request)
        self.signals = 0

        def ask(*_: object) -> None:
            self.signals += 1

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)
        if sys.platform == "win32":
            signal.signal(signal.SIGBREAK, ask)
        else:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @property
    def asked(self) -> bool:
        return self.signals > 0 or self.request.exists()

    @property
    def at_once(self) -> bool:
        return self.signals > 1

    @property
    def expired(self) -> str | None:
        """The guard's reason for the stop; None if a user asked for it."""
        reason = read_json(self.request).get("expired")
        return None if reason is None else str(reason)

    def done(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.request)


def ask_to_expire(folder: RunFolder, reason: str) -> None:
    """Write the guard's stop request. It replaces a user's, because it also contains the reason."""
    request: dict[str, Any] = {"expired": reason}
    if read_json(Path(folder.stop_request)) != request:
        try:
            write_json(Path(folder.stop_request), request)
        except OSError:
            with contextlib.suppress(OSError):
                Path(folder.stop_request).touch()  # on a full disk an empty request still fits
