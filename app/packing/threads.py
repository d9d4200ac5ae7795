"""Run work that releases the GIL in parallel threads, and print progress for another process."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

REPORT_EVERY_S = 0.2
MOST_THREADS = 32  # more threads would wait for each other

Item = TypeVar("Item")


class BrokenOff(Exception):
    """Another thread has failed."""


class Progress:
    """Count the bytes done by all threads and print them as a JSON object, at most every REPORT_EVERY_S seconds."""

    def __init__(self, all_bytes: int) -> None:
        self.all_bytes = all_bytes
        self.done_bytes = 0
        self.printed = 0.0
        self.over = threading.Event()
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        """Add `count` bytes. Raises BrokenOff if another thread has failed."""
        if self.over.is_set():
            raise BrokenOff
        with self.lock:
            self.done_bytes += count
            if time.monotonic() - self.printed > REPORT_EVERY_S or self.done_bytes == self.all_bytes:
                self.printed = time.monotonic()
                print(json.dumps({"done_bytes": self.done_bytes, "all_bytes": self.all_bytes}), flush=True)


def in_parallel(work: Callable[[Item], object], items: Iterable[Item], progress: Progress) -> None:
    """Run `work` on each item, one thread per core; a failure ends the other threads at their next `progress.add`."""
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            progress.over.set()
            pool.shutdown(cancel_futures=True)
            raise _first(error, [future.exception() for future in futures if not future.cancelled()]) from None


def _first(error: BaseException, others: Iterable[BaseException | None]) -> BaseException:
    """Return the first error that is not BrokenOff, which is only a consequence."""
    return next((each for each in [error, *others] if each is not None and not isinstance(each, BrokenOff)), error)
