"""What a job has written to metrics.jsonl so far: where it is, and how it ended."""

from __future__ import annotations

import contextlib
import json
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
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        for key in ("epoch", "step", "images_per_s"):
            if event.get(key) is not None:
                self.position[key] = event[key]
        if event.get("event") == "end":
            self.end = event
