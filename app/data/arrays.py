"""The files of a data set: their names, the shape of an image, and .npy files opened and checked.

Letters: N images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import WrongUse, quoted
from app.runtime.foreign import what_it_is

SIDE = 112
IMAGE_SHAPE = (SIDE, SIDE, 3)  # RGB; the images of a data set are uint8 [N, 112, 112, 3]
ENCODED = (".jpegs", ".rec")  # suffixes of files whose images are decoded on the way: app/data/encoded.py
ARRAYS = ("images.npy", f"images{ENCODED[0]}")  # the names of the images of a prepared data set
OFFSETS = "offsets.npy"  # beside images.jpegs: int64 [N + 1]


def array_in(folder: Path) -> Path | None:
    """Return the images of a prepared data set in `folder`; None if there are none."""
    return next((folder / name for name in ARRAYS if (folder / name).is_file()), None)


def open_npy(path: Path, instead: str) -> NDArray[Any]:
    """Map a .npy file read-only. Raises WrongUse; for a missing file the message suggests `instead`."""
    if path.is_dir():
        raise WrongUse(f"{path} is a folder; {_of_folder(path)}")
    if not path.is_file():
        raise WrongUse(f"there is no file {path}; {instead}")
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header fails as Python syntax, with errors of no common base class
        # numpy's message is about mmap lengths; the cause is a truncated file or another file type.
        size = f"({path.stat().st_size:,} bytes)"
        foreign = what_it_is(path, array_wanted=True) or f"is not a complete .npy file {size}; copy or make it again"
        raise WrongUse(f"{path} {foreign}") from error
    if not isinstance(content, np.ndarray):  # numpy opens by content, not by name
        content.close()
        raise WrongUse(f"{path} is an archive of arrays (.npz); save one array with numpy.save")
    return content


def open_labels(path: Path, count: int) -> NDArray[np.int32]:
    """Read labels as int32 [count]. Raises WrongUse if their type, number or range is wrong."""
    labels = open_npy(path, f"give an int32 .npy of {count} labels")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise WrongUse(f"{path} is {labels.dtype} of shape {list(labels.shape)}; it must be int32 of shape [{count}]")
    if len(labels) != count:
        raise WrongUse(f"{path} has {len(labels)} labels for {count} images; it must have {count}")
    bounds = np.iinfo(np.int32)
    if len(labels) and not bounds.min <= labels.min() <= labels.max() <= bounds.max:
        large = labels.max() > bounds.max
        which = f"{labels.max()}, too large" if large else f"{labels.min()}, too small"
        raise WrongUse(f"{path} has the label {which} for int32; number the people from 0 on")
    return np.asarray(labels, dtype=np.int32)


def _of_folder(path: Path) -> str:
    """Advice for a folder given instead of images.npy."""
    if file := array_in(path):
        return f"give the file in it: {file}"
    rec = path / "train.rec"
    source, first = ("rec", f"give {rec}, or ") if rec.is_file() else ("folder", "")
    return f"{first}convert it once: python -m app.prepare source={source} path={quoted(path)} out=images.npy"
