"""Write a source's images to a file, block by block, in one or several processes; an interrupted call can resume.

The unfinished file is beside the final one, and a list next to it has the hash of every finished block. A later call
verifies those blocks against their hashes and makes only the others. A block's bytes depend only on the source, so
neither the number of processes nor an interruption changes the result.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import IMAGE_SHAPE
from app.data.sources.source import Source
from app.data.sources.worker_pool import in_order
from app.errors import WrongUse
from app.files import atomic, claim, replace, settle

ROW_BYTES = int(np.prod(IMAGE_SHAPE))
PIECE_ROWS = 256  # rows decoded at once; limits the memory of a process for any block size
COPY_BYTES = 1 << 20
SHOWN = 20  # unreadable images listed on the terminal

Decode = Callable[[Any], NDArray[np.uint8]]
Progress = Callable[[int], None]  # takes the number of new images


class BadImage(NamedTuple):
    """An image that cannot be decoded: its row in the source, and the error message that names it."""

    row: int
    sentence: str


class Unreadable(WrongUse):
    """Some images of a source cannot be decoded; `bad` lists all of them."""

    def __init__(self, bad: Sequence[BadImage]) -> None:
        self.bad = sorted(bad)
        super().__init__("\n".join(image.sentence for image in self.bad))

    def listed(self, out: Path) -> str:
        """Message with the first SHOWN images; with more than SHOWN, also the path of a file beside `out` with all."""
        bad = self.bad
        if len(bad) == 1:
            return f"{bad[0].sentence}, or leave it out with unreadable=skip"
        lines = [image.sentence for image in bad[:SHOWN]]
        if len(bad) > SHOWN:
            listing = out.with_name("unreadable.txt")
            with atomic(listing) as file:
                file.write("".join(f"{image.sentence}\n" for image in bad).encode())
            lines.append(f"and {len(bad) - SHOWN} more; {listing} lists all of them")
        return "\n".join([*lines, f"{len(bad)} images cannot be read; leave them out with unreadable=skip"])


Hashes = TypeVar("Hashes", bound=tuple[str, ...])  # of a block
Written = tuple[tuple[str], list[BadImage]]  # sha256 of a block, and its bad images


def write_images(
    source: Source, out: Path, block_rows: int, *, workers: int = 1, progress: Progress = lambda _: None
) -> list[str]:
    """Write all images of `source` to `out`, which appears when complete; return the sha256 of each block.

    The list of blocks stays until `finish`, so a call that ended between the two can also resume.

    Raises Unreadable after all other blocks are done: one call names every bad image, and the next makes only their
    blocks. Raises OSError if the disk fails.
    """
    unfinished = Unfinished.of(source, out, block_rows)
    made = unfinished.resume()
    make_missing(unfinished, made, partial(_make, source, unfinished, workers), progress, unfinished.forget)
    settle(unfinished.path, out)
    return [made[block][0] for block in range(unfinished.blocks)]


def make_missing(
    unfinished: Unfinished,
    made: dict[int, Hashes],
    make: Callable[[list[int]], Generator[tuple[int, tuple[Hashes, list[BadImage]]]]],
    progress: Progress,
    forget: Callable[[], None],
    then: Callable[[], None] = lambda: None,
) -> None:
    """Make the blocks that are not in `made`: add each to it, note it on disk, and call `then`.

    Raises Unreadable after all of them, and calls `forget` before if no block is made.
    """
    progress(sum(unfinished.rows_of(block) for block in made))
    missing = [block for block in range(unfinished.blocks) if block not in made]
    bad: list[BadImage] = []
    with unfinished.notes.open("a", encoding="utf-8") as notes, closing(make(missing)) as making:
        for block, (hashes, unreadable) in making:
            bad += unreadable
            if not unreadable:
                made[block] = hashes
                notes.write(unfinished.note(block, *hashes))
                notes.flush()
                then()
            progress(unfinished.rows_of(block))
    if bad:
        if not made:
            forget()
        raise Unreadable(bad)


def begun(out: Path) -> bool:
    """Whether an earlier call left finished blocks to resume from."""
    return _notes(out).exists()


def finish(out: Path) -> None:
    """Delete the list of blocks; the file can no longer be resumed."""
    _notes(out).unlink(missing_ok=True)


def _notes(out: Path) -> Path:
    return out.with_name(f".{out.name}.blocks.part")


@dataclass(frozen=True)
class Unfinished:
    """An unfinished images.npy with its blocks and the notes about finished ones.

    A note is a line of JSON: the number and sha256 of a finished block, and a hash of its images' origin.
    """

    path: Path
    notes: Path
    out: Path
    source: Source
    block_rows: int

    @classmethod
    def of(cls, source: Source, out: Path, block_rows: int) -> Unfinished:
        return cls(out.with_name(f".{out.name}.part"), _notes(out), out, source, block_rows)

    @property
    def count(self) -> int:
        return self.source.count

    def made_of(self, block: int) -> str:
        """Hash the origin of a block's images, with the block's place and length."""
        start = block * self.block_rows
        stop = start + self.rows_of(block)
        told = self.source.origin_of(start, stop)
        return hashlib.sha256(f"{told}\0{start}\0{stop}".encode()).hexdigest()

    def note(self, block: int, *hashes: str) -> str:
        return json.dumps([block, *hashes, self.made_of(block)]) + "\n"

    def noted(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the blocks that are noted as done, with their hashes, and whose images still have the same origin."""
        for line in self.notes.read_text(encoding="utf-8").splitlines() if self.notes.is_file() else ():
            with suppress(ValueError, TypeError):  # a truncated last line, or a note of an earlier version
                block, *hashes, made_of = json.loads(line)
                if 0 <= block < self.blocks and made_of == self.made_of(block):
                    yield block, hashes

    @property
    def blocks(self) -> int:
        return -(-self.count // self.block_rows)

    @property
    def header(self) -> bytes:
        head = io.BytesIO()
        shape = (self.count, *IMAGE_SHAPE)
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return head.getvalue()

    def rows_of(self, block: int) -> int:
        return min(self.block_rows, self.count - block * self.block_rows)

    def offset(self, block: int) -> int:
        return len(self.header) + block * self.block_rows * ROW_BYTES

    def resume(self) -> dict[int, tuple[str]]:
        """Reserve the file's room and return the blocks of an earlier call whose hashes still match."""
        noted = {block: hashes[0] for block, hashes in self.noted() if len(hashes) == 1}
        if noted and self.out.exists() and not self.path.exists():
            replace(self.out, self.path)  # complete, but the call ended before `finish`
        if not noted or not self.path.exists():
            self.forget()
        self._claim()
        with self.path.open("rb") as file:
            right = {
                block: (sha256,)
                for block, sha256 in noted.items()
                if hash_of(file, self.offset(block), self.rows_of(block) * ROW_BYTES) == sha256
            }
        self.notes.write_text("".join(self.note(block, *hashes) for block, hashes in right.items()), encoding="utf-8")
        return right

    def _claim(self) -> None:
        """Extend the file to its full size and write its header; keep its blocks. Raises WrongUse without room."""
        size = len(self.header) + self.count * ROW_BYTES
        try:
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                claim(file, size, f"{self.count} images")
                file.truncate(size)
                file.seek(0)
                file.write(self.header)
        except WrongUse:
            self.forget()
            raise

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def hash_of(file: IO[bytes], at: int, size: int) -> str:
    """The sha256 of `size` bytes of a file, from byte `at` on."""
    file.seek(at)
    sha256 = hashlib.sha256()
    while size and (piece := file.read(min(size, COPY_BYTES))):
        sha256.update(piece)
        size -= len(piece)
    return sha256.hexdigest()


def _make(source: Source, unfinished: Unfinished, workers: int, blocks: list[int]) -> Generator[tuple[int, Written]]:
    def task(block: int) -> tuple[Path, int, int, Sequence[Any], Decode]:
        start = block * unfinished.block_rows
        rows = source.read(start, start + unfinished.rows_of(block))
        return unfinished.path, unfinished.offset(block), start, rows, source.decode

    return in_order(blocks, task, write_block, workers)


def write_block(path: Path, offset: int, first_row: int, rows: Sequence[Any], decode: Decode) -> Written:
    """Decode rows and write them at `offset`; return the sha256 of the written bytes, and the bad images.

    A piece with a bad image is not written, and then the hash is meaningless.
    """
    sha256, bad = hashlib.sha256(), list[BadImage]()
    with path.open("r+b") as file:
        for start, piece, images in decoded(rows, first_row, decode, bad):
            assert images.dtype == np.uint8
            assert images.shape == (len(piece), *IMAGE_SHAPE)
            file.seek(offset + start * ROW_BYTES)
            file.write(images.data)
            sha256.update(images.data)
    return (sha256.hexdigest(),), bad


def decoded(
    rows: Sequence[Any], first_row: int, decode: Decode, bad: list[BadImage]
) -> Iterator[tuple[int, Sequence[Any], NDArray[np.uint8]]]:
    """Yield the place, the rows and the images of each piece. One with bad images is left out: they go to `bad`."""
    for start in range(0, len(rows), PIECE_ROWS):
        piece = rows[start : start + PIECE_ROWS]
        try:
            images = np.ascontiguousarray(decode(piece))
        except WrongUse:
            bad += bad_images(first_row + start, piece, decode)
        else:
            yield start, piece, images


def bad_images(first_row: int, rows: Sequence[Any], decode: Decode) -> list[BadImage]:
    """Decode the rows one by one and return those that fail."""
    bad = []
    for place in range(len(rows)):
        try:
            decode(rows[place : place + 1])
        except WrongUse as error:
            bad.append(BadImage(first_row + place, str(error)))
    return bad
