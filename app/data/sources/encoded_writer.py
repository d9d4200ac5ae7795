"""Write a source's image files to images.jpegs and offsets.npy, block by block; an interrupted call can resume.

A file that already is a JPEG, WebP or PNG of 112 x 112 is kept as it came. Every other image is stored as WebP, without
loss. In both cases decoding gives the pixels that images.npy would have.

The length of a block is known only when it is made. So each block is first a file of its own in a folder beside the
unfinished file, and is moved to its end in order. The notes, one line of JSON a block, have the hashes of its bytes, of
its lengths and of its pixels. A later call verifies them and makes only the other blocks.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import OFFSETS, SIDE
from app.data.sources.photograph import UNREADABLE, decode_stored, kind, lossless
from app.data.sources.source import Source
from app.data.sources.worker_pool import in_order
from app.data.sources.writer import (
    COPY_BYTES,
    ROW_BYTES,
    BadImage,
    Decode,
    Progress,
    Unfinished,
    decoded,
    hash_of,
    make_missing,
)
from app.files import atomic, remove, replace, settle

KEPT = ("JPEG", "WEBP", "PNG")  # Pillow's names of the formats that are kept as they came

Stored = Callable[[Any], Sequence[bytes]]


class Made(NamedTuple):
    """A finished block: sha256 of its bytes, of its lengths [rows] int64, and of its pixels."""

    sha256: str
    lengths_sha256: str
    pixels_sha256: str


def write_encoded(
    source: Source, out: Path, block_rows: int, *, workers: int = 1, progress: Progress = lambda _: None
) -> list[Made]:
    """Write all images of `source` to `out` with offsets.npy beside it; return the hashes of each block.

    Raises Unreadable after all other blocks are done, like `write_images`. Raises OSError if the disk fails.
    """
    unfinished = UnfinishedEncoded(Unfinished.of(source, out, block_rows), folder_of(out))
    made, joined = unfinished.resume()

    def join() -> None:
        nonlocal joined
        joined = unfinished.join(made, joined)

    make_missing(unfinished.of, made, partial(_make, source, unfinished, workers), progress, unfinished.forget, join)
    join()
    assert joined == unfinished.of.blocks
    lengths = [np.load(unfinished.lengths(block)) for block in range(joined)]
    with atomic(out.with_name(OFFSETS)) as file:
        np.save(file, np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]), dtype=np.int64))
    settle(unfinished.of.path, out)
    return [made[block] for block in range(unfinished.of.blocks)]


def folder_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.blocks")


def finish(out: Path) -> None:
    """Delete the folder of blocks; the file can no longer be resumed."""
    shutil.rmtree(folder_of(out), ignore_errors=True)


@dataclass(frozen=True)
class UnfinishedEncoded:
    """An unfinished images.jpegs: its first blocks in `of.path`, later ones and all lengths in `folder`."""

    of: Unfinished
    folder: Path

    def bytes(self, block: int) -> Path:
        return self.folder / f"{block}.bytes"

    def lengths(self, block: int) -> Path:
        return self.folder / f"{block}.npy"

    def resume(self) -> tuple[dict[int, Made], int]:
        """Return the blocks of an earlier call whose hashes still match, and how many are joined already."""
        noted = self._noted()
        if noted and self.of.out.exists() and not self.of.path.exists():
            replace(self.of.out, self.of.path)  # complete, but the call ended before `finish`
        if not noted:
            self.forget()
        self.folder.mkdir(exist_ok=True)
        self.of.path.touch()
        right, joined, at = dict[int, Made](), 0, 0
        with self.of.path.open("r+b") as file:
            while (made := noted.get(joined)) and made.sha256 == hash_of(file, at, size := self._size(joined)):
                right[joined], joined, at = made, joined + 1, at + size
            file.truncate(at)
        for block, made in noted.items():
            if block not in right and self.bytes(block).is_file():
                with self.bytes(block).open("rb") as file:
                    if hash_of(file, 0, self._size(block)) == made.sha256:
                        right[block] = made
        self.of.notes.write_text("".join(self.of.note(block, *made) for block, made in right.items()), encoding="utf-8")
        return right, joined

    def join(self, made: dict[int, Made], joined: int) -> int:
        """Move the blocks that follow to the end of the unfinished file; return how many it has then."""
        with self.of.path.open("ab") as file:
            while joined in made:
                if self.bytes(joined).is_file():
                    with self.bytes(joined).open("rb") as block:
                        shutil.copyfileobj(block, file, COPY_BYTES)
                    file.flush()
                    remove(self.bytes(joined))
                joined += 1
        return joined

    def forget(self) -> None:
        self.of.forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _size(self, block: int) -> int:
        return int(np.load(self.lengths(block)).sum())

    def _noted(self) -> dict[int, Made]:
        """The blocks noted as done whose images have the same origin and whose lengths are as noted."""
        noted: dict[int, Made] = {}
        for block, hashes in self.of.noted():
            with suppress(ValueError, TypeError, OSError, EOFError):  # other notes, or lengths that are gone
                made, lengths = Made(*hashes), np.load(self.lengths(block), allow_pickle=False)
                if lengths.shape == (self.of.rows_of(block),) and _sha256(lengths) == made.lengths_sha256:
                    noted[block] = made
        return noted


def _make(
    source: Source, unfinished: UnfinishedEncoded, workers: int, blocks: list[int]
) -> Generator[tuple[int, tuple[Made, list[BadImage]]]]:
    def task(block: int) -> tuple[Path, Path, int, Sequence[Any], Decode, Stored | None]:
        start = block * unfinished.of.block_rows
        rows = source.read(start, start + unfinished.of.rows_of(block))
        return unfinished.bytes(block), unfinished.lengths(block), start, rows, source.decode, source.stored

    return in_order(blocks, task, write_block, workers)


def write_block(
    path: Path, lengths_path: Path, first_row: int, rows: Sequence[Any], decode: Decode, stored: Stored | None
) -> tuple[Made, list[BadImage]]:
    """Write the files of rows to `path` and their lengths beside it; return the hashes, and the bad images.

    With a bad image the files and hashes are meaningless.
    """
    sha256, pixels, lengths, bad = hashlib.sha256(), hashlib.sha256(), list[int](), list[BadImage]()
    with path.open("wb") as file:
        for _, piece, images in decoded(rows, first_row, decode, bad):
            pixels.update(images.data)
            came = [b""] * len(piece) if stored is None else stored(piece)
            for image, data in zip(images, came, strict=True):
                kept = data if as_wanted(data, image) else lossless(image)
                sha256.update(kept)
                file.write(kept)
                lengths.append(len(kept))
    all_lengths = np.array(lengths, np.int64)
    np.save(lengths_path, all_lengths)
    return Made(sha256.hexdigest(), _sha256(all_lengths), pixels.hexdigest()), bad


def as_wanted(data: bytes, image: NDArray[np.uint8]) -> bool:
    """Whether an image file can be kept: 112 x 112, not larger than its pixels, and decoded to exactly `image`."""
    if not data or len(data) > ROW_BYTES:
        return False
    try:
        file_format, size = kind(data)
        return file_format in KEPT and size == (SIDE, SIDE) and np.array_equal(decode_stored(data), image)
    except UNREADABLE:
        return False


def _sha256(lengths: NDArray[np.int64]) -> str:
    return hashlib.sha256(lengths.tobytes()).hexdigest()
