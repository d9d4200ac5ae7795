"""Stub of app.prepare: writes images.npy (40 grey squares), labels.npy and manifest.json for `source=orl out=…`."""

import hashlib
import json
import sys
from pathlib import Path

SIDE = 112


def header(dtype: str, shape: tuple) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def make(out: Path, rows: int = 40, block_rows: int = 5, held_out: int = 10, name: str = "orl") -> None:
    images = [bytes([row % 256]) * (SIDE * SIDE * 3) for row in range(rows)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(header("|u1", (rows, SIDE, SIDE, 3)) + b"".join(images))
    labels = b"".join((row // block_rows).to_bytes(4, "little") for row in range(rows))
    out.with_name("labels.npy").write_bytes(header("<i4", (rows,)) + labels)
    starts = range(0, rows, block_rows)
    blocks = [hashlib.sha256(b"".join(images[start : start + block_rows])).hexdigest() for start in starts]
    manifest = {
        "dataset_id": hashlib.sha256("".join(blocks).encode()).hexdigest()[:16],
        "name": name,
        "rows": rows,
        "dtype": "uint8",
        "shape": [rows, SIDE, SIDE, 3],
        "block_rows": block_rows,
        "blocks": blocks,
        "held_out_rows": held_out,
        "labels_sha256": None,
        "selection": None,
    }
    out.with_name("manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


if __name__ == "__main__":
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    make(Path(options["out"]), held_out=int(options.get("held_out", 10)))
