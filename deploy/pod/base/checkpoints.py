"""Checkpoints of a run folder, on the machine: which are whole, which is the newest, who else has it.

The JSON beside a .pt is written last and holds its sha256; a .pt without one was cut short. Beside them may lie notes
about copies that were verified elsewhere: `NAME.pt.fetched`, by the laptop, and `NAME.pt.synced`, by the final sync,
each a JSON object with the copy's sha256.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import RunFolder, read_json

CHUNK_BYTES = 4 << 20
FETCHED, SYNCED = ".fetched", ".synced"


def described(folder: RunFolder) -> list[dict[str, Any]]:
    """The JSON of each checkpoint whose file is there in full length, the newest first; nothing is hashed."""
    notes = []
    with contextlib.suppress(OSError):
        for name in os.listdir(str(folder.checkpoints)):
            if name.endswith(".json") and not name.startswith("."):
                note = read_json(Path(folder.checkpoints / name))
                if isinstance(note.get("step"), int) and _size(folder, note) == note.get("bytes", -1):
                    notes.append(note)
    return sorted(notes, key=_age, reverse=True)


def newest(folder: RunFolder, tick: Callable[[], None] = lambda: None) -> dict[str, Any] | None:
    """The newest one whose bytes are what its JSON says. `tick` is called again and again while they are read."""
    for note in described(folder):
        with contextlib.suppress(OSError):
            if sha256(Path(folder.checkpoints / note["file"]), tick) == note.get("sha256"):
                return note
    return None


def sha256(path: Path, tick: Callable[[], None] = lambda: None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            tick()
    return digest.hexdigest()


def has_copy(folder: RunFolder, note: dict[str, Any], *marks: str) -> bool:
    """Whether one of these notes, FETCHED or SYNCED, tells of a verified copy of exactly these bytes."""
    told = (read_json(Path(folder.checkpoints / f"{note['file']}{mark}")) for mark in marks)
    return any(each.get("sha256") == note["sha256"] for each in told)


def _age(note: dict[str, Any]) -> tuple[int, bool, int]:
    """In the laptop's order (deploy/runs/checkpoints.py): a stop between two epochs leaves two checkpoints of one step,
    and if both sides did not mean the same one, the only copy of the other would keep its machine for ever.
    """
    return int(note.get("epoch") or 0), bool(note.get("epoch_complete", True)), note["step"]


def _size(folder: RunFolder, note: dict[str, Any]) -> int | None:
    try:
        return Path(folder.checkpoints / str(note.get("file"))).stat().st_size
    except OSError:
        return None
