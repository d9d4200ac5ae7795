"""How a run is asked to leave: by SIGTERM, by Ctrl-C, or by the end of its standard input.

The last one is the supervisor's way. It holds the other end of a pipe and closes it to stop the run; when the
supervisor is killed the system closes it, so ranks never outlive it. It works alike on Windows, which has no SIGTERM.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from app.errors import Failed
from app.runtime.dist import World, any_rank

# Long work of several ranks calls one in each piece of it, all ranks equally often. It raises Interrupted on all ranks
# where one was asked to leave.
Poll = Callable[[], None]


def undisturbed() -> None:
    """The poll of work that nobody interrupts."""


class Interrupted(Failed):
    """The work was stopped half way, on every rank; nothing of it is used but what it keeps on disk itself."""

    def __init__(self) -> None:
        super().__init__("stopped; the same command goes on from here")


class Stop:
    """Remembers whether leaving was asked for; the loop looks at it between steps."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._leaves_at_once = False

    def listen(self) -> Stop:
        """Start to listen. Standard input is only watched for a supervisor: by hand it may be closed already."""
        for name in ("SIGTERM", "SIGINT"):
            signal.signal(getattr(signal, name), self._hear)
        if os.environ.get("SNIPERFACE_SUPERVISED") == "1":
            threading.Thread(target=self._watch_stdin, name="stop", daemon=True).start()
        return self

    @contextmanager
    def at_once(self, here: World) -> Iterator[None]:
        """Work that can be given up at any point: a stop raises Interrupted in it, unless there are several ranks.

        Ranks that wait for each other cannot leave one by one; their work looks at `asked` itself and agrees.
        """
        if here.size > 1:
            yield
            return
        self._leaves_at_once = True
        try:
            if self.asked.is_set():
                raise Interrupted
            yield
        except Exception as error:
            if not self._leaves_at_once:  # the stop came through a handler that made another error of it
                raise Interrupted from error
            raise
        finally:
            self._leaves_at_once = False

    def leave_together(self, here: World) -> None:
        """Raise Interrupted on all ranks where one of them was asked to leave."""
        if any_rank(self.asked.is_set(), here):
            raise Interrupted

    def _hear(self, *_: Any) -> None:
        self.asked.set()
        if self._leaves_at_once:
            self._leaves_at_once = False  # once: what tidies up is not disturbed
            raise Interrupted

    def _watch_stdin(self) -> None:
        # Not sys.stdin.read(): a daemon thread inside its lock would block the interpreter's exit.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        self.asked.set()
        _thread.interrupt_main(signal.SIGTERM)  # as if it had come to the main thread, also on Windows
