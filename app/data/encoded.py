"""Image files as they came, read like an array of pixels: images.jpegs with offsets.npy, or a .rec of insightface.

`images.jpegs` holds the bytes of JPEG, WebP and PNG files one after another. `offsets.npy`, int64 [N + 1], says where
each begins. Threads decode the rows of a batch into its buffer, to the same pixels that `prepare` writes into
images.npy.

Letters: N images, B images of a batch.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import ENCODED, IMAGE_SHAPE, OFFSETS, SIDE, open_npy
from app.data.shards import Images, LocalImages
from app.data.sources.photograph import UNREADABLE, OtherSize, decode_stored
from app.data.sources.recordio import Records, rec
from app.data.sources.worker_pool import cores
from app.errors import WrongUse, quoted

CHECKED = 64  # images of a .rec decoded when it is opened
PART_ROWS = 8  # images that a thread decodes before it takes more
CHUNK = 1 << 20  # offsets compared at once
READ = 1 << 14  # places of records read at once


class EncodedImages:
    """N image files that `len`, `shape` and indexing present as uint8 [N, 112, 112, 3] RGB, decoded on demand."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        path: Path,
        count: int,
        stored: Callable[[int], bytes],
        *,
        block: Callable[[int, int], memoryview] | None = None,
        labels: NDArray[np.int32] | None = None,
        advice: str = "copy it or make it again",
    ) -> None:
        self.path, self.stored, self.block, self.labels, self.advice = path, stored, block, labels, advice
        self.shape = (count, *IMAGE_SHAPE)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Any) -> NDArray[np.uint8]:
        """Decode one row to [112, 112, 3], or those of a slice or an array of numbers or of booleans to [n, …]."""
        if isinstance(which, int | np.integer):
            row = range(len(self))[int(which)]
            return self.read(np.array([row]))[0]
        return self.read(np.arange(len(self))[which])

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(rows), *IMAGE_SHAPE), np.uint8)
        self.read_into(rows, images)
        return images

    def read_into(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Decode rows [B] into `out` [B, 112, 112, 3] with all threads. Raises WrongUse naming a broken image."""
        parts = range(0, len(rows), PART_ROWS)
        if len(parts) <= 1:
            self._decode(rows, out)
            return
        done = [self._threads.submit(self._decode, rows[at : at + PART_ROWS], out[at : at + PART_ROWS]) for at in parts]
        wait(done)  # all of them: after an error no thread may still write into `out`
        for each in done:
            each.result()

    def _decode(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        for place, row in enumerate(rows.tolist()):
            try:
                out[place] = decode_stored(self.stored(row))
            except OtherSize as error:
                raise WrongUse(f"image {row} of {self.path} is {error}, not {SIDE}x{SIDE}; {self.advice}") from error
            except UNREADABLE as error:
                raise WrongUse(f"image {row} of {self.path} is not readable; {self.advice}") from error

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(decoding_threads(cores(), os.environ), thread_name_prefix="decode")


def decoding_threads(cores: int, environment: Any) -> int:
    """The threads of one process: its share of the machine's cores. torchrun tells the processes of a machine."""
    told = environment.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // max(1, int(told) if told.isdecimal() else 1))


def read_into(images: Images, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Copy or decode rows [B] of images [N, S, S, 3] into `out` [B, S, S, 3]."""
    if isinstance(images, LocalImages):
        rows, images = images.local(rows), images.images
    if isinstance(images, EncodedImages):
        images.read_into(rows, out)
    else:
        source: Any = images
        # mode="clip" writes directly into `out`; the default mode goes through a temporary array.
        np.take(source, rows, axis=0, out=out, mode="clip")


def stored_bytes(images: Images, start: int, stop: int) -> Any:
    """The bytes in the file of rows start..stop, of which the manifest has the hash."""
    if isinstance(images, EncodedImages):
        assert images.block is not None, "a .rec has no manifest"
        return images.block(start, stop)
    return np.ascontiguousarray(images[start:stop]).data


def open_encoded(path: Path) -> EncodedImages:
    """Open images.jpegs or a .rec. Raises WrongUse with the fault and the fix."""
    return _open_rec(path) if path.suffix == ".rec" else _open_jpegs(path)


def _open_jpegs(path: Path) -> EncodedImages:
    if not path.is_file():
        raise WrongUse(f"there is no file {path}; `invoke prepare --encoded` makes one")
    offsets = open_offsets(path)
    file = path.open("rb")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.close()
    view = memoryview(data)

    def stored(row: int) -> bytes:
        return data[int(offsets[row]) : int(offsets[row + 1])]

    return EncodedImages(
        path, len(offsets) - 1, stored, block=lambda start, stop: view[int(offsets[start]) : int(offsets[stop])]
    )


def open_offsets(path: Path) -> NDArray[np.int64]:
    """Map the offsets of images.jpegs [N + 1]. Raises WrongUse if they do not increase from 0 to its size."""
    file = path.with_name(OFFSETS)
    offsets = open_npy(file, f"copy it together with {path.name}, or run `invoke prepare --encoded` again")
    if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) < 2:
        raise WrongUse(
            f"{file} is {offsets.dtype} of shape {list(offsets.shape)}; it must be int64 of shape [N + 1], with N at "
            "least 1; copy it again"
        )
    if offsets[0] != 0:
        raise WrongUse(f"{file} begins with {offsets[0]}; it must begin with 0, copy it again")
    for at in range(0, len(offsets) - 1, CHUNK):
        some = np.asarray(offsets[at : at + CHUNK + 1])
        falls = np.flatnonzero(some[1:] <= some[:-1])
        if len(falls):
            row = at + int(falls[0])
            raise WrongUse(f"{file} does not increase at image {row}; copy it together with {path.name} again")
    size, wanted = path.stat().st_size, int(offsets[-1])
    if size != wanted:
        what = "is truncated: it" if size < wanted else "is another file: it"
        raise WrongUse(f"{path} {what} has {size} bytes, and {OFFSETS} lists {wanted}; copy both again")
    return np.asarray(offsets)


def _open_rec(path: Path) -> EncodedImages:
    source = rec(path)
    for sentence in source.left_out:
        raise WrongUse(sentence)  # an index with gaps: training would silently lack images
    starts, records = np.empty(source.count, np.int64), Records(path)
    for at in range(0, source.count, READ):  # as lists of Python's numbers, all at once would take five times as much
        starts[at : at + READ] = source.read(at, min(at + READ, source.count))
    convert = f"convert it once: python -m app.prepare source=rec path={quoted(path)} out=images{ENCODED[0]}"
    empty = np.flatnonzero(records.heads(starts)[1] == 0)
    if len(empty):  # not only when training comes to it
        raise WrongUse(f"image {empty[0]} of {path} is empty; {convert} unreadable=skip")
    images = EncodedImages(
        path,
        source.count,
        lambda row: records.image(int(starts[row])),
        labels=source.labels,
        advice=convert,
    )
    images.read(np.unique(np.linspace(0, source.count - 1, CHECKED).round().astype(np.int64)))
    return images
