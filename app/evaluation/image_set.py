"""An evaluation set: images that are decoded on demand, and the protocol for their embeddings.

Letters: N images, n of this process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.data.arrays import IMAGE_SHAPE
from app.data.dataset import Rows
from app.evaluation.protocols import SetProtocol
from app.runtime.dist import World, together

HELD_BYTES = 2 * 2**30  # decoded images in memory per process: 57,000 images, more than any published .bin has


@dataclass(frozen=True)
class ImageSet:
    name: str
    path: str
    sha256: str  # of the files that define the set: sets with the same name can differ
    count: int  # N; an image in several pairs counts once
    read: Callable[[int], NDArray[np.uint8]]  # image number 0..N-1 as RGB [112, 112, 3]; raises WrongUse
    protocol: SetProtocol
    notes: tuple[str, ...] = ()  # sentences about what was left out, or may be wrong


class Streamed:
    """A virtual array [n, 112, 112, 3] of images of a set; every access reads and decodes them again.

    Slicing returns an array; it raises WrongUse if an image is unreadable.
    """

    def __init__(self, images: ImageSet, rows: Rows) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        return np.stack([self.images.read(int(row)) for row in self.rows[part]])


Faces = NDArray[np.uint8] | Streamed


def decode(images: ImageSet, rows: Rows, here: World, interrupted: Callable[[], bool] = lambda: False) -> Faces:
    """Return the images [n, 112, 112, 3], 37 kB each: decoded if they fit into HELD_BYTES, else streamed.

    Once `interrupted` returns true, the remaining images are skipped; the caller must then agree with the other
    processes to stop. Raises WrongUse on all processes if one of them cannot read an image while decoding.
    """
    largest_share = -(-images.count // here.size)  # equal on all processes, so that all take the same branch
    if largest_share * math.prod(IMAGE_SHAPE) > HELD_BYTES:
        return Streamed(images, rows)
    decoded = np.empty((len(rows), *IMAGE_SHAPE), np.uint8)

    def read(place: int) -> None:
        if not interrupted():
            decoded[place] = images.read(int(rows[place]))

    with together(here), ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as threads:
        for _ in threads.map(read, range(len(rows))):
            pass
    return decoded
