"""Do work in a thread of its own: to go on meanwhile, or to wait no longer than a limit.

The timeout of a socket is for each read, so a server that sends a byte now and then is never late. A limit for a whole
answer needs a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from deploy.shell.awake import awake_s

T = TypeVar("T")
INTERRUPTIBLE_S = 0.5  # on Windows, Ctrl-C cannot interrupt a longer wait


class Work(Generic[T]):
    """Calls a function in a daemon thread, which a program that ends does not wait for."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._found: list[T] = []
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True, name="work in the background")
        self._thread.start()

    def result(self, limit_s: float = float("inf")) -> T:
        """Wait for the result. Raises what the function raises, and TimeoutError after `limit_s`; it then goes on."""
        end = awake_s() + limit_s
        while self._thread.is_alive() and awake_s() < end:
            self._thread.join(min(INTERRUPTIBLE_S, max(0.0, end - awake_s())))
        if self._failed:
            raise self._failed[0]
        if not self._found:
            raise TimeoutError("the answer did not end in time")
        return self._found[0]

    def _run(self) -> None:
        try:
            self._found.append(self._function())
        except BaseException as error:
            self._failed.append(error)
