"""Read a job's metrics.jsonl: its progress, how it ended, and the part up to a checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsTail:
    """Read new lines only. `begin` discards the end of an earlier start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self.position: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.accuracy: float | None = None  # of the newest evaluation on held-out people

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
        measured = event.get("accuracy")
        if event.get("what") == "trained" and isinstance(measured, (int, float)):
            self.accuracy = float(measured)


def up_to(told: bytes, note: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Return the part of a metrics.jsonl up to a checkpoint, and whether it reaches that checkpoint.

    `note` is the checkpoint's JSON. Later lines are cut: the run that resumes there writes them again. An "end" event
    right after the checkpoint stays, because it is not written again.
    """
    lines = [line for line in told.splitlines(keepends=True) if line.endswith(b"\n")]
    events = [_event(line) for line in lines]
    for place, event in enumerate(events):
        if event.get("event") == "checkpoint" and event.get("sha256") == note["sha256"]:
            is_end = [after.get("event") == "end" for after in events[place + 1 : place + 2]]
            return b"".join(lines[: place + 1 + sum(is_end)]), True
    # The checkpoint's event is missing: the file was read or copied before it was written. Compare steps instead.
    steps = [event["step"] if isinstance(event.get("step"), int) else 0 for event in events]
    count = next((place for place, step in enumerate(steps) if step > note["step"]), len(steps))
    return b"".join(lines[:count]), note["step"] in steps[:count]


def _event(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict):
            return event
    return {}
