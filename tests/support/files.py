"""Read files while other processes write, replace and delete them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run; [] before the first one. The half of a line that is being written is left out."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
    return [json.loads(line) for line in lines]


def below(folder: Path) -> Iterator[Path]:
    """Yield each file below a folder. Folders that vanish meanwhile are left out; Path.rglob would fail."""
    for above, _, names in os.walk(folder):
        for name in names:
            yield Path(above, name)


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield each regular file below a folder with its content. Files that vanish meanwhile are left out."""
    for path in below(folder):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.read_bytes()
