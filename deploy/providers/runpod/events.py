"""Read a pod's log from Server-Sent Events, and resume after a cut without losing or repeating a line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone

from deploy.providers.runpod.api import LogLine

# A cursor is a timestamp, and two lines may share it. Without overlap the second would be lost or repeated.
EARLIER_S = 2.0
LINE_BYTES = 256 << 10  # a longer line is cut: nothing else bounds a container's output
DATA_LINES = 1000  # of one event


def parse(chunks: Iterable[bytes]) -> Iterator[LogLine]:
    """Parse events from chunks cut at any byte, even inside a character. Skips anything else."""
    name = ""
    data: list[str] = []
    for line in _lines(chunks):
        if line.startswith("id:"):
            name = line[3:].strip()
        elif line.startswith("data:"):
            data += [line[5:].removeprefix(" ")] if len(data) < DATA_LINES else []
        elif not line and data:
            event = _event(name, "\n".join(data))
            if event:
                yield event
            data = []


def follow(open_stream: Callable[[str | None], Iterator[LogLine]], between: Callable[[], bool]) -> Iterator[LogLine]:
    """Yield the lines of a log, over as many streams as it takes.

    `open_stream(cursor)` returns the lines from a timestamp on. `between()` waits before the next stream; it returns
    False to stop.
    """
    recent: Counter[LogLine] = Counter()
    newest = ""
    while True:
        again = recent.copy()
        for line in open_stream(earlier(newest) if newest else None):
            if again[line] > 0:
                again[line] -= 1
                continue
            newest = max(newest, line.ts)
            recent[line] += 1
            yield line
        edge = earlier(newest)[:19]  # whole seconds: with fractions, "Z" and ".5Z" do not sort
        recent = Counter({line: count for line, count in recent.items() if line.ts[:19] >= edge})
        if not between():
            return


def earlier(ts: str, seconds: float = EARLIER_S) -> str:
    """Return a timestamp some seconds earlier; an invalid one unchanged."""
    try:
        time = datetime.fromisoformat(ts[:19] + "+00:00")
    except ValueError:
        return ts
    return (time - timedelta(seconds=seconds)).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _event(name: str, data: str) -> LogLine | None:
    try:
        values = json.loads(data)
        return LogLine(str(values["line"]), str(values.get("source", "")), str(values.get("ts", "")), name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Split a stream into lines, each cut to LINE_BYTES."""
    rest = bytearray()
    for chunk in chunks:
        *ended, more = chunk.split(b"\n")
        for piece in ended:
            rest += piece[: max(0, LINE_BYTES - len(rest))]
            yield bytes(rest).rstrip(b"\r").decode("utf-8", "replace")
            rest = bytearray()
        rest += more[: max(0, LINE_BYTES - len(rest))]
