"""Write the records of a .rec file, as MXNet's im2rec and insightface's face2rec do."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from app.data.sources.recordio import FIRST, LAST, LENGTH_BITS, MAGIC, MAGIC_BYTES, MIDDLE, WHOLE


def framed(payload: bytes) -> bytes:
    """Encode one record as stored in a file: head, bytes and padding, split where it contains MAGIC."""
    cuts = [at for at in range(0, len(payload) - 3, 4) if payload[at : at + 4] == MAGIC_BYTES]
    edges = list(zip([0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)], strict=True))
    parts = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if cuts else [WHOLE]
    pieces = [
        struct.pack("<II", MAGIC, part << LENGTH_BITS | stop - start) + payload[start:stop]
        for part, (start, stop) in zip(parts, edges, strict=True)
    ]
    return b"".join(pieces) + bytes(-len(payload) % 4)


def image_record(image: bytes, labels: float | Sequence[float], key: int = 0) -> bytes:
    """Build an image record for `framed`; a sequence of labels follows the fixed bytes."""
    if isinstance(labels, float | int):
        return struct.pack("<IfQQ", 0, labels, key, 0) + image
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, key, 0, *labels) + image
