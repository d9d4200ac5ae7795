"""Work whose hard part lets go of Python's lock, on many things at once, with progress that another process reads."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

REPORT_EVERY_S = 0.2
MOST_THREADS = 32  # more would wait for each other

Item = TypeVar("Item")


class BrokenOff(Exception):
    """Another thread has failed."""


class Progress:
    """Bytes done so far by all threads, printed now and then as a JSON object."""

    def __init__(self, all_bytes: int) -> None:
        self.all_bytes = all_bytes
        self.done_bytes = 0
        self.printed = 0.0
        self.over = threading.Event()
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more are done. Raises BrokenOff when that is of no use any more."""
        if self.over.is_set():
            raise BrokenOff
        with self.lock:
            self.done_bytes += count
            if time.monotonic() - self.printed > REPORT_EVERY_S or self.done_bytes == self.all_bytes:
                self.printed = time.monotonic()
                print(json.dumps({"done_bytes": self.done_bytes, "all_bytes": self.all_bytes}), flush=True)


def in_parallel(work: Callable[[Item], object], items: Iterable[Item], progress: Progress) -> None:
    """Do `work` for each item, a thread a core; the first failure ends the others at their next `progress.add`."""
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
    """What went wrong, not what was broken off because of it."""
    return next((each for each in [error, *others] if each is not None and not isinstance(each, BrokenOff)), error)
