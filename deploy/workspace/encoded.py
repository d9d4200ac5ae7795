"""images.jpegs as read by the laptop: image files one after another, and offsets.npy with their places. No numpy."""

from __future__ import annotations

import array
import operator
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import PurePath

from deploy.errors import WrongUse, command
from deploy.shell import Shell
from deploy.shell.base import CHUNK_BYTES
from deploy.workspace.npy import header_bytes, read_header
from deploy.workspace.sources import Files, Place

SUFFIX = ".jpegs"
NAME = f"images{SUFFIX}"
IMAGES = (".npy", SUFFIX)  # of a prepared data set: pixels, or image files
OFFSETS = "offsets.npy"
ITEM_BYTES = 8
IMAGES_MOST = 100_000_000  # their offsets take 800 MB of memory here
PREPARE = "prepare --source folder --path DIR --encoded"

Offsets = Sequence[int]  # [rows + 1]


def read_offsets(path: Place, files: Files) -> Offsets:
    """Read the offsets of images.jpegs. Raises WrongUse if they do not increase from 0 to its size."""
    size, file = files.size(path), path.with_name(OFFSETS)
    again = f"copy {path.name} and {OFFSETS} again, or make them (`{command(PREPARE)}`)"
    if size is None:
        raise WrongUse(f"there is no file {path}: give --data an {NAME}; `{command(PREPARE)}` makes one")
    try:
        header = read_header(file, files)
        count = header.shape[0] if len(header.shape) == 1 else 0
        if header.dtype != "<i8" or count < 2:
            raise ValueError(f"it holds {header.dtype} of shape {list(header.shape)}, not int64 [N + 1]")
        if count > IMAGES_MOST + 1:
            raise ValueError(f"it lists {count - 1} images, more than {IMAGES_MOST}")
        offsets = _values(file, files, header.data_offset, count)
    except (ValueError, OSError) as error:
        raise WrongUse(f"{file} is not a complete file of offsets ({error}): {again}") from error
    if offsets[0] != 0 or not all(map(operator.lt, offsets, islice(offsets, 1, None))):
        raise WrongUse(f"{file} does not increase from 0: {again}")
    if offsets[-1] != size:
        what = "is truncated" if size < offsets[-1] else "does not match its offsets"
        raise WrongUse(f"{path} {what}: it has {size} bytes, and {OFFSETS} lists {offsets[-1]}: {again}")
    return offsets


def write_offsets(shell: Shell, path: PurePath, offsets: Offsets, ranges: Iterable[range]) -> None:
    """Write the offsets of a file that holds these ranges of rows only, one after another."""
    staged, at = array.array("q", [0]), 0
    for rows in ranges:
        moved = at - offsets[rows.start]
        staged.extend(each + moved for each in offsets[rows.start + 1 : rows.stop + 1])
        at = staged[-1]
    if sys.byteorder == "big":
        staged.byteswap()
    header, part = header_bytes("<i8", (len(staged),)), path.with_name(f"{path.name}.part")
    data = memoryview(staged).cast("B")
    shell.truncate(part, len(header) + len(data))
    shell.write_at(part, 0, header)
    for start in range(0, len(data), CHUNK_BYTES):
        shell.write_at(part, len(header) + start, bytes(data[start : start + CHUNK_BYTES]))
    shell.replace(part, path)


def _values(file: Place, files: Files, at: int, count: int) -> array.array[int]:
    """Read `count` values that start at byte `at`. Raises ValueError if the file ends before."""
    values, left = array.array("q"), count * ITEM_BYTES
    while left:
        data = files.read(file, at, min(CHUNK_BYTES, left))
        if not data or len(data) % ITEM_BYTES:
            raise ValueError("truncated")
        values.frombytes(data)
        at, left = at + len(data), left - len(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
