"""A pod's log as Server-Sent Events: read, and read on after a cut without a line lost or doubled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone

from deploy.providers.runpod.api import LogLine

# A cursor is a time stamp, and two lines may have the same one: the second of them would be lost or come twice.
EARLIER_S = 2.0
LINE_BYTES = 256 << 10  # a longer line is cut: what comes from a container is not bounded by anybody else
DATA_LINES = 1000  # of one event


def parse(chunks: Iterable[bytes]) -> Iterator[LogLine]:
    """Events of a stream cut anywhere, inside letters too. What is no event of ours is passed over."""
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
    """One line after the other, over as many streams as it takes.

    `open_stream(cursor)` gives the lines from a time stamp on; `between()` waits before the next one, and says no
    when nobody wants to know any more.
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
        edge = earlier(newest)[:19]  # to the second: beyond it "Z" and ".5Z" do not sort
        recent = Counter({line: count for line, count in recent.items() if line.ts[:19] >= edge})
        if not between():
            return


def earlier(ts: str, seconds: float = EARLIER_S) -> str:
    """A time stamp some seconds before."""
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
    """Lines of a stream; of one that does not end, its first LINE_BYTES."""
    rest = bytearray()
    for chunk in chunks:
        *ended, more = chunk.split(b"\n")
        for piece in ended:
            rest += piece[: max(0, LINE_BYTES - len(rest))]
            yield bytes(rest).rstrip(b"\r").decode("utf-8", "replace")
            rest = bytearray()
        rest += more[: max(0, LINE_BYTES - len(rest))]
