"""Open a gallery and its probes: two folders of people, two prepared data sets, or one set that is split."""

from __future__ import annotations

import csv
import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import ARRAYS, array_in, open_labels
from app.data.dataset import open_images
from app.data.sources.photograph import load_face
from app.data.sources.source import content_of, folder
from app.errors import WrongUse
from app.evaluation.identification import Identification
from app.evaluation.ijb import is_ijb, open_ijb_search
from app.evaluation.image_set import ImageSet
from app.evaluation.measures import Answers
from app.runtime.checkpoint import sha256

SPLIT_SEED = 0  # fixed, so that all weights are measured on the same split
GALLERY, PROBES = "gallery", "probes"  # sub-folders of a set
PEOPLE = "people.csv"  # names of the labels, which app.prepare writes for a folder


@dataclass(frozen=True)
class Side:
    """The images of a gallery or of probes, each with the name of its person."""

    path: Path
    people: list[str]  # of each image
    named: bool  # whether people have names; else they have numbers
    read: Callable[[int], NDArray[np.uint8]]  # raises WrongUse
    sha256: str
    contents: tuple[str, ...] = ()  # a hash of each image file
    notes: tuple[str, ...] = ()


def is_gallery(path: Path) -> bool:
    """Whether a folder has the two sub-folders of an identification set."""
    return (path / GALLERY).is_dir() and (path / PROBES).is_dir()


def open_gallery(gallery: Path, probes: Path | None, fit: str = "crop") -> ImageSet:
    """Open a set for identification. Without `probes` the people of `gallery` are split by a fixed rule, see `split`.

    IJB-B and IJB-C have lists of galleries and probes of their own.

    Raises WrongUse if an image set is missing or if no probe shows a person of the gallery.
    """
    if is_ijb(gallery):
        if probes is not None:
            raise WrongUse(f"{gallery} has its own lists of galleries and probes; leave probes={probes} out")
        return open_ijb_search(gallery)
    if probes is None:
        return _of_one(_open(gallery, fit))
    if gallery.resolve() == probes.resolve():
        raise WrongUse(f"gallery and probes are both {gallery}; give other images as probes, or leave probes= out")
    one, two = _open(gallery, fit), _open(probes, fit)
    if one.named != two.named:
        bare = two if one.named else one
        raise WrongUse(
            f"{bare.path} has no {PEOPLE}, so its labels cannot be matched with names; "
            f"prepare it with source=folder, or give the folder of its photographs"
        )
    person = _numbered([*one.people, *two.people])
    count = len(one.people)
    protocol = Identification(person, np.arange(len(person)) < count)
    if not protocol.mated.any():
        raise WrongUse(
            f"no person of {probes} is in {gallery}; a person needs the same name in both, such as "
            f"{gallery}/{one.people[0]} and {probes}/{one.people[0]}"
        )

    def read(row: int) -> NDArray[np.uint8]:
        return one.read(row) if row < count else two.read(row - count)

    told = hashlib.sha256((one.sha256 + two.sha256).encode()).hexdigest()
    again = len({*one.contents} & {*two.contents})
    twice = (f"{again} of the files are in both gallery and probes, so they find themselves",) if again else ()
    return ImageSet(
        name_of(one.path),
        str(gallery),
        told,
        len(person),
        read,
        protocol,
        (*one.notes, *two.notes, *twice, *_nearly_equal([*one.people, *two.people])),
    )


def _numbered(people: Sequence[str]) -> NDArray[np.int64]:
    number = {name: place for place, name in enumerate(sorted(set(people)))}
    return np.array([number[name] for name in people], np.int64)


def _of_one(side: Side) -> ImageSet:
    person = _numbered(side.people)
    in_gallery = split(person)
    if in_gallery is None:
        raise WrongUse(
            f"{side.path} has fewer than two people with two images; give images of more people, or probes=DIR"
        )
    protocol = Identification(person, in_gallery)
    notes = (*side.notes, *_nearly_equal(side.people))
    return ImageSet(name_of(side.path), str(side.path), side.sha256, len(person), side.read, protocol, notes)


def _nearly_equal(people: Sequence[str]) -> tuple[str, ...]:
    """A note on names that Windows or macOS takes for one: they differ in case, or in how an accent is stored."""
    names: dict[str, list[str]] = {}
    for name in sorted(set(people)):
        names.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    groups = [group for group in names.values() if len(group) > 1]
    if not groups:
        return ()
    listed = " and ".join(map(ascii, groups[0]))
    return (
        f"{listed} count as different people, though their names differ only in case or in how an accent is stored "
        f"({len(groups)} such names); give one person one name",
    )


def name_of(place: Path) -> str:
    """The folder's name; of DIR/gallery, that of DIR."""
    place = place.resolve()
    return f"{place.parent.name if place.name == GALLERY else place.name}-1N"


def split(person: NDArray[np.int64], seed: int = SPLIT_SEED) -> Answers | None:
    """Choose which images [N] form the gallery; None if fewer than two people have two images.

    A random half of the people with two or more images, rounded up, is enrolled with one random image each. All other
    images are probes: those of the enrolled people, and those of people outside the gallery.
    """
    numbers, sizes = np.unique(person, return_counts=True)
    several = numbers[sizes > 1]
    if len(several) < 2:
        return None
    rng = np.random.default_rng(seed)
    enrolled = np.sort(rng.permutation(several)[: -(-len(several) // 2)])
    chosen = np.zeros(len(person), bool)
    for number in enrolled.tolist():
        chosen[rng.choice(np.flatnonzero(person == number))] = True
    return chosen


def _open(path: Path, fit: str) -> Side:
    if not path.exists():
        raise WrongUse(f"there is no {path}; give a folder with one sub-folder of images for each person")
    if path.name in ARRAYS or array_in(path):
        return _prepared(path if path.is_dir() else path.parent)
    if not path.is_dir():
        raise WrongUse(f"{path} is not a folder of people; give one, or a prepared folder with images.npy")
    source = folder(path)
    assert source.labels is not None
    contents = tuple(content_of(file) for file in source.files)
    people = [source.people[label] for label in source.labels.tolist()]
    told = "".join(f"{name}\0{content}\0" for name, content in zip(people, contents, strict=True))
    digest = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()
    notes = tuple(f"{path}: {sentence}" for sentence in source.left_out)
    return Side(path, people, True, lambda row: load_face(source.files[row], fit), digest, contents, notes)


def _prepared(place: Path) -> Side:
    file = array_in(place) or place / ARRAYS[0]
    images = open_images(file)
    if not (place / "labels.npy").is_file():
        raise WrongUse(f"{place} has no labels.npy, so its people are unknown; prepare it from a folder of people")
    labels = open_labels(place / "labels.npy", len(images))
    if not (labels >= 0).all():
        raise WrongUse(f"{place} holds images without a label; leave them out")
    named = names_of(place / PEOPLE)
    missing = [label for label in np.unique(labels).tolist() if label not in named] if named else []
    if missing:
        raise WrongUse(f"{place / PEOPLE} has no line for the label {missing[0]}; prepare the folder again")
    people = [named.get(label, str(label)) for label in labels.tolist()]
    told = sha256(file) + sha256(place / "labels.npy")
    digest = hashlib.sha256(told.encode()).hexdigest()
    return Side(place, people, bool(named), lambda row: images[row], digest)


def names_of(file: Path) -> dict[int, str]:
    """The person of each label in people.csv; {} without the file. Raises WrongUse."""
    if not file.is_file():
        return {}
    named: dict[int, str] = {}
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            for row in csv.DictReader(lines):
                label, person = int(row["label"]), row["person"]
                if person is None or named.setdefault(label, person) != person:
                    raise ValueError(f"label {label} has no name, or two")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise WrongUse(f"{file} is not as app.prepare wrote it, with label,person,images; prepare it again") from error
    return named
