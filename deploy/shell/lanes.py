"""Many small requests over parallel connections, so that neither round trips nor one stream's window limit the speed.

OpenSSH allows 2 MiB in flight per channel: at 100 ms that is 20 MB/s, however fast the network is.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from deploy.errors import StepFailed
from deploy.pod.base.retry import LANE_PAUSES_S
from deploy.shell.link import Link, LinkLost, NoAgent, Pending
from deploy.shell.ssh import SshShell

WINDOW_BYTES = 2 << 20
WANTED_BYTES_PER_S = 160e6  # throughput that the windows of all lanes together allow; more costs handshakes
BYTES_A_LANE = 8 << 20  # a lane costs ten round trips before its first byte
FEWEST_LANES, MOST_LANES = 2, 16
HANDSHAKES_AT_A_TIME = 8  # sshd starts to refuse at ten connections that are not authenticated yet
# Channels of the open connection: ready after two round trips, long before the lanes. Paramiko is slow on Windows,
# where the transfer would wait for the helpers' last requests.
HELPERS = 1 if sys.platform == "win32" else 4
IN_FLIGHT = 4  # requests per lane: more than a window holds, so that a lane never idles between answers
GOODBYE_S = 5.0

T = TypeVar("T")


def count_for(size: int, round_trip_s: float) -> int:
    """Return how many lanes pay off for `size` bytes with this round trip."""
    by_window = math.ceil(WANTED_BYTES_PER_S * round_trip_s / WINDOW_BYTES)
    return max(1, min(math.ceil(size / BYTES_A_LANE), max(FEWEST_LANES, by_window), MOST_LANES))


class Lanes(Generic[T]):
    """Parallel connections, opened in the background from the start of the `with` block. With `count` 1, the open one.

    A broken connection is replaced, and its unanswered requests are sent again: requests must be idempotent.
    """

    def __init__(self, shell: SshShell, count: int) -> None:
        self.shell = shell
        self.count = count
        # Where windows limit the speed, those of the helpers are worth their cost until the end.
        self.helpers = HELPERS if count > FEWEST_LANES else 1
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._links: set[Link] = set()
        self._chunks: Iterator[T] = iter(())
        self._all_drawn = True
        self._returned: deque[T] = deque()  # by a broken lane
        self._under_way = 0  # chunks drawn but not answered yet
        self._failure: BaseException | None = None
        self._over = False
        self._handshakes = threading.Semaphore(HANDSHAKES_AT_A_TIME)
        self._coming_back = threading.Lock()
        self._ways: list[Callable[[], Link]] = [shell.native_link, shell.separate_link, shell.another_link]
        self._proven: set[Callable[[], Link]] = set()

    def __enter__(self) -> Lanes[T]:
        if self.count > 1:
            for _ in range(self.count):
                self._start(self._lane)
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            links = list(self._links)
            self._changed.notify_all()
        for link in links:
            link.close()
        limit_s = time.monotonic() + GOODBYE_S
        for thread in self._threads:
            thread.join(max(0.0, limit_s - time.monotonic()))

    def carry(
        self,
        chunks: Iterator[T],
        request: Callable[[T], tuple[str, dict[str, Any]]],
        took: Callable[[T, Any], None],
        report: Callable[[], None],
    ) -> None:
        """Send `request(chunk)`, a verb and its arguments, for each chunk, and pass each answer to `took`.

        One thread at a time reads `chunks`; many call `took`; this one calls `report` now and then. Returns when all is
        done. Raises the first error, after the answers to what was sent: else the machine could still write to a file
        that the caller then removes.
        """
        self.request, self.took = request, took
        with self._changed:
            self._chunks, self._all_drawn = chunks, False
            self._changed.notify_all()
        if self.count == 1:
            self._start(self._alone)
        else:
            for number in range(self.helpers):
                self._start(self._help, number)
        while True:
            report()
            with self._changed:
                if self._failure is not None:
                    self._changed.wait_for(lambda: self._under_way == 0, GOODBYE_S)
                    raise self._failure
                if self._is_done():
                    break
                self._changed.wait(0.1)
        report()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=self._guarded, args=(work, *arguments), daemon=True, name=work.__name__)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run `work` in a thread, and store its error for `carry` to raise."""
        try:
            work(*arguments)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _lane(self) -> None:
        while (link := self._open()) is not None:
            try:
                self._work(link, lambda: True)
                return
            except LinkLost:
                continue  # its unanswered chunks were returned
            finally:
                with self._changed:
                    self._links.discard(link)
                link.close()

    def _alone(self) -> None:
        """Work over the open connection, which reconnects by itself."""
        while not self._is_done() and not self._over and self._failure is None:
            with contextlib.suppress(LinkLost):
                self._work(self.shell.link(), lambda: not self._is_done())
                return
            self.shell.call("clock")

    def _help(self, number: int) -> None:
        """Work over a channel of the open connection. A single helper stops when the first lane is open.

        Helper 0 borrows the shell's own link and leaves it open.
        """
        with contextlib.suppress(LinkLost):
            link = self.shell.another_link() if number else self.shell.link()
            try:
                self._work(link, lambda: (self.helpers > 1 or not self._links) and not self._is_done())
            finally:
                if number:
                    link.close()

    def _work(self, link: Link, goes_on: Callable[[], bool]) -> None:
        flying: deque[tuple[T, Pending]] = deque()
        try:
            while True:
                while len(flying) < IN_FLIGHT and (chunk := self._draw(goes_on, wait=not flying)) is not None:
                    verb, arguments = self.request(chunk)
                    flying.append((chunk, link.submit(verb, **arguments)))
                if not flying:
                    return
                self._take(*flying.popleft())
        except BaseException as error:
            for _, pending in flying if not isinstance(error, LinkLost) else ():
                with contextlib.suppress(Exception):
                    pending.result()
            with self._changed:
                self._under_way -= len(flying)
                self._returned.extend(chunk for chunk, _ in flying)
                self._changed.notify_all()
            raise

    def _take(self, chunk: T, pending: Pending) -> None:
        try:
            self.took(chunk, pending.result())
        except LinkLost:
            self._returned.append(chunk)
            raise
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _draw(self, goes_on: Callable[[], bool], wait: bool) -> T | None:
        """Return the next chunk; None if there is none now or, with `wait`, no reason to wait longer."""
        with self._changed:
            while goes_on() and self._failure is None and not self._over:
                chunk = self._returned.popleft() if self._returned else None
                if chunk is None and not self._all_drawn:
                    chunk = next(self._chunks, None)
                    self._all_drawn = chunk is None
                    self._changed.notify_all()
                if chunk is not None:
                    self._under_way += 1
                    return chunk
                if not wait:
                    return None
                self._changed.wait(0.5)  # another lane may break and return its chunks
            return None

    def _open(self) -> Link | None:
        """Return a link for a lane; None if the other lanes must do without it."""
        for attempt, pause_s in enumerate(LANE_PAUSES_S):
            if self._over:
                return None
            try:
                with self._handshakes:
                    link = self._first_that_works()
            except LinkLost:
                if attempt and self._links:
                    return None
                with self._coming_back:
                    self.shell.call("clock")  # reconnects for up to `patience_s`, or raises the reason
                with self._changed:
                    self._changed.wait_for(lambda: self._over, pause_s)
                continue
            with self._changed:
                self._links.add(link)
                is_late = self._over
            if is_late:
                link.close()
            return link
        if self._links:
            return None
        raise StepFailed("the machine answers, but refuses further connections for the copy")

    def _first_that_works(self) -> Link:
        """Open a link by the system's ssh, which is fastest, else a new Fabric connection, else the open one."""
        failed: list[Callable[[], Link]] = []
        for way in list(self._ways):
            try:
                link = way()
            except (LinkLost, NoAgent, OSError) as error:  # OSError: there is no ssh here
                lost = error
                failed.append(way)
                continue
            self._proven.add(way)
            self._ways = [each for each in self._ways if each not in failed or each in self._proven]
            return link
        raise LinkLost(str(lost)) from lost

    def _is_done(self) -> bool:
        return self._all_drawn and not self._returned and self._under_way == 0
