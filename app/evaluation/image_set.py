"""A set to measure on: images that are decoded when they are needed, and what is asked of their embeddings.

Letters: N images, n of this process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.data.dataset import IMAGE_SHAPE, Rows
from app.errors import WrongUse
from app.evaluation.protocols import SetProtocol
from app.runtime.dist import World, gather_rows

HELD_BYTES = 2 * 2**30  # of a process's images that stay decoded: 57,000 of them, more than any published .bin has


@dataclass(frozen=True)
class ImageSet:
    name: str
    path: str
    sha256: str  # of the file that says what is asked: packages differ under one name
    count: int  # N, each image once however many pairs it is in
    read: Callable[[int], NDArray[np.uint8]]  # image number 0..N-1 as RGB [112, 112, 3]; raises WrongUse
    protocol: SetProtocol


class Streamed:
    """Like an array [n, 112, 112, 3] of some images of a set, which are read and decoded each time they are asked for.

    A slice of it is an array; taking one raises WrongUse for an image that cannot be read.
    """

    def __init__(self, images: ImageSet, rows: Rows) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        return np.stack([self.images.read(int(row)) for row in self.rows[part]])


Faces = NDArray[np.uint8] | Streamed


def never() -> bool:
    return False


def decode(images: ImageSet, rows: Rows, here: World, interrupted: Callable[[], bool] = never) -> Faces:
    """Those images [n, 112, 112, 3], 37 kB each: in memory where they fit into HELD_BYTES, else streamed.

    From when `interrupted` says so the rest is left out; the caller then agrees with the other processes to stop.
    Raises WrongUse on all processes for one that is to be held and that one of them cannot read.
    """
    largest_share = -(-images.count // here.size)  # the same for all processes, which must take the same way
    if largest_share * math.prod(IMAGE_SHAPE) > HELD_BYTES:
        return Streamed(images, rows)
    decoded = np.empty((len(rows), *IMAGE_SHAPE), np.uint8)

    def read(place: int) -> None:
        if not interrupted():
            decoded[place] = images.read(int(rows[place]))

    with refused_together(here), ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as threads:
        for _ in threads.map(read, range(len(rows))):
            pass
    return decoded


@contextmanager
def refused_together(here: World) -> Iterator[None]:
    """What one process refuses (WrongUse), all refuse at the end of this block: they would wait for it otherwise."""
    complaint = ""
    try:
        yield
    except WrongUse as error:
        complaint = str(error)
    letters = torch.tensor([*complaint.encode("utf-8", "replace"), *([10] if complaint else [])], dtype=torch.uint8)
    said = bytes(gather_rows(letters, here).tolist()).decode("utf-8")
    if said:
        raise WrongUse(said.splitlines()[0])
