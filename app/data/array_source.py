"""An existing array of faces, or image files as they came, as a source of faces."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import open_labels
from app.data.dataset import open_images
from app.data.sources.source import Source, content_of, fingerprint


def array(path: Path, labels: Path | None) -> Source:
    """An existing images.npy, with an optional file of labels."""
    images = open_images(path)
    return Source(
        name=path.resolve().parent.name if path.name == "images.npy" else path.stem,
        count=len(images),
        read=range,
        decode=partial(rows_of_array, path),
        labels=None if labels is None else open_labels(labels, len(images)),
        made_of=" ".join([fingerprint([path], path.parent), *([] if labels is None else [content_of(labels)])]),
    )


def rows_of_array(path: Path, rows: range) -> NDArray[np.uint8]:
    return open_images(path)[rows.start : rows.stop]
