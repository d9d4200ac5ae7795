"""How a run is asked to leave: by SIGTERM, by Ctrl-C, or by the end of its standard input.

The last one is the supervisor's way. It holds the other end of a pipe and closes it to stop the run; when the
supervisor is killed the system closes it, so ranks never outlive it. It works alike on Windows, which has no SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


class Stop:
    """Remembers whether leaving was asked for; the loop looks at it between steps."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def listen(self) -> Stop:
        """Start to listen. Standard input is only watched for a supervisor: by hand it may be closed already."""
        for name in ("SIGTERM", "SIGINT"):
            signal.signal(getattr(signal, name), lambda *_: self.asked.set())
        if os.environ.get("SNIPERFACE_SUPERVISED") == "1":
            threading.Thread(target=self._watch_stdin, name="stop", daemon=True).start()
        return self

    def _watch_stdin(self) -> None:
        # Not sys.stdin.read(): a daemon thread inside its lock would block the interpreter's exit.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        self.asked.set()
