"""How a supervisor is asked to end its run: by a file, by a signal, or by a second signal for an end at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import RunFolder, read_json, write_json


class Stops:
    """What was asked for so far. A closed terminal means nothing."""

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
        """Why the guard wants the end; None when a user does."""
        reason = read_json(self.request).get("expired")
        return None if reason is None else str(reason)

    def done(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.request)


def ask_to_expire(folder: RunFolder, reason: str) -> None:
    """The guard's request. It takes the place of a user's: both want the same, and the guard's says why."""
    request: dict[str, Any] = {"expired": reason}
    if read_json(Path(folder.stop_request)) != request:
        with contextlib.suppress(OSError):
            Path(folder.stop_request).touch()  # on a full disk an empty request is possible, and better than none
            write_json(Path(folder.stop_request), request)
