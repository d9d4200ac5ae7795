"""Read a pod's log from Server-Sent Events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone

from deploy.providers.runpod.api import LogLine

LINE_BYTES = 256 << 10  # a longer line is cut: nothing else bounds a container's output
DATA_LINES = 1000  # of one event


def parse(chunks: Iterable[bytes]) -> Iterator[LogLine]:
    """Parse events from chunks cut at any byte, even inside a character. Skips anything else."""
    data: list[str] = []
    for line in _lines(chunks):
        if line.startswith("data:"):
            data += [line[5:].removeprefix(" ")] if len(data) < DATA_LINES else []
        elif not line and data:
            event = _event("\n".join(data))
            if event:
                yield event
            data = []


def earlier(ts: str, seconds: float) -> str:
    """Return a timestamp some seconds earlier; an invalid one unchanged."""
    try:
        time = datetime.fromisoformat(ts[:19] + "+00:00")
    except ValueError:
        return ts
    return (time - timedelta(seconds=seconds)).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _event(data: str) -> LogLine | None:
    try:
        values = json.loads(data)
        return LogLine(str(values["line"]), str(values.get("source", "")))
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
