"""What a job has written to metrics.jsonl: where it is, how it ended, and what it had told up to a checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsTail:
    """Reads only what is new. `begin` forgets how an earlier start ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self.position: dict[str, Any] = {}
        self.end: dict[str, Any] = {}

    def begin(self) -> None:
        self.read()
        self.end = {}

    def read(self) -> None:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            self._take(_event(line))

    def _take(self, event: dict[str, Any]) -> None:
        for key in ("epoch", "step", "images_per_s"):
            if event.get(key) is not None:
                self.position[key] = event[key]
        if event.get("event") == "end":
            self.end = event


def up_to(told: bytes, note: Mapping[str, Any]) -> tuple[bytes, bool]:
    """The beginning of a metrics.jsonl, up to the checkpoint of this note, and whether it comes that far.

    What follows would be told a second time by the run that goes on from there. Only the end of the attempt that made
    the checkpoint stays, as nobody tells it again.
    """
    lines = [line for line in told.splitlines(keepends=True) if line.endswith(b"\n")]
    events = [_event(line) for line in lines]
    for place, event in enumerate(events):
        if event.get("event") == "checkpoint" and event.get("sha256") == note["sha256"]:
            is_end = [after.get("event") == "end" for after in events[place + 1 : place + 2]]
            return b"".join(lines[: place + 1 + sum(is_end)]), True
    # Read between the checkpoint and the word about it, or copied before: steps are the measure.
    steps = [event["step"] if isinstance(event.get("step"), int) else 0 for event in events]
    count = next((place for place, step in enumerate(steps) if step > note["step"]), len(steps))
    return b"".join(lines[:count]), note["step"] in steps[:count]


def _event(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict):
            return event
    return {}
