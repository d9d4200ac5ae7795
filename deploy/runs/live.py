"""Follow the runs of this laptop for a page that stays open. Machines are asked in threads, at an interval.

A target is asked only while somebody looks, and only about runs that are not over. What its machine does not answer in
LIMIT_S costs one message: the page shows what was seen before.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from deploy.errors import DeployError
from deploy.pod.base.folder import FINAL_STATES, RunFolder
from deploy.runs import job, records, session
from deploy.runs.feed import NOTHING, Feed, Story
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.shell import LocalShell

HERE_EVERY_S = 1.0  # between two questions, to this computer
AWAY_EVERY_S = 5.0  # to another machine
AGAIN_MOST_S = 60.0  # after failures
LIMIT_S = 20.0  # for a machine to answer
SESSION_S = 60.0  # how long a machine that was looked up counts as there
WANTED_S = 15.0  # a target is asked until nobody has looked for this long
FEEDS_MOST = 8  # runs whose curves are kept
NEVER = float("-inf")  # a time before all others


@dataclass(frozen=True)
class Look:
    """What was seen of a run. `at`: when its machine was asked, Unix seconds; `problem`: why it did not answer."""

    status: job.Status | None = None
    at: float | None = None
    problem: str | None = None


class Live:
    """What is known of all runs, and the threads that ask for more."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.book = project / "runs"
        self._lock = threading.Lock()
        self._looks: dict[str, Look] = {}
        self._feeds: OrderedDict[str, Feed] = OrderedDict()
        self._watched: dict[str, float] = {}  # run -> when its page was last looked at
        self._askers: dict[str, Asker] = {}

    def want(self, record: Record, *, whole: bool = False) -> Look:
        """What was last seen of a run; has its machine asked again unless it is over. `whole`: curves and log too."""
        if record.state not in FINAL_STATES:
            if whole:
                self._watched[record.run_id] = time.monotonic()
            self.asker(record.target).want()
        return self._looks.get(record.run_id, Look())

    def story(self, record: Record) -> Story:
        """Curves and log of a run: from this computer, else as its machine told them."""
        folder = self.here(record)
        if folder is None:
            known = self._feeds.get(record.run_id)
            return known.story if known else NOTHING
        try:
            return self.feed(record.run_id, folder).read(LocalShell())
        except (DeployError, OSError):
            return NOTHING

    def feed(self, run_id: str, folder: RunFolder) -> Feed:
        """The one feed of a run. A run that is read in another folder now is read from its beginning."""
        with self._lock:
            feed = self._feeds.get(run_id)
            if feed is None or feed.folder.path != folder.path:
                feed = Feed(LocalShell(), folder)
            self._feeds[run_id] = feed
            self._feeds.move_to_end(run_id)
            while len(self._feeds) > FEEDS_MOST:
                self._feeds.popitem(last=False)
            return feed

    def asker(self, target: str) -> Asker:
        with self._lock:
            if target not in self._askers:
                self._askers[target] = Asker(self, target)
            return self._askers[target]

    def is_watched(self, run_id: str) -> bool:
        return time.monotonic() - self._watched.get(run_id, NEVER) < WANTED_S

    def note(self, run_id: str, change: Callable[[Look], Look]) -> None:
        with self._lock:
            self._looks[run_id] = change(self._looks.get(run_id, Look()))

    def here(self, record: Record) -> RunFolder | None:
        """A folder on this computer with a run's metrics: the one that the job writes, or the copy of a run's end."""
        own, copy = Path(record.run_dir), self.book / record.run_id
        if own.is_absolute() and own.name == record.run_id and os.path.isfile(RunFolder(own).metrics):
            return RunFolder(own)
        return RunFolder(copy) if record.state in FINAL_STATES and os.path.isfile(RunFolder(copy).metrics) else None


class Asker:
    """Asks the machines of one target about its live runs, in a thread that ends when nobody looks any more."""

    def __init__(self, live: Live, target: str) -> None:
        self.live = live
        self.target = target
        self.asking = threading.Lock()  # held while run.json may be written
        self._wanted_at = NEVER
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._failures = 0
        self._not_before = NEVER

    def want(self) -> None:
        """Ask soon, and go on asking for WANTED_S."""
        self._wanted_at = time.monotonic()
        with self._starting:
            if (self._thread is None or not self._thread.is_alive()) and time.monotonic() >= self._not_before:
                self._thread = threading.Thread(target=self._ask_while_wanted, name=f"ask {self.target}", daemon=True)
                self._thread.start()

    def _ask_while_wanted(self) -> None:
        while self._is_wanted() and self._live_runs():
            try:
                self._session()
                self._failures = 0
            except Exception as error:  # of any kind: the machine is not trusted, and must not end the page
                self._failures += 1
                words = error.message if isinstance(error, DeployError) else f"{type(error).__name__}: {error}"
                for record in self._live_runs():
                    self.live.note(record.run_id, partial(replace, problem=words))
                self._not_before = time.monotonic() + min(AGAIN_MOST_S, AWAY_EVERY_S * 2**self._failures)
                return

    def _session(self) -> None:
        """Ask with one connection for SESSION_S."""
        until = time.monotonic() + SESSION_S
        with session.target(self.live.project, self.target) as at:
            at.limit_s = LIMIT_S
            while self._is_wanted() and time.monotonic() < until:
                every_s = HERE_EVERY_S
                with self.asking:
                    at.renew()
                    found = self._live_runs()
                    for record in found:
                        every_s = max(every_s, self._ask(at, record))
                if not found:
                    return
                time.sleep(every_s)

    def _ask(self, at: Reach, record: Record) -> float:
        """Ask one machine about one run. Returns how long to wait before the next question, in seconds."""
        machine = at.machine(record.machine)
        record, seen = at.look(record)
        if machine is not None and not machine.is_here and self.live.is_watched(record.run_id):
            folder = RunFolder(machine.path(record.run_dir))
            self.live.feed(record.run_id, folder).read(at.shell(machine))
        self.live.note(record.run_id, lambda _: Look(seen, time.time()))
        return HERE_EVERY_S if machine is None or machine.is_here else AWAY_EVERY_S

    def _live_runs(self) -> list[Record]:
        every = records.every(self.live.book, self.target)
        return [record for record in every if record.state not in FINAL_STATES]

    def _is_wanted(self) -> bool:
        return time.monotonic() - self._wanted_at < WANTED_S
