"""python -m app.packing.unpack ORDER.json: unpack packed blocks into an images.npy that already has its full size.

The order contains packed (a file of packed blocks), part (the target file), kind, shape of an image, and pieces
[{name, offset, bytes, sha256, place, rows, unpacked_sha256}]: the place of each packed block and of its images. Both
hashes are checked, so training uses exactly the pixels that the laptop packed. Progress is printed as one JSON object
per line, a failure as one sentence that names the block, with exit code 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import EXIT_FAILED
from app.packing.packed import Damaged, read
from app.packing.threads import Progress, in_parallel


def main(argv: list[str]) -> int:
    try:
        unpack(json.loads(Path(argv[0]).read_text(encoding="utf-8")))
    except Damaged as error:
        print(error, flush=True)
        return EXIT_FAILED
    return 0


def unpack(order: dict[str, Any]) -> None:
    """Unpack the pieces of an order, one thread per core, and sync the file. Raises Damaged."""
    row_bytes = int(np.prod(order["shape"]))
    progress = Progress(sum(piece["rows"] * row_bytes for piece in order["pieces"]))
    in_parallel(lambda piece: _unpack(order, piece, progress), order["pieces"], progress)
    with open(order["part"], "r+b") as part:
        os.fsync(part.fileno())


def _unpack(order: dict[str, Any], piece: dict[str, Any], progress: Progress) -> None:
    packed, unpacked = hashlib.sha256(), hashlib.sha256()
    with open(order["packed"], "rb") as source, open(order["part"], "r+b") as part:
        source.seek(piece["offset"])
        part.seek(piece["place"])

        def read_bytes(count: int) -> bytes:
            data = source.read(count)
            packed.update(data)
            return data

        try:
            for image in read(read_bytes, piece["bytes"], order["kind"], piece["rows"], tuple(order["shape"])):
                data = np.ascontiguousarray(image).data
                unpacked.update(data)
                part.write(data)
                progress.add(data.nbytes)
        except Damaged as error:
            raise Damaged(f"packed {piece['name']} is damaged: {error}") from error
    if packed.hexdigest() != piece["sha256"]:
        raise Damaged(f"packed {piece['name']} is damaged: it differs from the data that was sent")
    if unpacked.hexdigest() != piece["unpacked_sha256"]:
        raise Damaged(
            f"packed {piece['name']} unpacks to other pixels here than where it was packed: install the "
            "simplejpeg and Pillow versions of constraints.txt on both sides"
        )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
