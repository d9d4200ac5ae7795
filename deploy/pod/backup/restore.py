"""The way back from the place where copies are kept: what is there of a run comes into its folder on this machine.

    python -m deploy.pod.backup.restore <run folder> <sync_to> [--volume PATH]                what is there
    python -m deploy.pod.backup.restore <run folder> <sync_to> [--volume PATH] --take FILE    one checkpoint, verified
    python -m deploy.pod.backup.restore <run folder> <sync_to> [--volume PATH] --record       log, and metrics up to it

For `--record` the JSON of the checkpoint is on standard input. One JSON object on standard output tells what was found
or done; a failure is one sentence and exit code 1. Like the sync it is a process of its own, as a volume that hangs
cannot be interrupted in any other way; credentials of a bucket are in its environment and in no other's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

from deploy.pod.backup import storage as places
from deploy.pod.base import metrics
from deploy.pod.base.checkpoints import SYNCED
from deploy.pod.base.folder import RunFolder, replace, tell_json, write_bytes

CHECKPOINT = re.compile(r"epoch_[A-Za-z0-9_-]{1,60}\.pt")
NOTE_BYTES = 256 << 10
TOLD_BYTES = 1 << 30  # of a log, or of metrics
MOST_NOTES = 1000
JOINT_BYTES = 1024  # so many of a log are found again in its copied end
GAP = b"[what the log said in between was on a machine that is gone]\n"


class NotRestored(Exception):
    """One sentence that a person can act on."""


class Bounded(io.RawIOBase):
    """Takes at most so many bytes: others may write to the place that they come from."""

    def __init__(self, target: IO[bytes], most: int, name: str) -> None:
        self.target = target
        self.left = most
        self.name = name

    def write(self, data: Any) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise NotRestored(f"{self.name} has more bytes than it should have")
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
        place = places.of(asked.sync_to, Path(folder.path), asked.volume)
        if asked.take:
            told = take(folder, place, asked.take, asked.sync_to)
        else:
            told = record(folder, place, json.load(sys.stdin)) if asked.record else look(folder, place)
    except (NotRestored, places.NoPlace) as error:
        print(error)
        return 1
    except Exception as error:  # of a store's own library: any kind
        print(f"{type(error).__name__}: {error}".replace("\n", " "))
        return 1
    print(json.dumps(told))
    return 0


def look(folder: RunFolder, place: places.Place) -> dict[str, Any]:
    """The JSON of each checkpoint whose file is there in full length, what is not whole, how long the log is, and what
    the machines of the run have cost. Nothing of the checkpoints themselves is read."""
    above = f"{folder.run_id}/{folder.checkpoints.name}"
    sizes = place.listing(above)
    notes, damaged = [], []
    stems = [name.removesuffix(".json") for name in sizes if name.endswith(".json")]
    listed = sorted(stem for stem in stems if CHECKPOINT.fullmatch(f"{stem}.pt"))
    for stem in listed[-MOST_NOTES:]:
        name, file = f"{stem}.json", f"{stem}.pt"
        note = _json(place, f"{above}/{name}")
        if not _describes(note, file):
            damaged.append(f"{name} is not whole")
        elif sizes.get(file) != note["bytes"]:
            there = f"has {sizes[file]} bytes instead of {note['bytes']}" if file in sizes else "is not there"
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


def take(folder: RunFolder, place: places.Place, file: str, sync_to: str) -> dict[str, Any]:
    """One checkpoint, verified on its way: the file, then its JSON, then `latest`; whole or not there."""
    if not CHECKPOINT.fullmatch(file):
        raise NotRestored(f"{ascii(file)[:100]} is no name of a checkpoint")
    above = f"{folder.run_id}/{folder.checkpoints.name}"
    about = Path(folder.checkpoints / file).with_suffix(".json")
    note = _json(place, f"{above}/{about.name}")
    if not _describes(note, file):
        raise NotRestored(f"{about.name} is not whole")
    part = about.with_name(f".{file}.{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as writer:
            found = place.get(f"{above}/{file}", cast("IO[bytes]", Bounded(writer, note["bytes"], file)))
            writer.flush()
            os.fsync(writer.fileno())
        if found != note["sha256"]:
            raise NotRestored(f"the bytes of {file} are not those that were put there (its SHA-256 differs)")
        with contextlib.suppress(FileNotFoundError):
            about.unlink()  # of an earlier file of this name
        replace(part, Path(folder.checkpoints / file))
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    write_bytes(about, (json.dumps(note, indent=1) + "\n").encode("utf-8"))
    write_bytes(Path(folder.latest), file.encode("utf-8"))
    mark = {"sha256": note["sha256"], "to": sync_to, "time": time.time()}
    tell_json(Path(folder.checkpoints / f"{file}{SYNCED}"), mark)  # it need not be copied there again
    return note


def record(folder: RunFolder, place: places.Place, note: dict[str, Any]) -> dict[str, Any]:
    """What the run told up to the checkpoint that it goes on from; whether that was kept as far as this."""
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
    """A log from its beginning and its end, each byte once; where they do not meet, that is said in it."""
    if tail[-JOINT_BYTES:] in beginning:
        return beginning
    joint = beginning[-JOINT_BYTES:]
    at = tail.rfind(joint) if joint else -1
    if at >= 0:
        return beginning + tail[at + len(joint) :]
    ended = b"" if beginning.endswith(b"\n") or not beginning else b"\n"
    return beginning + ended + GAP + tail[tail.find(b"\n") + 1 :]


def _describes(note: dict[str, Any], file: str) -> bool:
    """Whether a JSON from outside is that of this file, with everything that is relied on."""
    numbers = all(isinstance(note.get(key), int) and note[key] >= 0 for key in ("epoch", "step", "bytes"))
    is_named = note.get("file") == file and CHECKPOINT.fullmatch(file) is not None
    return numbers and is_named and isinstance(note.get("sha256"), str)


def _json(place: places.Place, name: str) -> dict[str, Any]:
    """{} where it is not there or not whole; a place that cannot be read is another matter."""
    try:
        text = _read(place, name, NOTE_BYTES)
    except (FileNotFoundError, NotRestored):
        return {}
    value = None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _read(place: places.Place, name: str, most: int = TOLD_BYTES) -> bytes:
    target = io.BytesIO()
    place.get(name, cast("IO[bytes]", Bounded(target, most, name)))
    return target.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
