"""A source's images to a file, block by block, in one process or several; killed at any moment, it goes on from there.

The unfinished file lies beside the final name, with the hash of every block that is done in a list next to it. A later
call checks those blocks against their hashes and makes only the others. A block's bytes depend on the source alone, so
neither the number of processes nor an interruption changes the result.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.data.dataset import IMAGE_SHAPE
from app.data.sources.source import Source
from app.errors import WrongUse
from app.files import claim, replace, settle

ROW_BYTES = int(np.prod(IMAGE_SHAPE))
PIECE_ROWS = 256  # decoded at a time: what a process holds in memory, whatever the size of a block

Decode = Callable[[Any], NDArray[np.uint8]]
Progress = Callable[[int], None]  # so many more images are there


class BadImage(NamedTuple):
    """An image that cannot be made: its row in the source, and the sentence that names it."""

    row: int
    sentence: str


class Unreadable(WrongUse):
    """The images of a source that cannot be made, all of them."""

    def __init__(self, bad: Sequence[BadImage]) -> None:
        self.bad = sorted(bad)
        super().__init__("\n".join(image.sentence for image in self.bad))


Written = tuple[str, list[BadImage]]  # sha256 of a block, and the images that kept it from being whole


def write_images(
    source: Source, out: Path, block_rows: int, *, workers: int = 1, progress: Progress = lambda _: None
) -> list[str]:
    """Write all images of `source` to `out`, which appears when whole; returns the sha256 of each block.

    The list of blocks stays until `finish`, so that a call that ended between the two is gone on with as well.

    Raises Unreadable when all other blocks are done, so that one call names every bad image and the next call
    makes only their blocks; and OSError when the disk fails.
    """
    unfinished = Unfinished.of(source, out, block_rows)
    hashes = unfinished.resume()
    progress(sum(unfinished.rows_of(block) for block in hashes))
    missing = [block for block in range(unfinished.blocks) if block not in hashes]
    bad: list[BadImage] = []
    with (
        unfinished.notes.open("a", encoding="utf-8") as notes,
        closing(_make(source, unfinished, missing, workers)) as made,
    ):
        for block, (sha256, unreadable) in made:
            bad += unreadable
            if not unreadable:
                hashes[block] = sha256
                notes.write(unfinished.note(block, sha256))
                notes.flush()
            progress(unfinished.rows_of(block))
    if bad:
        if not hashes:
            unfinished.forget()
        raise Unreadable(bad)
    settle(unfinished.path, out)
    return [hashes[block] for block in range(unfinished.blocks)]


def begun(out: Path) -> bool:
    """Whether an earlier call left something to go on with."""
    return _notes(out).exists()


def finish(out: Path) -> None:
    """Nothing is left to go on with."""
    _notes(out).unlink(missing_ok=True)


def _notes(out: Path) -> Path:
    return out.with_name(f".{out.name}.blocks.part")


@dataclass(frozen=True)
class Unfinished:
    """An images.npy on its way: its blocks, and which of them are there.

    A note is a line of JSON: number and sha256 of a block that is done, and what its images were made of.
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
        """What the images of a block come from, its place and length included."""
        start = block * self.block_rows
        stop = start + self.rows_of(block)
        told = self.source.made_of if self.source.made_of_rows is None else self.source.made_of_rows(start, stop)
        return hashlib.sha256(f"{told}\0{start}\0{stop}".encode()).hexdigest()

    def note(self, block: int, sha256: str) -> str:
        return json.dumps([block, sha256, self.made_of(block)]) + "\n"

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

    def resume(self) -> dict[int, str]:
        """The blocks that an earlier call left, each read again and found right, in a file whose room is claimed."""
        noted = self._noted()
        if noted and self.out.exists() and not self.path.exists():
            replace(self.out, self.path)  # whole, but the call ended before it said so
        if not noted or not self.path.exists():
            self.forget()
        self._claim()
        with self.path.open("rb") as file:
            right = {block: sha256 for block, sha256 in noted.items() if self._hash(file, block) == sha256}
        self.notes.write_text("".join(self.note(*each) for each in right.items()), encoding="utf-8")
        return right

    def _claim(self) -> None:
        """The file at its full size, with its header; its blocks stay as they are."""
        size = len(self.header) + self.count * ROW_BYTES
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            try:
                claim(file, size, f"{self.count} images")
            except WrongUse:
                self.forget()
                raise
            file.truncate(size)
            file.seek(0)
            file.write(self.header)

    def _noted(self) -> dict[int, str]:
        """Blocks that are said to be done and are made of the same images as then."""
        if not self.notes.is_file():
            return {}
        noted: dict[int, str] = {}
        for line in self.notes.read_text(encoding="utf-8").splitlines():
            try:
                block, sha256, made_of = json.loads(line)
            except (ValueError, TypeError):  # the last line, cut short, or a note of an earlier version
                continue
            if 0 <= block < self.blocks and made_of == self.made_of(block):
                noted[block] = sha256
        return noted

    def _hash(self, file: io.BufferedReader, block: int) -> str:
        file.seek(self.offset(block))
        sha256, left = hashlib.sha256(), self.rows_of(block) * ROW_BYTES
        while left and (piece := file.read(min(left, PIECE_ROWS * ROW_BYTES))):
            sha256.update(piece)
            left -= len(piece)
        return sha256.hexdigest()

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def _make(source: Source, unfinished: Unfinished, blocks: list[int], workers: int) -> Generator[tuple[int, Written]]:
    """Make those blocks, in order. At most workers + 1 of them are read ahead."""

    def task(block: int) -> tuple[Path, int, int, Sequence[Any], Decode]:
        start = block * unfinished.block_rows
        rows = source.read(start, start + unfinished.rows_of(block))
        return unfinished.path, unfinished.offset(block), start, rows, source.decode

    workers = min(workers, len(blocks))
    if workers <= 1:
        for block in blocks:
            yield block, write_block(*task(block))
        return
    waiting: deque[tuple[int, Future[Written]]] = deque()
    with _pool(workers) as pool:
        for block in blocks:
            waiting.append((block, pool.submit(write_block, *task(block))))
            if len(waiting) > workers:
                number, future = waiting.popleft()
                yield number, future.result()
        for number, future in waiting:
            yield number, future.result()


def write_block(path: Path, offset: int, first_row: int, rows: Sequence[Any], decode: Decode) -> Written:
    """Decode rows and write them at their place; the sha256 of what was written, and the images that are bad.

    Where an image is bad, the piece that holds it is left as it was, and the hash means nothing.
    """
    sha256, bad = hashlib.sha256(), list[BadImage]()
    with path.open("r+b") as file:
        for start in range(0, len(rows), PIECE_ROWS):
            piece = rows[start : start + PIECE_ROWS]
            try:
                images = np.ascontiguousarray(decode(piece))
            except WrongUse:
                bad += _bad_images(first_row + start, piece, decode)
                continue
            assert images.dtype == np.uint8
            assert images.shape == (len(piece), *IMAGE_SHAPE)
            file.seek(offset + start * ROW_BYTES)
            file.write(images.data)
            sha256.update(images.data)
    return sha256.hexdigest(), bad


def _bad_images(first_row: int, rows: Sequence[Any], decode: Decode) -> list[BadImage]:
    """Those of the rows that cannot be decoded, found one by one."""
    bad = []
    for place in range(len(rows)):
        try:
            decode(rows[place : place + 1])
        except WrongUse as error:
            bad.append(BadImage(first_row + place, str(error)))
    return bad


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when this one fails, is interrupted, or is killed.

    They are spawned, not forked: the same on every system.
    """
    context = get_context("spawn")
    alive, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow, initargs=(alive,))
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool as error:
        raise OSError("a worker was killed, most likely for want of memory; try again with workers=1") from error
    finally:
        lifeline.close()
        pool.shutdown(cancel_futures=True)
        alive.close()


def _follow(alive: Any) -> None:  # one end of a Pipe; the class of it differs between systems
    """In a worker: end when the other end of the pipe is closed, on purpose or by the death of its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one decides

    def wait() -> None:
        try:
            alive.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
