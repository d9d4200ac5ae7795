"""Read IJB-B and IJB-C in the layout in which they are distributed (Maze et al. 2018; as evaluated by ArcFace).

meta/ijbc_face_tid_mid.txt            image name, template, medium; one line per image
meta/ijbc_template_pair_label.txt     template, template, 1 or 0; one line per pair (IJB-C: 15.7 million)
meta/ijbc_name_5pts_score.txt         image name, x and y of five points, the detector's score; the same order
loose_crop/                           the images

and for identification (1:N), each with a heading and one line per image, template and person first:

meta/ijbc_1N_gallery_G1.csv, _G2.csv  the two galleries (IJB-B: ijbb_1N_gallery_S1.csv, _S2.csv)
meta/ijbc_1N_probe_mixed.csv          the probes

Letters: N images, P pairs, T templates.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.faces.align import aligned
from app.data.sources.photograph import UNREADABLE
from app.errors import WrongUse
from app.evaluation.identification import Listed, TemplateSearch
from app.evaluation.image_set import ImageSet
from app.evaluation.protocols import Pooled, Templates
from app.runtime.checkpoint import sha256

PROBES = "[!.]*_1N_probe_mixed.csv"
GALLERIES = "[!.]*_1N_gallery_*.csv"


@dataclass(frozen=True)
class _Images:
    """The images of IJB-B or IJB-C, with the two lists that describe them."""

    pooled: Pooled
    read: Callable[[int], NDArray[np.uint8]]  # raises WrongUse
    lists: tuple[Path, ...]


def is_ijb(path: Path) -> bool:
    """Whether a folder is laid out as IJB-B or IJB-C."""
    return (path / "meta").is_dir()


def open_ijb(folder: Path) -> ImageSet:
    """Open `folder` for verification of its pairs (1:1).

    Raises WrongUse if a file is missing, damaged, or does not match the others.
    """
    images, pair_file = _images(folder), _list(folder, "template_pair_label")
    protocol = Templates(images.pooled, *_pairs(pair_file, images.pooled.templates))
    return _image_set(folder, folder.name, images, [pair_file], protocol)


def open_ijb_search(folder: Path) -> ImageSet:
    """Open `folder` for identification of its mixed probes in its galleries (1:N).

    Raises WrongUse if a file is missing, damaged, or does not match the others.
    """
    images, meta = _images(folder), folder / "meta"
    galleries, probes = sorted(meta.glob(GALLERIES)), sorted(meta.glob(PROBES))
    if not galleries or len(probes) != 1:
        raise WrongUse(
            f"{meta} must hold the lists of the search: a gallery such as ijbc_1N_gallery_G1.csv, and "
            f"ijbc_1N_probe_mixed.csv; it has {len(galleries)} and {len(probes)}"
        )
    known = images.pooled.templates
    protocol = TemplateSearch(
        images.pooled, tuple(_people(each, known) for each in galleries), _people(probes[0], known)
    )
    if not protocol.mated.any():
        raise WrongUse(f"no person of {probes[0]} is in {galleries[0].name}; get the lists again")
    return _image_set(folder, f"{folder.name}-1N", images, [*galleries, *probes], protocol)


def _image_set(
    folder: Path, name: str, images: _Images, more: Iterable[Path], protocol: Templates | TemplateSearch
) -> ImageSet:
    digest = hashlib.sha256("".join(map(sha256, (*images.lists, *more))).encode()).hexdigest()
    return ImageSet(name, str(folder), digest, len(images.pooled.template), images.read, protocol)


def _images(folder: Path) -> _Images:
    membership, landmarks = (_list(folder, ending) for ending in ("face_tid_mid", "name_5pts_score"))
    members, located = _lines(membership, 3), _lines(landmarks, 12)
    if [line[0] for line in members] != [line[0] for line in located]:
        raise WrongUse(
            f"{membership} and {landmarks.name} do not list the same images in the same order; get both again"
        )
    names = [line[0] for line in members]
    template, media = _numbers([line[1:] for line in members], membership).astype(np.int64).T
    points_and_score = _numbers([line[1:] for line in located], landmarks)
    points, score = points_and_score[:, :10].reshape(-1, 5, 2), points_and_score[:, 10].astype(np.float32)

    def read(row: int) -> NDArray[np.uint8]:
        file = folder / "loose_crop" / names[row]
        try:
            return aligned(file, points[row])
        except UNREADABLE as error:
            where = f"line {row + 1} of {membership}"
            raise WrongUse(f"{where} names {names[row]}, and {file} is not a readable image; get it again") from error

    return _Images(Pooled(template, media, score), read, (membership, landmarks))


def _people(file: Path, templates: NDArray[np.int64]) -> Listed:
    """Read a list of the search; `templates` are the ascending numbers of all templates [T]."""
    person_of: dict[int, int] = {}
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        for number, line in enumerate(csv.reader(lines), 1):
            if number == 1 or not line:  # the heading
                continue
            try:
                template, person = int(line[0]), int(line[1])
            except (ValueError, IndexError) as error:
                raise WrongUse(
                    f"line {number} of {file} must begin with the numbers of a template and of a person, such as 12,7"
                ) from error
            if person_of.setdefault(template, person) != person:
                raise WrongUse(f"{file} gives template {template} to two people, {person_of[template]} and {person}")
    if not person_of:
        raise WrongUse(f"{file} is empty; get it again")
    listed = np.array(sorted(person_of), np.int64)
    _known(listed, templates, file)
    people = np.array([person_of[each] for each in listed.tolist()], np.int64)
    return Listed(np.searchsorted(templates, listed), people)


def _known(listed: NDArray[np.int64], templates: NDArray[np.int64], file: Path) -> None:
    unknown = listed[~np.isin(listed, templates)]
    if len(unknown):
        raise WrongUse(f"{file} names template {unknown[0]}, which has no image; get both lists again")


def _list(folder: Path, ending: str) -> Path:
    found = sorted((folder / "meta").glob(f"[!.]*_{ending}.txt"))
    if len(found) != 1:
        raise WrongUse(f"{folder / 'meta'} must hold one list such as ijbc_{ending}.txt; it has {len(found)}")
    return found[0]


def _lines(file: Path, words: int) -> list[list[str]]:
    lines = [line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    wrong = next((number for number, line in enumerate(lines, 1) if len(line) != words), None)
    if wrong is not None:
        raise WrongUse(f"line {wrong} of {file} has {len(lines[wrong - 1])} words; it must have {words}")
    if not lines:
        raise WrongUse(f"{file} is empty; get it again")
    return lines


def _numbers(words: list[list[str]], file: Path) -> NDArray[np.float64]:
    try:
        return np.array(words, np.float64)
    except ValueError as error:
        raise WrongUse(f"{file} has a word where a number must be; get it again") from error


def _pairs(file: Path, templates: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Read the pairs as positions in the ascending template numbers [T], and whether each is one person."""
    if not file.stat().st_size:
        raise WrongUse(f"{file} has no pairs; get it again")
    try:
        table = np.loadtxt(file, dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise WrongUse(f"{file} has a line that is not three whole numbers; get it again") from error
    if table.shape[1] != 3 or not np.isin(table[:, 2], (0, 1)).all():
        raise WrongUse(f"{file} must hold lines of template, template, 1 or 0")
    _known(table[:, :2], templates, file)
    places = np.searchsorted(templates, table[:, :2])
    same = table[:, 2] == 1
    if same.all() or not same.any():
        raise WrongUse(f"{file} has pairs of one kind only; it needs pairs of one person and of two")
    return places[:, 0], places[:, 1], same
