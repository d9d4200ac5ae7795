"""The final sync: copy a run's checkpoint, log and small files to storage that outlives the machine, and verify them.

    python -m deploy.pod.backup.sync <run folder> <sync_to> [<volume path>]

Prints one JSON object with what was copied; on failure, prints one sentence and exits with code 1. It is a separate
process because a hanging volume can only be interrupted by killing the process that waits for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from deploy.pod.backup import storage
from deploy.pod.base.checkpoints import SYNCED, newest
from deploy.pod.base.folder import RunFolder, read_json, tell_json

LOG_BYTES = 4 << 20


class SyncFailed(Exception):
    """Why the sync failed: one sentence that a user can act on."""


def main(argv: list[str]) -> int:
    folder = RunFolder(Path(argv[1]).absolute())
    if sys.platform != "win32":
        os.nice(10)  # a running job has priority
    try:
        place = storage.of(argv[2], Path(folder.path), argv[3] if len(argv) > 3 else None)
        told = sync(folder, place, argv[2])
    except (SyncFailed, storage.NoPlace) as error:
        print(error)
        return 1
    except Exception as error:  # storage libraries raise errors of any kind
        print(f"the copy to {argv[2]} failed: {type(error).__name__}: {error}")
        return 1
    print(json.dumps(told))
    return 0


def sync(folder: RunFolder, place: storage.Place, sync_to: str) -> dict[str, Any]:
    """Copy a run's small files, log and newest checkpoint. Returns what was copied.

    Small files come first, because they explain how the run ended. A checkpoint's JSON comes after it, so the copy is
    complete or does not count.

    The checkpoint is chosen before any file is read. So the copied metrics reach it, and a run that resumes from this
    copy has no gap in its curve.
    """
    begun = time.monotonic()
    note = newest(folder)
    names = []
    for file in (folder.plan, folder.config, folder.status, folder.metrics, folder.ended):
        if Path(file).exists():
            names.append(_put(place, Path(file).read_bytes(), f"{top(folder)}/{file.name}"))
    if Path(folder.log).exists():
        names.append(_put_log(place, folder))
    if note:
        names += _put_checkpoint(place, folder, note, sync_to)
    return {
        "run_id": folder.run_id,
        "sync_to": sync_to,
        "checkpoint": note["file"] if note else None,
        "sha256": note["sha256"] if note else None,
        "names": names,
        "seconds": round(time.monotonic() - begun, 1),
    }


def top(folder: RunFolder) -> str:
    """Return the folder of a run's copy. With several machines each has its own log and status.

    The folder of rank 0 contains what the run resumes from.
    """
    place = read_json(Path(folder.plan)).get("place")
    rank = place.get("rank") if isinstance(place, dict) else None
    return f"{folder.run_id}/rank-{rank}" if rank else folder.run_id


def _put_checkpoint(place: storage.Place, folder: RunFolder, note: dict[str, Any], sync_to: str) -> list[str]:
    file = note["file"]
    about = f"{Path(file).stem}.json"
    above = f"{top(folder)}/{folder.checkpoints.name}"
    place.remove(f"{above}/{about}")  # belongs to an earlier file of this name
    with open(folder.checkpoints / file, "rb") as source:
        _verify(place.put(source, f"{above}/{file}"), note["sha256"], file)
    _put(place, Path(folder.checkpoints / about).read_bytes(), f"{above}/{about}")
    _put(place, file.encode("utf-8"), f"{above}/{folder.latest.name}")
    mark = {"sha256": note["sha256"], "to": sync_to, "time": time.time()}
    tell_json(Path(folder.checkpoints / f"{file}{SYNCED}"), mark)
    _remove_what_the_run_removed(place, folder, above)
    return [f"{above}/{name}" for name in (file, about, folder.latest.name)]


def _remove_what_the_run_removed(place: storage.Place, folder: RunFolder, above: str) -> None:
    """Remove copies of checkpoints that the run has deleted. Touches only files that the sync copied."""
    for mark in Path(folder.checkpoints).glob(f"*{SYNCED}"):
        file = mark.name[: -len(SYNCED)]
        if not Path(folder.checkpoints / file).exists():
            place.remove(f"{above}/{Path(file).stem}.json")  # first, so that a half-removed checkpoint does not count
            place.remove(f"{above}/{file}")
            mark.unlink()


def _put_log(place: storage.Place, folder: RunFolder) -> str:
    """Copy the log; above LOG_BYTES, copy only its end, named `.tail` because byte offsets would be wrong in it.

    The beginning then stays as it was last copied: `restore` joins both where they overlap.
    """
    with open(folder.log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_BYTES))
        data = file.read()
    return _put(place, data, f"{top(folder)}/{folder.log.name}{'' if size <= LOG_BYTES else '.tail'}")


def _put(place: storage.Place, data: bytes, name: str) -> str:
    """Copy bytes that were read from a file and verify the copy; returns its name."""
    _verify(place.put(io.BytesIO(data), name), hashlib.sha256(data).hexdigest(), name)
    return name


def _verify(there: str, wanted: str, name: str) -> None:
    if there != wanted:
        raise SyncFailed(f"the copy of {name} differs from the file: is the storage full or broken?")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
