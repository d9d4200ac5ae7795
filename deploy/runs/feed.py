"""Read a run's metrics and log as they grow, for a page that stays open: curves, newest events, last lines."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy import border
from deploy.pod.base.folder import RunFolder
from deploy.pod.base.text import visible_log
from deploy.runs import job
from deploy.shell import Shell

POINTS_MOST = 2000  # of one curve, an even number: of so many points, two become one each
REFRESHES_MOST = 500
LOG_BYTES = 16 << 10  # of the log's end
LOG_LINES = 40
LINE_CHARACTERS = 400

Point = tuple[float, float]  # step, value


@dataclass(frozen=True)
class Story:
    """What a run has told by now."""

    events: list[dict[str, Any]]  # the newest of each kind
    loss: tuple[Point, ...]
    accuracy: tuple[Point, ...]  # on held-out people
    refreshes: tuple[float, ...]  # steps at which the pseudo-IDs, and with them the meaning of the loss, changed
    log: tuple[str, ...]


NOTHING = Story([], (), (), (), ())


class Curve:
    """Values by step. A step that was trained again, because the run was continued, replaces what was after it."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def add(self, step: float, value: float) -> None:
        while self.points and self.points[-1][0] >= step:
            self.points.pop()
        self.points.append((step, value))
        if len(self.points) == POINTS_MOST:  # an even number: the newest point stays
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(step, (before + value) / 2) for (_, before), (step, value) in pairs]


class Feed:
    """One run's metrics and log on one shell. Each `read` asks for the new bytes alone."""

    def __init__(self, shell: Shell, folder: RunFolder) -> None:
        self.folder = folder
        self.story = NOTHING
        self._lock = threading.Lock()
        self._log: job.Tail | None = None
        self._text = ""
        self._begin(shell)

    def read(self, shell: Shell) -> Story:
        """Read what is new. Raises OSError or DeployError as the shell does."""
        with self._lock:
            log = self._log_on(shell)
            size = min(shell.bytes_in(self.folder.metrics), border.FILE_BYTES["metrics.jsonl"])
            if size < self._events.tail.offset:  # shorter than what was read of it: it is another file now
                self._begin(shell)
            self._events.tail.shell = shell
            while True:
                self._add(self._events.read())
                if not self._events.tail.is_behind or self._events.tail.offset >= size:
                    break
            text = log.read()
            while log.is_behind:
                text = text[-LOG_BYTES:] + log.read()
            self._text = (self._text + text)[-LOG_BYTES:]
            self.story = Story(
                events=self._newest.events(),
                loss=tuple(self._loss.points),
                accuracy=tuple(self._accuracy.points),
                refreshes=tuple(self._refreshes),
                log=last_lines(self._text),
            )
            return self.story

    def _begin(self, shell: Shell) -> None:
        self._events = job.Events(shell, self.folder.metrics)
        self._newest = border.Newest()
        self._loss, self._accuracy = Curve(), Curve()
        self._refreshes: deque[float] = deque(maxlen=REFRESHES_MOST)

    def _log_on(self, shell: Shell) -> job.Tail:
        size = shell.bytes_in(self.folder.log)
        if self._log is None or size < self._log.offset or size > self._log.offset + job.PIECE_BYTES:
            self._text = ""
            self._log = job.Tail(shell, self.folder.log, max(0, size - LOG_BYTES), LOG_BYTES)
        self._log.shell = shell
        return self._log

    def _add(self, events: Sequence[dict[str, Any]]) -> None:
        self._newest.add(events)
        for event in events:
            kind, step = event.get("event"), event.get("step")
            if not isinstance(step, int | float):
                continue
            if kind == "step" and event.get("loss") is not None:
                self._loss.add(step, event["loss"])
            elif kind == "eval" and event.get("what") == "trained":
                self._accuracy.add(step, event["accuracy"])
            elif kind == "mining" and event.get("accepted", True):
                self._refreshes.append(step)


def last_lines(text: str) -> tuple[str, ...]:
    """The last lines of a log, safe to show."""
    lines = [line for line in visible_log(text).split("\n") if line.strip()]
    return tuple(border.cut(line, LINE_CHARACTERS) for line in lines[-LOG_LINES:])
