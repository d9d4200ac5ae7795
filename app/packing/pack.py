"""python -m app.packing.pack ORDER.json: pack blocks of images.npy for a slow upload (`invoke train --pack`).

The order contains images (an .npy), kind, shape of an image, folder, and blocks [{name, file, offset, bytes,
sha256|null}]. Each block becomes `file` in the folder. A JSON file of its hashes beside it is written last: a packed
block without one is incomplete. An interrupted call loses at most the blocks in progress.
Progress is printed as one JSON object per line, a failure as one sentence. The exit code is 2 if the images do not
match the order.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import EXIT_FAILED, EXIT_WRONG_USE, WrongUse
from app.files import atomic, write_json
from app.packing.packed import Writer
from app.packing.threads import Progress, in_parallel

ROWS_AT_ONCE = 64


def main(argv: list[str]) -> int:
    try:
        pack(json.loads(Path(argv[0]).read_text(encoding="utf-8")))
    except WrongUse as error:
        print(error, flush=True)
        return EXIT_WRONG_USE
    except OSError as error:
        print(f"the packed images cannot be kept: {error}", flush=True)
        return EXIT_FAILED
    return 0


def pack(order: dict[str, Any]) -> None:
    """Pack the blocks of an order, one thread per core. Raises WrongUse if the images do not match the order."""
    Path(order["folder"]).mkdir(parents=True, exist_ok=True)
    progress = Progress(sum(block["bytes"] for block in order["blocks"]))
    in_parallel(lambda block: _pack(order, block, progress), order["blocks"], progress)


def _pack(order: dict[str, Any], block: dict[str, Any], progress: Progress) -> None:
    shape = tuple(order["shape"])
    row_bytes = int(np.prod(shape))
    out, note = Path(order["folder"], block["file"]), Path(order["folder"], block["file"]).with_suffix(".json")
    note.unlink(missing_ok=True)
    original, left = hashlib.sha256(), block["bytes"]
    with open(order["images"], "rb") as images, atomic(out) as file:
        images.seek(block["offset"])
        writer = Writer(file, order["kind"], left // row_bytes, shape)
        while left:
            data = images.read(min(left, ROWS_AT_ONCE * row_bytes))
            if not data or len(data) % row_bytes:
                raise WrongUse(f"{order['images']} ends inside {block['name']}: copy or make it again")
            original.update(data)
            for image in np.frombuffer(data, np.uint8).reshape(-1, *shape):
                writer.add(image)
            left -= len(data)
            progress.add(len(data))
        if block["sha256"] not in (None, original.hexdigest()):
            raise WrongUse(
                f"{block['name']} of {order['images']} is not what manifest.json says: copy or make the data again"
            )
    about = {
        "packed_bytes": writer.bytes,
        "packed_sha256": writer.packed.hexdigest(),
        "original_sha256": original.hexdigest(),
        "unpacked_sha256": writer.unpacked.hexdigest(),
    }
    write_json(note, about)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # messages are read as UTF-8; Windows paths in them may not be ASCII
    raise SystemExit(main(sys.argv[1:]))
