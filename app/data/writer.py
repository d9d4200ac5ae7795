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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.dataset import IMAGE_SHAPE
from app.data.sources import Source
from app.errors import WrongUse
from app.files import claim, settle

ROW_BYTES = int(np.prod(IMAGE_SHAPE))
PIECE_ROWS = 256  # decoded at a time: what a process holds in memory, whatever the size of a block

Decode = Callable[[Any], NDArray[np.uint8]]
Progress = Callable[[int], None]  # so many more images are there


def write_images(
    source: Source, out: Path, block_rows: int, *, workers: int = 1, progress: Progress = lambda _: None
) -> list[str]:
    """Write all images of `source` to `out`, which appears when whole; returns the sha256 of each block.

    The list of blocks stays until `finish`, so that a call that ended between the two is gone on with as well.

    Raises WrongUse for images that cannot be read (nothing is left behind then) and OSError when the disk fails.
    """
    unfinished = Unfinished.of(source, out, block_rows)
    hashes = unfinished.resume()
    progress(sum(unfinished.rows_of(block) for block in hashes))
    missing = [block for block in range(unfinished.blocks) if block not in hashes]
    try:
        with (
            unfinished.notes.open("a", encoding="utf-8") as notes,
            closing(_make(source, unfinished, missing, workers)) as made,
        ):
            for block, sha256 in made:
                hashes[block] = sha256
                notes.write(json.dumps([block, sha256]) + "\n")
                notes.flush()
                progress(unfinished.rows_of(block))
    except WrongUse:
        unfinished.forget()
        raise
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
    """An images.npy on its way: its blocks, and which of them are there."""

    path: Path
    notes: Path  # a line with what the images are made of, then one with number and sha256 of each block that is done
    out: Path
    made_of: str
    count: int
    block_rows: int

    @classmethod
    def of(cls, source: Source, out: Path, block_rows: int) -> Unfinished:
        made_of = hashlib.sha256(f"{source.made_of}\0{source.count}\0{block_rows}".encode()).hexdigest()
        return cls(out.with_name(f".{out.name}.part"), _notes(out), out, made_of, source.count, block_rows)

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
        """The blocks that an earlier call left, each read again and found right; else a new file, its room claimed."""
        size = len(self.header) + self.count * ROW_BYTES
        noted = self._noted()
        if noted is not None and self.out.exists() and not self.path.exists():
            os.replace(self.out, self.path)  # whole, but the call ended before it said so
        if noted is None or not self.path.exists() or self.path.stat().st_size != size:
            self.forget()
            try:
                with self.path.open("wb") as file:
                    claim(file, size, f"{self.count} images")
                    file.truncate(size)
                    file.write(self.header)
            except WrongUse:
                self.forget()
                raise
            self.notes.write_text(json.dumps(self.made_of) + "\n", encoding="utf-8")
            return {}
        with self.path.open("rb") as file:
            right = {block: sha256 for block, sha256 in noted.items() if self._hash(file, block) == sha256}
        lines = [self.made_of, *([block, sha256] for block, sha256 in right.items())]
        self.notes.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return right

    def _noted(self) -> dict[int, str] | None:
        """Blocks that are said to be done; None where nothing was begun, or something else."""
        if not self.notes.is_file():
            return None
        first, *lines = self.notes.read_text(encoding="utf-8").splitlines() or [""]
        if first != json.dumps(self.made_of):
            return None
        noted: dict[int, str] = {}
        for line in lines:
            try:
                block, sha256 = json.loads(line)
            except ValueError:  # the last line, cut short
                continue
            if 0 <= block < self.blocks:
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


def _make(source: Source, unfinished: Unfinished, blocks: list[int], workers: int) -> Generator[tuple[int, str]]:
    """Make those blocks; each with its hash, in order. At most workers + 1 of them are read ahead."""

    def task(block: int) -> tuple[Path, int, Sequence[Any], Decode]:
        start = block * unfinished.block_rows
        rows = source.read(start, start + unfinished.rows_of(block))
        return unfinished.path, unfinished.offset(block), rows, source.decode

    workers = min(workers, len(blocks))
    if workers <= 1:
        for block in blocks:
            yield block, write_block(*task(block))
        return
    waiting: deque[tuple[int, Future[str]]] = deque()
    with _pool(workers) as pool:
        for block in blocks:
            waiting.append((block, pool.submit(write_block, *task(block))))
            if len(waiting) > workers:
                number, future = waiting.popleft()
                yield number, future.result()
        for number, future in waiting:
            yield number, future.result()


def write_block(path: Path, offset: int, rows: Sequence[Any], decode: Decode) -> str:
    """Decode rows and write them at their place; the sha256 of what was written."""
    sha256 = hashlib.sha256()
    with path.open("r+b") as file:
        file.seek(offset)
        for start in range(0, len(rows), PIECE_ROWS):
            piece = rows[start : start + PIECE_ROWS]
            images = np.ascontiguousarray(decode(piece))
            assert images.dtype == np.uint8
            assert images.shape == (len(piece), *IMAGE_SHAPE)
            file.write(images.data)
            sha256.update(images.data)
    return sha256.hexdigest()


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
