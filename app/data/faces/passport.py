"""Facts about a data set of photographs: what came in, what was left out and why, and what looks suspect.

Letters: N images of the data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.arrays import SIDE
from app.data.faces.examine import Examined
from app.data.shards import Images

GREY = 3.0  # mean difference of the colours, in levels, below which an image is grey
ALIKE_BITS = 3  # of 64: hashes that differ by no more are compared by their pixels
ALIKE = 6.0  # mean difference of pixels, in levels, of a duplicate
BANDS, BAND_BITS = 4, 16  # 64 bits with 3 errors have one of 4 bands without any
CROWD = 512  # images with one band; more than these are compared only where their hashes are equal
PIECE = 1024  # images between two reports of progress
LOW_SCORE = 0.97  # of a face: below, a look is worth it


@dataclass(frozen=True)
class Row:
    """A photograph that came in: its name and person, what was found, its place in the data set or why it has none.

    `person` is empty for photographs without people.
    """

    name: str
    person: str
    examined: Examined
    image: int | None = None
    left_out: str = ""


@dataclass(frozen=True)
class Passport:
    """Rows of the folder, and findings by title: each a list of groups of rows, worst first."""

    rows: Sequence[Row]
    findings: dict[str, list[list[int]]] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """Counts for the manifest. A finding counts its photographs; duplicates count those beyond the first."""
        kept = Counter(row.person for row in self.rows if row.image is not None)
        sides = sorted(min(row.examined.width, row.examined.height) for row in self.rows)
        of_people = {
            "people": len(kept),
            "images_a_person": {
                "least": min(kept.values(), default=0),
                "median": int(np.median([*kept.values()])) if kept else 0,
                "most": max(kept.values(), default=0),
            },
            "people_without_images": len({row.person for row in self.rows} - {*kept}),
        }
        return {
            "photographs": len(self.rows),
            "images": kept.total(),
            **(of_people if any(row.person for row in self.rows) else {}),
            "shorter_side_px": {"least": sides[0], "median": sides[len(sides) // 2], "most": sides[-1]},
            "left_out": dict(Counter(row.left_out for row in self.rows if row.left_out)),
            "found": {
                title: sum(len(group) - (title == DUPLICATES) for group in groups)
                for title, groups in self.findings.items()
            },
        }


DUPLICATES, OTHER_PEOPLE = "duplicates", "the same picture of two people"


def passport(rows: Sequence[Row], images: Images, progress: Callable[[int], object] = lambda _: None) -> Passport:
    """Judge the rows and their images [N, 112, 112, 3]."""
    row_of = {row.image: place for place, row in enumerate(rows) if row.image is not None}
    hashes, grey = _hashes(images, progress)
    counts = Counter(row.person for row in rows if row.image is not None)
    kept = [place for place, row in enumerate(rows) if row.image is not None]

    def those(test: Callable[[Examined], bool], among: Sequence[int] = kept) -> list[list[int]]:
        return [[place] for place in among if test(rows[place].examined)]

    groups = [[row_of[image] for image in group] for group in duplicates(images, hashes)]
    across = [group for group in groups if len({rows[place].person for place in group}) > 1]
    weak = sorted(
        (place for place in kept if rows[place].examined.points), key=lambda place: rows[place].examined.score
    )
    found = {
        "left out": [[place] for place, row in enumerate(rows) if row.left_out],
        OTHER_PEOPLE: across,
        DUPLICATES: groups,
        "people of one image": [[place] for place in kept if rows[place].person and counts[rows[place].person] == 1],
        "low face score": [[place] for place in weak if rows[place].examined.score < LOW_SCORE],
        "several faces": those(lambda each: each.faces > 1),
        "kept without a face": those(lambda each: each.searched and each.points is None),
        "smaller than 112 pixels": those(lambda each: 0 < min(each.width, each.height) < SIDE),
        "not square": those(lambda each: each.width != each.height and each.points is None),
        "grey": [[row_of[int(image)]] for image in np.flatnonzero(grey)],
        "turned upright by EXIF": those(lambda each: each.turned),
    }
    return Passport(rows, {title: groups for title, groups in found.items() if groups})


def _hashes(images: Images, progress: Callable[[int], object]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The difference hash (64 bits: is a pixel brighter than its left neighbour) and greyness of each image."""
    hashes, grey = np.empty(len(images), np.uint64), np.empty(len(images), np.bool_)
    for image in range(len(images)):
        pixels = images[image]
        grey[image] = np.abs(pixels[..., 0].astype(np.int16) - pixels[..., 2]).mean() < GREY
        small = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX)
        levels = np.asarray(small, np.int16)
        hashes[image] = np.packbits(levels[:, 1:] > levels[:, :-1]).view(np.uint64)[0]
        if image % PIECE == PIECE - 1:
            progress(PIECE)
    progress(len(images) % PIECE)
    return hashes, grey


def duplicates(images: Images, hashes: NDArray[np.uint64]) -> list[list[int]]:
    """Groups of images that show the same picture, up to compression and small changes, in ascending order."""
    group_of = dict[int, int]()

    def root(image: int) -> int:
        while group_of.get(image, image) != image:
            image = group_of[image]
        return image

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        if first != second and _same_picture(images[one], images[other]):
            group_of[second] = first

    for band in range(BANDS):
        keys = (hashes >> np.uint64(band * BAND_BITS)) & np.uint64(2**BAND_BITS - 1)
        order = np.argsort(keys, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if len(members) < 2:
                continue
            if len(members) > CROWD:
                members = members[np.argsort(hashes[members], kind="stable")]
                equal = np.flatnonzero(hashes[members][1:] == hashes[members][:-1])
                pairs = zip(members[equal].tolist(), members[equal + 1].tolist(), strict=True)
            else:
                bits = np.bitwise_count(hashes[members][:, None] ^ hashes[members][None])
                left, right = np.nonzero(np.triu(bits <= ALIKE_BITS, 1))
                pairs = zip(members[left].tolist(), members[right].tolist(), strict=True)
            for one, other in pairs:
                join(one, other)
    groups = dict[int, list[int]]()
    for image in sorted({*group_of, *group_of.values()}):
        groups.setdefault(root(image), []).append(image)
    return [groups[first] for first in sorted(groups)]


def _same_picture(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return bool(np.abs(one.astype(np.int16) - other).mean() <= ALIKE)
