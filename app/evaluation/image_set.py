"""A set to measure on: images that are decoded when they are needed, and what is asked of their embeddings.

Letters: N images, n of this process.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.data.dataset import IMAGE_SHAPE, Rows
from app.errors import WrongUse
from app.evaluation.protocols import SetProtocol
from app.runtime.dist import World, gather_rows


@dataclass(frozen=True)
class ImageSet:
    name: str
    path: str
    sha256: str  # of the file that says what is asked: packages differ under one name
    count: int  # N, each image once however many pairs it is in
    read: Callable[[int], NDArray[np.uint8]]  # image number 0..N-1 as RGB [112, 112, 3]; raises WrongUse
    protocol: SetProtocol


def decode(images: ImageSet, rows: Rows, here: World) -> NDArray[np.uint8]:
    """Those images [n, 112, 112, 3] in memory, 37 kB each. What one process cannot read, all refuse."""
    decoded = np.empty((len(rows), *IMAGE_SHAPE), np.uint8)
    complaint = ""

    def read(place: int) -> None:
        decoded[place] = images.read(int(rows[place]))

    try:
        with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as threads:
            for _ in threads.map(read, range(len(rows))):
                pass
    except WrongUse as error:
        complaint = str(error)
    _refuse_together(complaint, here)
    return decoded


def _refuse_together(complaint: str, here: World) -> None:
    """Raise WrongUse on every process when one has something to complain about: it would wait for the others."""
    letters = torch.tensor([*complaint.encode("utf-8", "replace"), *([10] if complaint else [])], dtype=torch.uint8)
    said = bytes(gather_rows(letters, here).tolist()).decode("utf-8")
    if said:
        raise WrongUse(said.splitlines()[0])
