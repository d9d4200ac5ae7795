"""How a photograph becomes a training image of 112 x 112: by five points, or scaled as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import SIDE
from app.data.faces.align import cut
from app.data.faces.examine import Examined, Look
from app.data.faces.landmarks import Points, read_landmarks
from app.data.sources.photograph import FITS, load_face, photograph, readable
from app.data.sources.source import Source, content_of, contents, name_in
from app.errors import WrongUse

ALIGN = {
    "none": "scale the whole photograph, see fit=",
    "auto": "find the best face and align it by its five points; 112x112 images are aligned already",
    "all": "as auto, 112x112 images too",
}
NOT_FOUND = ("skip", "keep")
SEVERAL = ("best", "skip")
DETECTOR = "mtcnn 1.0.0 of 2026-11"  # part of a data set's identity; change it when detect.py finds other points
NO_FACE, MORE_FACES, UNREADABLE = "no face found", "several faces", "unreadable"


class Item(NamedTuple):
    """A row before it is decoded."""

    file: Path
    points: Points | None


@dataclass(frozen=True)
class Placing:
    """The options of prepare about faces. `landmarks` has the points of a CSV file, by name relative to the folder."""

    align: str = "none"
    fit: str = "crop"
    min_face: int = 40  # pixels
    min_score_pct: int = 90
    not_found: str = "skip"
    several: str = "best"
    landmarks: Mapping[str, Points] | None = field(default=None, repr=False)
    landmarks_sha256: str = ""

    def with_landmarks(self, file: Path, source: Source) -> Placing:
        """Read the points of a source's photographs. Raises WrongUse."""
        if self.align != "none":
            raise WrongUse(f"align={self.align} finds its own points; leave it out, or leave out landmarks=")
        if not file.is_file():
            raise WrongUse(f"there is no file {file}; give landmarks=FILE.csv, or align=auto, which writes one")
        points = read_landmarks(file, names(source))
        return replace(self, landmarks=points, landmarks_sha256=content_of(file))

    @property
    def look(self) -> Look:
        if self.align == "none":
            return Look()
        return Look(True, self.align != "all", self.min_face, self.min_score_pct)

    @property
    def by_points(self) -> bool:
        return self.align != "none" or self.landmarks is not None

    @property
    def identity(self) -> str:
        """What makes images of the same photographs differ; empty for the default."""
        plain = Placing()
        if self.landmarks is not None:
            return f" landmarks={self.landmarks_sha256} fit={self.fit} not_found={self.not_found}"
        if self.align != "none":
            return f" {self} {DETECTOR}"
        return "" if self.fit == plain.fit else f" fit={self.fit}"

    def of(self, source: Source) -> Source:
        """The source with this placing in its identity."""
        rows = source.made_of_rows
        return replace(
            source,
            made_of=source.made_of + self.identity,
            made_of_rows=None if rows is None else lambda start, stop: rows(start, stop) + self.identity,
        )

    def points(self, source: Source, examined: Sequence[Examined]) -> list[Points | None]:
        """The points of each row; None for a photograph that is scaled as a whole."""
        if self.landmarks is None:
            return [each.points for each in examined]
        return [self.landmarks.get(name) for name in names(source)]

    def left_out(self, points: Sequence[Points | None], examined: Sequence[Examined]) -> dict[int, str]:
        """The readable rows that become no image, with the reason."""
        left = dict[int, str]()
        if not self.by_points:
            return left
        for row, (each, its) in enumerate(zip(examined, points, strict=True)):
            aligned = (each.width, each.height) == (SIDE, SIDE) and not each.searched
            if each.bad or aligned:
                continue
            if its is None and self.not_found == "skip":
                left[row] = NO_FACE if self.landmarks is None else "no landmarks"
            elif each.faces > 1 and self.several == "skip":
                left[row] = MORE_FACES
        return left


def names(source: Source) -> list[str]:
    """The photographs of a source, relative to its folder; a list of pairs may also name others."""
    assert source.root is not None
    return [name_in(source.root, file) for file in source.files]


def placed(source: Source, points: Sequence[Points | None], fit: str) -> Source:
    """The source whose images are cut out by their points, or scaled where there are none."""
    items = [Item(file, its) for file, its in zip(source.files, points, strict=True)]
    return replace(
        source, read=lambda start, stop: items[start:stop], decode=partial(load_placed, fit=fit), stored=contents_of
    )


def load_placed(items: Sequence[Item], fit: str) -> NDArray[np.uint8]:
    """Decode and place photographs: uint8 [n, 112, 112, 3] RGB. Raises WrongUse naming the file."""
    assert fit in FITS
    return np.stack([_load_one(item, fit) for item in items])


def contents_of(items: Sequence[Item]) -> list[bytes]:
    return contents([item.file for item in items])


def _load_one(item: Item, fit: str) -> NDArray[np.uint8]:
    if item.points is None:
        return load_face(item.file, fit)
    with readable(item.file):
        image = photograph(item.file.read_bytes())
    return cut(image, np.array(item.points).reshape(-1, 2))
