"""Stop requests of a run: SIGTERM, Ctrl-C, or the end of standard input.

The supervisor uses standard input: it holds the other end of a pipe and closes it to stop the run. If the supervisor is
killed, the system closes the pipe, so ranks never outlive it. This also works on Windows, which has no SIGTERM.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from app.errors import Failed
from app.runtime.dist import World, any_rank

# Long work calls a poll once per piece, equally often on all ranks. If one rank was asked to stop, the poll raises
# Interrupted on all.
Poll = Callable[[], None]


LOOK_S = 0.2


def undisturbed() -> None:
    """A poll that never interrupts."""


class Interrupted(Failed):
    """Work was stopped midway, on every rank. Its result is lost, except what the work itself keeps on disk."""

    def __init__(self) -> None:
        super().__init__("stopped; run the same command to continue")


class Stop:
    """Records a stop request; the training loop checks it between steps."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._leaves_at_once = False

    def listen(self) -> Stop:
        """Start listening. Watches standard input only under a supervisor: by hand it may be closed already."""
        for name in ("SIGTERM", "SIGINT"):
            signal.signal(getattr(signal, name), self._hear)
        if os.environ.get("SNIPERFACE_SUPERVISED") == "1":
            threading.Thread(target=self._watch_stdin, name="stop", daemon=True).start()
        return self

    @contextmanager
    def at_once(self, here: World) -> Iterator[None]:
        """Work that may be abandoned at any point: with one rank, a stop raises Interrupted inside.

        Several ranks wait for each other and cannot leave one by one: their work checks `asked` and agrees to stop.
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
            if not self._leaves_at_once:  # a handler inside turned Interrupted into another error
                raise Interrupted from error
            raise
        finally:
            self._leaves_at_once = False

    def leave_together(self, here: World) -> None:
        """Raise Interrupted on all ranks if one of them was asked to stop."""
        if any_rank(self.asked.is_set(), here):
            raise Interrupted

    def _hear(self, *_: Any) -> None:
        self.asked.set()
        if self._leaves_at_once:
            self._leaves_at_once = False  # only once, so that cleanup is not interrupted
            raise Interrupted

    def _watch_stdin(self) -> None:
        # Not sys.stdin.read(): a daemon thread inside its lock would block the interpreter's exit.
        await_end(sys.stdin.fileno(), peek_of_windows())
        self.asked.set()
        _thread.interrupt_main(signal.SIGTERM)  # as if the main thread had got the signal; works on Windows too


Peek = Callable[[int], int | None]  # descriptor -> bytes that can be read, None once the other end is closed


def await_end(descriptor: int, peek: Peek | None) -> None:
    """Return once the other end of a pipe is closed. With `peek`, never inside a read: look at it every LOOK_S.

    Windows lets everything else wait that touches a pipe in which a thread reads, also in other processes that inherit
    it. Python looks at its standard input when it starts, and Fortran's library when numpy or scipy loads it: ranks and
    imports would hang (numpy issue 24290).
    """
    if peek is None:
        while os.read(descriptor, 4096):
            pass
        return
    while (count := peek(descriptor)) is not None:
        if count:
            os.read(descriptor, count)
        else:
            time.sleep(LOOK_S)


def peek_of_windows() -> Peek | None:
    """Return PeekNamedPipe of Windows; None on other systems."""
    if sys.platform != "win32":
        return None
    import ctypes
    import msvcrt

    ask = ctypes.WinDLL("kernel32").PeekNamedPipe
    ask.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, *[ctypes.c_void_p] * 3]

    def peek(descriptor: int) -> int | None:
        there = ctypes.c_uint32()
        known = ask(msvcrt.get_osfhandle(descriptor), None, 0, None, ctypes.byref(there), None)
        return there.value if known else None

    return peek
