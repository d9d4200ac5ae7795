"""Copies ranges of a file on the machine, in parallel, checked and resumable.

    python -m deploy.pod.files <order.json>

The order says: source, part (where to), header (first bytes, base64), pieces [{name, offset, bytes, sha256|null}].
Progress is one JSON object a line; the last one holds the SHA-256 of every piece. A failure is one sentence and
exit code 1.
The room is reserved before the first byte, because a full tmpfs otherwise kills whoever writes to it through a map.
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
from pathlib import Path
from typing import Any

CHUNK_BYTES = 8 << 20
REPORT_EVERY_S = 0.2


class CopyFailed(Exception):
    """One sentence that a person can act on."""


def main(argv: list[str]) -> int:
    order = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    try:
        hashes = copy(order, Progress(sum(piece["bytes"] for piece in order["pieces"])))
    except CopyFailed as error:
        print(error, flush=True)
        return 1
    total = sum(piece["bytes"] for piece in order["pieces"])
    print(json.dumps({"done_bytes": total, "all_bytes": total, "sha256": hashes}), flush=True)
    return 0


def copy(order: dict[str, Any], progress: Progress) -> list[str]:
    """Write header and pieces, one behind the other, into `part`; what an earlier try left there is kept if right."""
    header, pieces = base64.b64decode(order["header"]), order["pieces"]
    source, part = Path(order["source"]), Path(order["part"])
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    with open(part, "r+b" if resumed else "w+b") as file:
        reserve(file.fileno(), len(header) + sum(piece["bytes"] for piece in pieces), part)
        file.write(header)
    places, place = [], len(header)
    for piece in pieces:
        places.append(place)
        place += piece["bytes"]

    def carry(index: int) -> str:
        return _piece(source, part, pieces[index], places[index], resumed, progress)

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(carry, range(len(pieces))))
    with open(part, "r+b") as file:
        os.fsync(file.fileno())
    return hashes


def reserve(descriptor: int, size: int, path: Path) -> None:
    """Give the file its final size, with real room behind it where the system can promise that."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CopyFailed(f"{path.parent} has no room for {size / (1 << 30):.2f} GiB") from error
        raise


class Progress:
    """Bytes done so far by all threads, printed now and then."""

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


def _piece(source: Path, part: Path, piece: dict[str, Any], place: int, resumed: bool, progress: Progress) -> str:
    wanted = piece["sha256"]
    if resumed and wanted and _hash(part, place, piece["bytes"]) == wanted:
        progress.add(piece["bytes"])
        return str(wanted)
    digest = hashlib.sha256()
    left = piece["bytes"]
    with open(source, "rb") as reader, open(part, "r+b") as writer:
        reader.seek(piece["offset"])
        writer.seek(place)
        while left:
            chunk = reader.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise CopyFailed(f"{source} ends inside {piece['name']}: copy or make it again")
            digest.update(chunk)
            writer.write(chunk)
            left -= len(chunk)
            progress.add(len(chunk))
    if wanted and digest.hexdigest() != wanted:
        raise CopyFailed(f"{piece['name']} of {source} is not what manifest.json says: copy or make the data again")
    return digest.hexdigest()


def _hash(path: Path, offset: int, length: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(offset)
        while length:
            chunk = file.read(min(CHUNK_BYTES, length))
            if not chunk:
                break
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
