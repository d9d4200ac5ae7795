"""Open evaluation sets. The kinds are:

NAME.bin               verification pairs in insightface's format (LFW, CFP-FP, AgeDB-30, CALFW, CPLFW, …)
NAME.csv               img1,img2,label: paths relative to the file; 1 for one person, 0 for two; optional header
NAME.txt               LFW's pairs.txt, beside or in its folder of photographs (app/data/sources/lfw.py)
DIR with images.npy    and pairs.npy (int [P, 3]: image, image, 1 or 0), or labels.npy (int [N]: all pairs);
                       `app.prepare source=pairs` makes one from photographs and a CSV
DIR with gallery/      and probes/: identification (1:N). Each holds a sub-folder of aligned images per person, or what
                       `app.prepare source=folder` made (app/evaluation/gallery.py)
DIR with meta/         IJB-B or IJB-C as published: the pairs (1:1). As gallery=DIR, the search (app/evaluation/ijb.py)

Letters: N images, P pairs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.config import Config
from app.data.arrays import ARRAYS, SIDE, array_in, open_labels, open_npy
from app.data.dataset import open_configured, open_images
from app.data.sources.pairs import LISTS, read_pairs
from app.data.sources.photograph import UNREADABLE, decode_face, load_face, outline
from app.errors import WrongUse, quoted
from app.evaluation.gallery import GALLERY, PROBES, is_gallery, open_gallery
from app.evaluation.ijb import is_ijb, open_ijb
from app.evaluation.image_set import ImageSet
from app.evaluation.measures import folds_of
from app.evaluation.pickle_bin import read_bin
from app.evaluation.protocols import PairList, People, SetProtocol
from app.evaluation.validation import held_out_people
from app.evaluation.verification import FOLDS, enough
from app.runtime.checkpoint import sha256

MOST_PEOPLE_IMAGES = 5000  # they make 12.5 million pairs; sorting more takes minutes


def open_set(path: Path, fit: str = "crop") -> ImageSet:
    """Open the set at `path`; `fit` says how images that are not square become 112 x 112, see FITS.

    Raises WrongUse if the set is missing, damaged, of no known kind, or too small to measure.
    """
    if not path.exists():
        raise WrongUse(f"there is no set {path}; give one such as lfw.bin, pairs.csv or a folder with images.npy")
    if path.suffix == ".bin":
        return open_bin(path, fit)
    if path.suffix in LISTS:
        return open_list(path, fit)
    if is_ijb(path):
        return open_ijb(path)
    if is_gallery(path):
        return open_gallery(path / GALLERY, path / PROBES, fit)
    if path.name in ARRAYS or array_in(path):
        return open_arrays(path if path.is_dir() else path.parent)
    raise WrongUse(
        f"{path} is not a verification set; give a .bin, a .csv, LFW's pairs.txt, a folder with images.npy, "
        "one with gallery/ and probes/, or one of IJB-B or IJB-C"
    )


def open_bin(path: Path, fit: str) -> ImageSet:
    encoded, same = read_bin(path)
    # A photograph can be in many pairs; decode and embed it once.
    number: dict[bytes, int] = {}
    places = np.array([number.setdefault(image, len(number)) for image in encoded], np.int64)
    distinct = list(number)

    def read(row: int) -> NDArray[np.uint8]:
        try:
            return decode_face(distinct[row], fit)
        except UNREADABLE as error:
            where = int(np.argmax(places == row))
            raise WrongUse(f"image {where} of {path} is not readable; copy the file again") from error

    protocol = _pair_list(places[0::2], places[1::2], same, path)
    return ImageSet(path.stem, str(path), sha256(path), len(distinct), read, protocol)


def open_list(path: Path, fit: str) -> ImageSet:
    """Open the pairs of a list of photographs. Missing files are reported here, with their row, before decoding."""
    told = read_pairs(path)
    protocol = _pair_list(told.pairs[:, 0], told.pairs[:, 1], told.pairs[:, 2] == 1, path)
    return ImageSet(
        path.stem,
        str(path),
        sha256(path),
        len(told.files),
        lambda row: load_face(told.files[row], fit),
        protocol,
        _about_faces(told.files[0], path),
    )


def _about_faces(file: Path, path: Path) -> tuple[str, ...]:
    """A note if the first photograph of a list has not the size of an aligned face, as in LFW's own folder."""
    try:
        (width, height), _ = outline(file)
    except UNREADABLE:  # decoding names it
        return ()
    if (width, height) == (SIDE, SIDE):
        return ()
    return (
        f"photographs such as {file.name}, {width} x {height}, are scaled and no face is searched; unless they are "
        f"aligned, prepare the list first: source=pairs align=auto path={quoted(path)}",
    )


def open_arrays(folder: Path) -> ImageSet:
    """Open images.npy or images.jpegs of a folder, with its pairs or labels. Raises WrongUse without either."""
    file = array_in(folder) or folder / ARRAYS[0]
    images = open_images(file)
    pairs, labels = folder / "pairs.npy", folder / "labels.npy"
    protocol: SetProtocol
    if pairs.is_file():
        asked, protocol = pairs, _pairs_of_array(pairs, len(images))
    elif labels.is_file():
        asked, protocol = labels, _people(open_labels(labels, len(images)), folder)
    else:
        raise WrongUse(f"{folder} has no pairs or labels for its images; put pairs.npy or labels.npy beside images.npy")
    digest = hashlib.sha256((sha256(file) + sha256(asked)).encode()).hexdigest()
    return ImageSet(folder.name, str(folder), digest, len(images), lambda row: images[row], protocol)


def _pairs_of_array(path: Path, count: int) -> PairList:
    pairs = open_npy(path, "put pairs.npy or labels.npy beside images.npy")
    if pairs.ndim != 2 or pairs.shape[1] != 3 or pairs.dtype.kind not in "iu":
        raise WrongUse(f"{path} is {pairs.dtype} of shape {list(pairs.shape)}; it must be int of shape [P, 3]")
    if len(pairs) == 0:
        raise WrongUse(f"{path} has no pairs; it must have rows of image, image, 1 or 0")
    if pairs[:, :2].min() < 0 or pairs[:, :2].max() >= count or not np.isin(pairs[:, 2], (0, 1)).all():
        raise WrongUse(f"{path} must hold rows 0 to {count - 1} of images.npy, and 1 or 0 in its last column")
    return _pair_list(pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64), pairs[:, 2] == 1, path)


def _pair_list(left: NDArray[np.int64], right: NDArray[np.int64], same: NDArray[np.bool_], path: Path) -> PairList:
    return PairList(left, right, same, folds_of(same, str(path)))


def _people(labels: NDArray[np.int32], where: Path) -> People:
    if not (labels >= 0).all():
        raise WrongUse(f"{where} holds images without a label; leave them out, or give pairs.npy")
    if len(labels) > MOST_PEOPLE_IMAGES:
        raise WrongUse(
            f"{where} has {len(labels):,} images, too many to measure all pairs; "
            f"give a pairs.npy, or at most {MOST_PEOPLE_IMAGES:,} images"
        )
    if not enough(labels):
        raise WrongUse(
            f"the labels of {where} give fewer than {FOLDS} pairs of one person or of two; "
            f"give images of more people, such as 8 people with 4 images each"
        )
    return People(labels)


def held_out(config: Config, most: int | None = None) -> ImageSet:
    """The held-out people of a run's data set that its result is of, measured as during training.

    `most`: only the first so many of their images. Raises WrongUse if there are none.
    """
    data = open_configured(config.data)
    path = Path(str(config.data.binary_cache_path))
    people = held_out_people(data, config.train.eval)
    rows = people.rows[people.result][:most]
    if data.labels is None or len(rows) == 0:
        raise WrongUse(f"{path} has no labelled people held out; name sets to measure on, such as sets=lfw.bin")
    protocol = _people(data.labels[rows], path)
    digest = hashlib.sha256(data.images[rows].tobytes() + data.labels[rows].tobytes()).hexdigest()
    name = f"{path.resolve().parent.name}-held-out"
    notes: tuple[str, ...] = ()
    if people.validation is not None:
        name += "-result"
        chose, left = people.people()
        notes = (f"the people of the result, {left} of {chose + left}; the others chose the best checkpoint",)
    return ImageSet(name, str(path), digest, len(rows), lambda row: data.images[rows[row]], protocol, notes)
