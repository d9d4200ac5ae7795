"""Checkpoints of a run folder on the machine: which are complete, which is newest, which have a copy elsewhere.

The JSON next to a .pt is written last and contains its sha256; a .pt without JSON is incomplete. Verified copies are
recorded next to them: `NAME.pt.fetched` by the laptop's download, `NAME.pt.synced` by the final sync. Each is a JSON
object with the copy's sha256.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import RunFolder, read_json

CHUNK_BYTES = 4 << 20
FETCHED, SYNCED = ".fetched", ".synced"
CHECKPOINT = re.compile(r"epoch_[A-Za-z0-9_-]{1,60}\.pt")  # the app names them, see app/runtime/checkpoint.py


def described(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the JSON of each checkpoint whose file has its full length, newest first. Hashes nothing."""
    notes = []
    with contextlib.suppress(OSError):
        for name in os.listdir(str(folder.checkpoints)):
            if name.endswith(".json") and not name.startswith("."):
                note = read_json(Path(folder.checkpoints / name))
                if isinstance(note.get("step"), int) and _size(folder, note) == note.get("bytes", -1):
                    notes.append(note)
    return sorted(notes, key=age, reverse=True)


def newest(folder: RunFolder, tick: Callable[[], None] = lambda: None) -> dict[str, Any] | None:
    """Return the JSON of the newest checkpoint whose sha256 matches. Calls `tick` after every chunk it reads."""
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
    """Whether a FETCHED or SYNCED file records a verified copy with the same sha256. `marks`: which of them to read."""
    told = (read_json(Path(folder.checkpoints / f"{note['file']}{mark}")) for mark in marks)
    return any(each.get("sha256") == note["sha256"] for each in told)


def age(note: Mapping[str, Any]) -> tuple[int, bool, int]:
    """Return how far training had come, as a key to sort the checkpoints of one run. Laptop and machine use this one.

    A stop between two epochs leaves two checkpoints of the same step. If laptop and machine picked different ones, the
    uncopied one would keep the machine alive forever.
    """
    return int(note.get("epoch") or 0), bool(note.get("epoch_complete", True)), note["step"]


def _size(folder: RunFolder, note: dict[str, Any]) -> int | None:
    try:
        return Path(folder.checkpoints / str(note.get("file"))).stat().st_size
    except OSError:
        return None
