"""Copy ranges of a file or web address into a file on the machine: parallel, verified, resumable.

    python -m deploy.pod.agent.files <order.json>

The order is JSON: source, part (destination), header (first bytes, base64), pieces [{name, offset, bytes,
sha256|null}]. In the part the pieces follow the header one after another. Progress is one JSON object per line; the
last one contains the SHA-256 of every piece. On failure, prints one sentence and exits with code 1.
The space is reserved before the first byte: otherwise a full tmpfs kills a process that writes to it through mmap.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

from deploy.pod.agent import verbs
from deploy.pod.agent.sources import CopyFailed, open_source

REPORT_EVERY_S = 0.2


def main(argv: list[str]) -> int:
    order = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    total = sum(piece["bytes"] for piece in order["pieces"])
    try:
        hashes = copy(order, Progress(total))
    except CopyFailed as error:
        print(error, flush=True)
        return 1
    print(json.dumps({"done_bytes": total, "all_bytes": total, "sha256": hashes}), flush=True)
    return 0


def copy(order: dict[str, Any], progress: Progress) -> list[str]:
    """Write header and pieces to `part`; returns each piece's SHA-256. Keeps matching pieces of an earlier attempt."""
    header, pieces = base64.b64decode(order["header"]), order["pieces"]
    source, part = open_source(order["source"]), Path(order["part"])
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    with open(part, "r+b" if resumed else "w+b") as file:
        reserve(file.fileno(), len(header) + sum(piece["bytes"] for piece in pieces), part)
        file.write(header)
    places = [0, *accumulate(piece["bytes"] for piece in pieces)]
    copying = Copying(source, part, resumed, progress)
    with ThreadPoolExecutor(max_workers=max(source.readers, min(16, verbs.cores()))) as pool:
        futures = [
            pool.submit(copying.piece, each, len(header) + at) for each, at in zip(pieces, places[:-1], strict=True)
        ]
        try:
            hashes = [future.result() for future in futures]
        except BaseException:
            copying.over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    with open(part, "r+b") as file:
        os.fsync(file.fileno())
    return hashes


def reserve(descriptor: int, size: int, path: Path) -> None:
    """Set the file's final size, with disk space allocated if the system can. Raises CopyFailed if there is no room."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CopyFailed(f"{path.parent} has no room for {size / (1 << 30):.2f} GiB") from error
        raise


class Progress:
    """Count the bytes done by all threads; prints them at most every REPORT_EVERY_S seconds."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self.printed = 0.0
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        with self.lock:
            self.done_bytes += count
            if time.monotonic() - self.printed > REPORT_EVERY_S:
                self.printed = time.monotonic()
                print(json.dumps({"done_bytes": self.done_bytes, "all_bytes": self.total_bytes}), flush=True)


class Copying:
    """State shared by the copying threads."""

    def __init__(self, source: Any, part: Path, resumed: bool, progress: Progress) -> None:
        self.source = source
        self.part = part
        self.resumed = resumed
        self.progress = progress
        self.over = threading.Event()  # another piece has failed
        source.over = self.over

    def piece(self, piece: dict[str, Any], place: int) -> str:
        """Copy one range, and return its SHA-256. Raises CopyFailed if the manifest has another one."""
        wanted: str | None = piece["sha256"]
        if self.resumed and wanted:
            there = verbs.hashes(str(self.part), [[place, piece["bytes"]]], holes=True)[0]
            if there == wanted:
                self.progress.add(piece["bytes"])
                return there
        found = self._carry(piece, place)
        if wanted and found != wanted:
            raise CopyFailed(
                f"{piece['name']} of {self.source.name} is not what manifest.json says: copy or make the data again"
            )
        return found

    def _carry(self, piece: dict[str, Any], place: int) -> str:
        """Copy a piece and return its SHA-256. Hashes while copying, when the data is in the CPU cache."""
        digest, left = hashlib.sha256(), piece["bytes"]
        with open(self.part, "r+b", buffering=0) as writer:
            writer.seek(place)
            for data in self.source.read(piece["offset"], left):
                if self.over.is_set():
                    raise CopyFailed("broken off")
                digest.update(data)
                written = 0
                while written < len(data):
                    written += writer.write(data[written:])
                left -= len(data)
                self.progress.add(len(data))
        if left:
            raise CopyFailed(f"{self.source.name} ends inside {piece['name']}: copy or make it again")
        return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
