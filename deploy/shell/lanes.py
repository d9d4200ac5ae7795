"""Many small requests over several connections at once, so that neither round trips nor one stream's window count.

OpenSSH lets 2 MiB be on their way in a channel: at 100 ms that is 20 MB/s, however wide the line is.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from deploy.errors import StepFailed
from deploy.shell.link import Link, LinkLost, Pending
from deploy.shell.ssh import SshShell

WINDOW_BYTES = 2 << 20
WANTED_BYTES_PER_S = 160e6  # what the windows of all lanes together let through; more costs handshakes
BYTES_A_LANE = 8 << 20  # a lane costs ten round trips before its first byte
FEWEST_LANES, MOST_LANES = 2, 16
# sshd begins to refuse at ten connections that have not logged in yet.
HANDSHAKES_AT_A_TIME = 8
IN_FLIGHT = 4  # requests of a lane; more than a window, so that the answer to one is never waited for
TRIES = 4
PAUSE_S = 0.3

T = TypeVar("T")


def count_for(size: int, round_trip_s: float) -> int:
    """How many lanes are worth it for so many bytes over a line with this round trip."""
    by_window = math.ceil(WANTED_BYTES_PER_S * round_trip_s / WINDOW_BYTES)
    return max(1, min(math.ceil(size / BYTES_A_LANE), max(FEWEST_LANES, by_window), MOST_LANES))


class Lanes(Generic[T]):
    """Asks for `request(chunk)`, a verb and its arguments, for every chunk; hands each answer to `took(chunk, value)`.

    `chunks` is drawn from by one thread at a time, `took` is called from many. When a connection breaks, a new one
    takes its place and what was not answered is asked for again, so a request must bear being carried out twice.
    """

    def __init__(
        self,
        shell: SshShell,
        chunks: Iterator[T],
        request: Callable[[T], tuple[str, dict[str, Any]]],
        took: Callable[[T, Any], None],
    ) -> None:
        self.shell = shell
        self.chunks = chunks
        self.request = request
        self.took = took
        self._changed = threading.Condition()
        self._links: set[Link] = set()
        self._returned: deque[T] = deque()
        self._all_drawn = False
        self._waited_for = 0  # chunks that were drawn and not answered yet
        self._failure: BaseException | None = None
        self._over = False
        self._handshakes = threading.Semaphore(HANDSHAKES_AT_A_TIME)
        self._coming_back = threading.Lock()
        self._ways: list[Callable[[], Link]] = [shell.native_link, shell.separate_link, shell.another_link]
        self._borrowed = False

    def run(self, count: int, report: Callable[[], None]) -> None:
        """Return when all is done; raise what went wrong first. `report` is called now and then, by this thread."""
        if count == 1:  # what is over before a new connection would be there
            self._ways, self._borrowed = [self.shell.link], True
        threads = [threading.Thread(target=self._lane, daemon=True, name=f"lane {n}") for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and self._failure is None:
                report()
                with self._changed:
                    self._changed.wait(0.1)
        finally:
            with self._changed:
                self._over = True
                links = list(self._links)
                self._changed.notify_all()
            for link in links:
                self._let_go(link)
            for thread in threads:
                thread.join(5)
        if self._failure is not None:
            raise self._failure
        report()

    def _lane(self) -> None:
        try:
            while (link := self._open()) is not None:
                try:
                    self._work(link)
                    return
                except LinkLost:
                    continue  # what was on its way has been handed back
                finally:
                    self._let_go(link)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _work(self, link: Link) -> None:
        flying: deque[tuple[T, Pending]] = deque()
        try:
            while True:
                while len(flying) < IN_FLIGHT and (chunk := self._draw(wait=not flying)) is not None:
                    verb, arguments = self.request(chunk)
                    flying.append((chunk, link.submit(verb, **arguments)))
                if not flying:
                    return
                value = flying[0][1].result()
                self.took(flying.popleft()[0], value)
                with self._changed:
                    self._waited_for -= 1
                    self._changed.notify_all()
        except BaseException:
            with self._changed:
                self._waited_for -= len(flying)
                self._returned.extend(chunk for chunk, _ in flying)
                self._changed.notify_all()
            raise

    def _draw(self, wait: bool) -> T | None:
        """The next chunk; None when there is none now, or with `wait`, when there will be none any more."""
        with self._changed:
            while not self._over:
                chunk = self._returned.popleft() if self._returned else None
                if chunk is None and not self._all_drawn:
                    chunk = next(self.chunks, None)
                    self._all_drawn = chunk is None
                if chunk is not None:
                    self._waited_for += 1
                    return chunk
                if not wait or self._waited_for == 0:
                    return None
                self._changed.wait(0.5)  # another lane may break, and hand back what it had
            return None

    def _open(self) -> Link | None:
        """A link for a lane; None when it is not needed any more, or when the others have to do without."""
        for attempt in range(TRIES):
            if self._is_done():
                return None
            try:
                with self._handshakes:
                    link = self._first_that_works()
            except LinkLost:
                if attempt and self._links:
                    return None
                with self._coming_back:
                    self.shell.call("clock")  # waits as long as the shell is willing to, and says what is wrong
                with self._changed:
                    self._changed.wait_for(self._is_done, PAUSE_S * (attempt + 1))
                continue
            with self._changed:
                self._links.add(link)
                is_late = self._over
            if is_late:
                self._let_go(link)
            return link
        if self._links or self._is_done():
            return None
        raise StepFailed("the machine answers, but refuses further connections for the copy")

    def _first_that_works(self) -> Link:
        """By the system's ssh, which is fastest; else by a Fabric connection of its own, else over the one there is."""
        lost: LinkLost | None = None
        for way in list(self._ways):
            try:
                return way()
            except LinkLost as error:
                lost = error
            except OSError as error:  # there is no ssh here
                self._ways = [each for each in self._ways if each != way]
                lost = LinkLost(str(error))
        assert lost is not None
        raise lost

    def _let_go(self, link: Link) -> None:
        with self._changed:
            self._links.discard(link)
        if not self._borrowed:
            link.close("closed")

    def _is_done(self) -> bool:
        return self._over or (self._all_drawn and not self._returned and self._waited_for == 0)


def round_trip_s(shell: SshShell) -> float:
    """Of the open connection, the agent's time included."""
    shell.link()
    started = time.monotonic()
    shell.call("clock")
    return time.monotonic() - started
