"""Worker processes that end together with the process that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end at once when this process fails, is interrupted, or is killed.

    They are spawned, not forked, so that they behave the same on every system.
    """
    context = get_context("spawn")
    alive, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow, initargs=(alive,))
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool as error:
        raise OSError("a worker was killed, probably because memory ran out; try again with workers=1") from error
    finally:
        lifeline.close()
        pool.shutdown(cancel_futures=True)
        alive.close()


def _follow(alive: Any) -> None:  # one end of a Pipe; its class differs between systems
    """In a worker: exit when the pipe's other end closes, on purpose or because its process died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent handles it

    def wait() -> None:
        try:
            alive.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer if this process may use only some cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
