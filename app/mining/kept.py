"""Store chunks of embeddings on disk, so that an interrupted pass can resume.

Chunks hold the numbers that the pass uses, in fp32 or fp16: a resumed pass gives the same pseudo-IDs, to the bit, as an
uninterrupted one. A thread writes them without sync, so that the device need not wait. A chunk damaged by a power cut
fails its checksum and is embedded again.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.files import replace

LONG_S = 60.0  # a pass that is expected to be shorter stores nothing
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class Kept:
    """Where finished chunks are stored, and a stamp of the weights: chunks of different weights are never mixed."""

    folder: Path
    stamp: str

    def open(self, what: str) -> Path:
        """Create the folder, remove chunks of anything else, and return the prefix of these chunks' paths."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(f"{self.stamp}\0{what}".encode()).hexdigest()[:16]
        self.clear(all_but=digest)
        return self.folder / digest

    def clear(self, *, all_but: str = "") -> None:
        """Remove every chunk, or those of another digest than `all_but`; may be called on each rank, and twice."""
        for file in self.folder.glob("*.chunk.npy*"):  # includes the temporary files of interrupted writes
            if not all_but or not file.name.lstrip(".").startswith(all_but):
                file.unlink(missing_ok=True)  # other ranks remove files too


@dataclass
class Chunks:
    """The chunks of one rank's pass over `total` images. Use it in `with`: leaving the block waits for the writes."""

    begins: Path | None  # prefix of the files' paths; None stores nothing
    rank: int
    total: int
    clock: Callable[[], float] = time.monotonic
    embedded: int = 0  # images, in this call
    long: bool = False
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "chunks"))
    writes: list[Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, *raised: object) -> None:
        self.writer.shutdown(wait=True)

    def read(self, start: int, into: Tensor) -> bool:
        """Fill `into` [n, D] with the chunk at row `start` and return True; False if it is missing or damaged."""
        if self.begins is None:
            return False
        z = read_chunk(self._file(start))
        if z is None or z.shape != into.shape or torch.from_numpy(z).dtype != into.dtype:
            return False
        into.copy_(torch.from_numpy(z))
        self.long = True  # the earlier call judged the pass long
        return True

    def write(self, start: int, z: Tensor) -> None:
        """Store a chunk [n, D] that was just embedded, if the pass is a long one. `z` must not change afterwards."""
        self.embedded += len(z)
        self.long = self.long or is_long(self.clock() - self.started, self.embedded, self.total)
        if self.begins is not None and len(z) and self.long:
            self.writes.append(self.writer.submit(self._keep, self._file(start), z))

    def _keep(self, file: Path, z: Tensor) -> None:
        if self.begins is None:  # writing an earlier chunk failed
            return
        try:
            write_chunk(file, z.cpu().numpy())
        except OSError as error:  # a full disk only loses the work of an interrupted pass
            print(f"cannot save embeddings in {file.parent} ({error.strerror})", file=sys.stderr)
            self.begins = None

    def _file(self, start: int) -> Path:
        return Path(f"{self.begins}-{self.rank}-{start:09d}.chunk.npy")


def is_long(elapsed_s: float, done: int, total: int) -> bool:
    """Whether a pass over `total` images, `done` of them in `elapsed_s`, is expected to take longer than `LONG_S`."""
    return done > 0 and elapsed_s * total / done > LONG_S


def write_chunk(file: Path, z: np.ndarray) -> None:
    """Write an .npy file followed by a checksum, and rename it into place once it is complete. Raises OSError."""
    buffer = io.BytesIO()
    np.save(buffer, z)
    content = buffer.getvalue()
    temporary = file.with_name(f".{file.name}.part")
    try:
        temporary.write_bytes(content + zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little"))
        replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def read_chunk(file: Path) -> np.ndarray | None:
    """Read what `write_chunk` wrote; None if it is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    body, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if not body or zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        return None
    return np.load(io.BytesIO(body))
