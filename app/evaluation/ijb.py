"""Read IJB-B and IJB-C in the layout in which they are distributed (Maze et al. 2018; as evaluated by ArcFace).

meta/ijbc_face_tid_mid.txt            image name, template, medium; one line per image
meta/ijbc_template_pair_label.txt     template, template, 1 or 0; one line per pair (IJB-C: 15.7 million)
meta/ijbc_name_5pts_score.txt         image name, x and y of five points, the detector's score; the same order
loose_crop/                           the images

Letters: N images, P pairs, T templates.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.faces.align import aligned
from app.data.sources.photograph import UNREADABLE
from app.errors import WrongUse
from app.evaluation.image_set import ImageSet
from app.evaluation.protocols import Templates
from app.runtime.checkpoint import sha256


def open_ijb(folder: Path) -> ImageSet:
    """Open the set in `folder`. Raises WrongUse if a file is missing, damaged, or does not match the others."""
    lists = [_list(folder, ending) for ending in ("face_tid_mid", "template_pair_label", "name_5pts_score")]
    membership, pair_file, landmarks = lists
    members, located = _lines(membership, 3), _lines(landmarks, 12)
    if [line[0] for line in members] != [line[0] for line in located]:
        raise WrongUse(
            f"{membership} and {landmarks.name} do not list the same images in the same order; get both again"
        )
    names = [line[0] for line in members]
    template, media = _numbers([line[1:] for line in members], membership).astype(np.int64).T
    points_and_score = _numbers([line[1:] for line in located], landmarks)
    points, score = points_and_score[:, :10].reshape(-1, 5, 2), points_and_score[:, 10].astype(np.float32)
    left, right, same = _pairs(pair_file, np.unique(template))

    def read(row: int) -> NDArray[np.uint8]:
        file = folder / "loose_crop" / names[row]
        try:
            return aligned(file, points[row])
        except UNREADABLE as error:
            where = f"line {row + 1} of {membership}"
            raise WrongUse(f"{where} names {names[row]}, and {file} is not a readable image; get it again") from error

    digest = hashlib.sha256("".join(map(sha256, lists)).encode()).hexdigest()
    protocol = Templates(template, media, score, left, right, same)
    return ImageSet(folder.name, str(folder), digest, len(names), read, protocol)


def _list(folder: Path, ending: str) -> Path:
    found = sorted((folder / "meta").glob(f"*_{ending}.txt"))
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
    places = np.searchsorted(templates, table[:, :2])
    unknown = templates[np.minimum(places, len(templates) - 1)] != table[:, :2]
    if unknown.any():
        raise WrongUse(f"{file} names template {table[:, :2][unknown][0]}, which has no image; get both lists again")
    same = table[:, 2] == 1
    if same.all() or not same.any():
        raise WrongUse(f"{file} has pairs of one kind only; it needs pairs of one person and of two")
    return places[:, 0], places[:, 1], same
