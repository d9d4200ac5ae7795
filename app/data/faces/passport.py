"""Facts about a data set of photographs: what came in, what was left out and why, and what looks suspect.

Letters: N images of the data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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
LOW_SCORE = 0.97  # of a face: below, a look is worth it
Groups: TypeAlias = Sequence[Sequence[int]] | NDArray[np.int64]


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
    """Rows of a source, and findings by title: each a list of groups of rows, worst first.

    `summary` has counts for the manifest. A finding counts its photographs; duplicates count those beyond the first.
    `kept` are the rows that are images. `people` has name, rows and images, the people who lost most first.
    """

    rows: Sequence[Row]
    findings: dict[str, Groups]
    summary: dict[str, Any]
    kept: Sequence[int] | NDArray[np.int64]
    people: Sequence[tuple[str, int, int]] = ()
    what: str = "photographs"  # what the rows are; also the key of their number in `summary`


DUPLICATES, OTHER_PEOPLE, ONE_IMAGE = "duplicates", "the same picture of two people", "people of one image"
SMALL, NOT_SQUARE, GREYS, TURNED = "smaller than 112 pixels", "not square", "grey", "turned upright by EXIF"
LEFT_OUT = "left out"


def passport(rows: Sequence[Row], images: Images) -> Passport:
    """Judge the rows and their images [N, 112, 112, 3]."""
    row_of = {row.image: place for place, row in enumerate(rows) if row.image is not None}
    hashes, grey = look(images, range(len(images)))
    counts = Counter(row.person for row in rows if row.image is not None)
    kept = [place for place, row in enumerate(rows) if row.image is not None]

    def those(test: Callable[[Examined], bool]) -> list[list[int]]:
        return [[place] for place in kept if test(rows[place].examined)]

    groups = [[row_of[image] for image in group] for group in duplicates(images, hashes)]
    across = [group for group in groups if len({rows[place].person for place in group}) > 1]
    weak = sorted(
        (place for place in kept if rows[place].examined.points), key=lambda place: rows[place].examined.score
    )
    found: dict[str, Groups] = {
        LEFT_OUT: [[place] for place, row in enumerate(rows) if row.left_out],
        OTHER_PEOPLE: across,
        DUPLICATES: groups,
        ONE_IMAGE: [[place] for place in kept if rows[place].person and counts[rows[place].person] == 1],
        "low face score": [[place] for place in weak if rows[place].examined.score < LOW_SCORE],
        "several faces": those(lambda each: each.faces > 1),
        "kept without a face": those(lambda each: each.searched and each.points is None),
        SMALL: those(lambda each: 0 < min(each.width, each.height) < SIDE),
        NOT_SQUARE: those(lambda each: each.width != each.height and each.points is None),
        GREYS: [[row_of[int(image)]] for image in np.flatnonzero(grey)],
        TURNED: those(lambda each: each.turned),
    }
    found = {title: groups for title, groups in found.items() if len(groups)}
    came = Counter(row.person for row in rows)
    sides = np.sort([side for row in rows if (side := min(row.examined.width, row.examined.height))])  # 0: unreadable
    summary = {
        "photographs": len(rows),
        "images": len(kept),
        **(of_people(np.array([*counts.values()]), len(came) - len(counts)) if any(came) else {}),
        "shorter_side_px": spread(sides),
        "left_out": dict(Counter(row.left_out for row in rows if row.left_out)),
        "found": counted(found),
    }
    people = [(person, came[person], counts[person]) for person in came] if any(came) else []
    people.sort(key=lambda each: (each[2] - each[1], each[0]))
    return Passport(rows, found, summary, kept, people)


def spread(sizes: NDArray[Any]) -> dict[str, int]:
    """The least, the median and the most of sorted numbers; 0 where there are none."""
    if not len(sizes):
        return {"least": 0, "median": 0, "most": 0}
    return {"least": int(sizes[0]), "median": int(sizes[len(sizes) // 2]), "most": int(sizes[-1])}


def of_people(images: NDArray[Any], without: int) -> dict[str, Any]:
    """Counts of people, from the number of images of each, and of people who have none."""
    median = int(np.median(images)) if len(images) else 0
    return {
        "people": len(images),
        "images_a_person": {**spread(np.sort(images)), "median": median},
        "people_without_images": without,
    }


def counted(found: dict[str, Groups]) -> dict[str, int]:
    """The number of rows in each finding; of duplicates, those beyond the first."""
    return {title: sum(len(group) - (title == DUPLICATES) for group in groups) for title, groups in found.items()}


def look(images: Images, rows: range) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The difference hash (64 bits: is a pixel brighter than its left neighbour) and greyness of each of these rows."""
    hashes, grey = np.empty(len(rows), np.uint64), np.empty(len(rows), np.bool_)
    for place, image in enumerate(rows):
        pixels = images[image]
        grey[place] = np.abs(pixels[..., 0].astype(np.int16) - pixels[..., 2]).mean() < GREY
        small = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX)
        levels = np.asarray(small, np.int16)
        hashes[place] = np.packbits(levels[:, 1:] > levels[:, :-1]).view(np.uint64)[0]
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
