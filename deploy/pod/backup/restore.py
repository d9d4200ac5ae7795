"""Restore a run's synced copy to its run folder on this machine.

    python -m deploy.pod.backup.restore <run folder> <sync_to> [--volume PATH]                what is there
    python -m deploy.pod.backup.restore <run folder> <sync_to> [--volume PATH] --take FILE    one checkpoint, verified
    python -m deploy.pod.backup.restore <run folder> <sync_to> [--volume PATH] --record       log, and metrics up to it

`--record` reads the checkpoint's JSON from standard input. Prints one JSON object with what was found or done; on
failure, prints one sentence and exits with code 1. Like the sync, it is a separate process, because a hanging volume
can only be interrupted by killing the process that waits. Only this process has a bucket's credentials in its
environment.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

from deploy.pod.backup import storage
from deploy.pod.base import metrics
from deploy.pod.base.checkpoints import CHECKPOINT, SYNCED
from deploy.pod.base.folder import RunFolder, replace, tell_json, write_bytes

NOTE_BYTES = 256 << 10
TOLD_BYTES = 1 << 30  # most bytes of a log or of metrics
MOST_NOTES = 1000
JOINT_BYTES = 1024  # last bytes of a log to search for in its copied tail
GAP = b"[what the log said in between was on a machine that is gone]\n"


class NotRestored(Exception):
    """Why nothing was restored: one sentence that a user can act on."""


class Bounded(io.RawIOBase):
    """Limit how many bytes are written to `target`, as others may write to the storage. Raises NotRestored."""

    def __init__(self, target: IO[bytes], most: int, name: str) -> None:
        self.target = target
        self.left = most
        self.name = name

    def write(self, data: Any) -> int:
        """Write, and count. Raises NotRestored past the expected size."""
        self.left -= len(data)
        if self.left < 0:
            raise NotRestored(f"{self.name} has more bytes than expected")
        return self.target.write(data)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="restore", add_help=False)
    for positional in ("folder", "sync_to"):
        parser.add_argument(positional)
    for option in ("--volume", "--take"):
        parser.add_argument(option)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args(argv[1:])
    folder = RunFolder(Path(asked.folder).absolute())
    Path(folder.path).mkdir(parents=True, exist_ok=True)
    try:
        place = storage.of(asked.sync_to, Path(folder.path), asked.volume)
        if asked.take:
            told = take(folder, place, asked.take, asked.sync_to)
        else:
            told = record(folder, place, json.load(sys.stdin)) if asked.record else look(folder, place)
    except (NotRestored, storage.NoPlace) as error:
        print(error)
        return 1
    except Exception as error:  # storage libraries raise errors of any kind
        print(f"{type(error).__name__}: {error}".replace("\n", " "))
        return 1
    print(json.dumps(told))
    return 0


def look(folder: RunFolder, place: storage.Place) -> dict[str, Any]:
    """List the copy: checkpoints of full length, damaged ones, the log's length, and the cost of the run's machines.

    Reads only the JSON of the newest MOST_NOTES checkpoints, not the checkpoints themselves.
    """
    above = f"{folder.run_id}/{folder.checkpoints.name}"
    sizes = place.listing(above)
    notes, damaged = [], []
    stems = [name.removesuffix(".json") for name in sizes if name.endswith(".json")]
    listed = sorted(stem for stem in stems if CHECKPOINT.fullmatch(f"{stem}.pt"))
    for stem in listed[-MOST_NOTES:]:
        name, file = f"{stem}.json", f"{stem}.pt"
        note = _json(place, f"{above}/{name}")
        if not _describes(note, file):
            damaged.append(f"{name} is incomplete")
        elif sizes.get(file) != note["bytes"]:
            there = f"has {sizes[file]} bytes instead of {note['bytes']}" if file in sizes else "is missing"
            damaged.append(f"{file} {there}")
        else:
            notes.append(note)
    status, plan = (_json(place, f"{folder.run_id}/{file.name}") for file in (folder.status, folder.plan))
    spend = status.get("spend_usd")
    return {
        "checkpoints": notes,
        "damaged": damaged,
        "log_bytes": place.listing(folder.run_id).get(folder.log.name, 0),
        "spend": {plan["machine"]: spend} if spend and plan.get("machine") else {},
    }


def take(folder: RunFolder, place: storage.Place, file: str, sync_to: str) -> dict[str, Any]:
    """Download one checkpoint, verify it, and write file, JSON and `latest` in this order. Returns its JSON.

    The JSON comes last, so an incomplete checkpoint does not count. Raises NotRestored.
    """
    if not CHECKPOINT.fullmatch(file):
        raise NotRestored(f"{ascii(file)[:100]} is not a checkpoint name")
    above = f"{folder.run_id}/{folder.checkpoints.name}"
    about = Path(folder.checkpoints / file).with_suffix(".json")
    note = _json(place, f"{above}/{about.name}")
    if not _describes(note, file):
        raise NotRestored(f"{about.name} is incomplete")
    part = about.with_name(f".{file}.{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as writer:
            found = place.get(f"{above}/{file}", cast("IO[bytes]", Bounded(writer, note["bytes"], file)))
            writer.flush()
            os.fsync(writer.fileno())
        if found != note["sha256"]:
            raise NotRestored(f"{file} is not the file that was copied there: its SHA-256 differs")
        with contextlib.suppress(FileNotFoundError):
            about.unlink()  # belongs to an earlier file of this name
        replace(part, Path(folder.checkpoints / file))
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    write_bytes(about, (json.dumps(note, indent=1) + "\n").encode("utf-8"))
    write_bytes(Path(folder.latest), file.encode("utf-8"))
    mark = {"sha256": note["sha256"], "to": sync_to, "time": time.time()}
    tell_json(Path(folder.checkpoints / f"{file}{SYNCED}"), mark)  # the sync need not copy it again
    return note


def record(folder: RunFolder, place: storage.Place, note: dict[str, Any]) -> dict[str, Any]:
    """Restore log, and metrics up to the checkpoint that the run resumes from.

    Returns the log's length and whether the metrics reach that checkpoint.
    """
    names = place.listing(folder.run_id)
    reaches = False
    if folder.metrics.name in names:
        told, reaches = metrics.up_to(_read(place, f"{folder.run_id}/{folder.metrics.name}"), note)
        if reaches or not Path(folder.metrics).exists():
            write_bytes(Path(folder.metrics), told)
    here = Path(folder.log).read_bytes() if Path(folder.log).exists() else b""
    log = here
    if names.get(folder.log.name, 0) > len(here):
        log = _read(place, f"{folder.run_id}/{folder.log.name}")
    if f"{folder.log.name}.tail" in names:
        log = joined(log, _read(place, f"{folder.run_id}/{folder.log.name}.tail"))
    if len(log) > len(here):
        write_bytes(Path(folder.log), log)
    return {"reaches": reaches, "log_bytes": len(log)}


def joined(beginning: bytes, tail: bytes) -> bytes:
    """Join the beginning and the tail of a log where they overlap; without an overlap, put GAP between them."""
    if tail[-JOINT_BYTES:] in beginning:
        return beginning
    joint = beginning[-JOINT_BYTES:]
    at = tail.rfind(joint) if joint else -1
    if at >= 0:
        return beginning + tail[at + len(joint) :]
    ended = b"" if beginning.endswith(b"\n") or not beginning else b"\n"
    return beginning + ended + GAP + tail[tail.find(b"\n") + 1 :]


def _describes(note: dict[str, Any], file: str) -> bool:
    """Whether an untrusted JSON describes this file and has every field that this module uses."""
    numbers = all(isinstance(note.get(key), int) and note[key] >= 0 for key in ("epoch", "step", "bytes"))
    is_named = note.get("file") == file and CHECKPOINT.fullmatch(file) is not None
    return numbers and is_named and isinstance(note.get("sha256"), str)


def _json(place: storage.Place, name: str) -> dict[str, Any]:
    """Read a JSON object; {} if it is missing, too long or invalid. Other read errors are raised."""
    try:
        text = _read(place, name, NOTE_BYTES)
    except (FileNotFoundError, NotRestored):
        return {}
    value = None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _read(place: storage.Place, name: str, most: int = TOLD_BYTES) -> bytes:
    target = io.BytesIO()
    place.get(name, cast("IO[bytes]", Bounded(target, most, name)))
    return target.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
