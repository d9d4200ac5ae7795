"""The passport of images that come in one file, such as a .rec, parquet files or an array.

They may be tens of millions, so what is known of them lies in arrays, and several processes look at the images.

Letters: N rows of the source, K images of the data set, those rows that can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import SIDE
from app.data.dataset import open_images
from app.data.faces import passport
from app.data.faces.examine import Examined
from app.data.faces.passport import Passport, Row
from app.data.faces.passport_page import LISTED, write_page
from app.data.faces.placing import UNREADABLE
from app.data.faces.told import PAGE, Facts, write_left_out, write_people
from app.data.sources import photograph
from app.data.sources.source import Source
from app.data.sources.worker_pool import in_order

PIECE = 4096  # images a task


class Seen(NamedTuple):
    """What a look at K images tells: hash, greyness, and of their files width, height and whether EXIF turns them.

    Sizes are 0 for sources without image files.
    """

    hashes: NDArray[np.uint64]  # [K]
    grey: NDArray[np.bool_]  # [K]
    sizes: NDArray[np.int32]  # [K, 2]
    turned: NDArray[np.bool_]  # [K]


def seen(source: Source, out: Path, *, workers: int = 1, progress: Callable[[int], object] = lambda _: None) -> Seen:
    """Look at all images of `source`, which `out` holds already."""

    def task(start: int) -> tuple[Any, ...]:
        stop = min(start + PIECE, source.count)
        return out, start, stop, source.stored, source.read(start, stop) if source.stored else ()

    parts = []
    for _, part in in_order(range(0, source.count, PIECE), task, _look, workers):
        parts.append(part)
        progress(len(part.grey))
    return Seen(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _look(out: Path, start: int, stop: int, stored: Any, items: Sequence[Any]) -> Seen:
    hashes, grey = passport.look(open_images(out), range(start, stop))
    sizes, turned = np.zeros((stop - start, 2), np.int32), np.zeros(stop - start, np.bool_)
    for place, file in enumerate(stored(items) if stored else ()):
        with suppress(*photograph.UNREADABLE):  # another decoder, DALI, may have read it
            sizes[place], turned[place] = photograph.outline(file)
    return Seen(hashes, grey, sizes, turned)


@dataclass(frozen=True)
class StoredRows(Sequence[Row]):
    """The rows of a source [N], made when they are asked for; `image` [N] is their place in the data set, or -1."""

    source: Source
    image: NDArray[np.int64]
    about: Seen

    def __len__(self) -> int:
        return self.source.count

    @overload
    def __getitem__(self, row: int) -> Row: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Row]: ...
    def __getitem__(self, row: int | slice) -> Row | Sequence[Row]:
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        image, labels = int(self.image[row]), self.source.labels
        person = "" if labels is None else self.person(int(labels[row]))
        if image < 0:
            return Row(name_of(row), person, Examined(), None, UNREADABLE)
        width, height = self.about.sizes[image].tolist()
        return Row(name_of(row), person, Examined(width, height, bool(self.about.turned[image])), image)

    def __iter__(self) -> Iterator[Row]:
        return (self[row] for row in range(len(self)))

    def person(self, label: int) -> str:
        """The name of a label; empty for a person who is unknown."""
        return "" if label < 0 else self.source.people[label] if self.source.people else f"label {label}"


def name_of(row: int) -> str:
    return f"row {row}"


def passport_of(source: Source, without: Sequence[int], out: Path, about: Seen) -> Passport:
    """Judge the rows of `source`, of which `without` cannot be read and all others are the images in `out`."""
    image = np.zeros(source.count, np.int64)
    image[list(without)] = -1
    row_of = np.flatnonzero(image == 0)  # [K]
    image[row_of] = np.arange(len(row_of))
    labels = np.full(source.count, -1) if source.labels is None else np.asarray(source.labels, np.int64)
    people, came = np.unique(labels[labels >= 0], return_counts=True)
    place = np.searchsorted(people, labels[row_of])
    known = labels[row_of] >= 0
    images = np.bincount(place[known], minlength=len(people))
    alone = known & (images[np.where(known, place, 0)] == 1) if len(people) else known
    groups = [row_of[group].tolist() for group in passport.duplicates(open_images(out), about.hashes)]
    least, most = about.sizes.min(1), about.sizes.max(1)

    def rows(of_images: NDArray[np.bool_]) -> NDArray[np.int64]:
        return row_of[np.flatnonzero(of_images)][:, None]

    found: dict[str, passport.Groups] = {
        passport.LEFT_OUT: np.asarray(without, np.int64)[:, None],
        passport.OTHER_PEOPLE: [group for group in groups if len({*labels[group].tolist()} - {-1}) > 1],
        passport.DUPLICATES: groups,
        passport.ONE_IMAGE: rows(alone),
        passport.SMALL: rows((least > 0) & (least < SIDE)),
        passport.NOT_SQUARE: rows(least != most),
        passport.GREYS: rows(about.grey),
        passport.TURNED: rows(about.turned),
    }
    found = {title: groups for title, groups in found.items() if len(groups)}
    told = StoredRows(source, image, about)
    summary = {
        "rows": source.count,
        "images": len(row_of),
        **(passport.of_people(images[images > 0], int((images == 0).sum())) if len(people) else {}),
        **({"shorter_side_px": passport.spread(np.sort(least[least > 0]))} if least.any() else {}),
        "left_out": {UNREADABLE: len(without)} if len(without) else {},
        "found": passport.counted(found),
    }
    order = np.lexsort((people, images - came))[:LISTED]
    of_people = [(told.person(int(people[i])), int(came[i]), int(images[i])) for i in order.tolist()]
    return Passport(told, found, summary, row_of, of_people, "rows")


def write_passport(
    source: Source,
    without: Sequence[int],
    out: Path,
    *,
    workers: int = 1,
    progress: Callable[[int], object] = lambda _: None,
) -> Facts:
    """Write passport.html, left_out.csv and, if the people have names, people.csv; return the manifest's entry."""
    kept = source.without(without) if len(without) else source
    told = passport_of(source, without, out, seen(kept, out, workers=workers, progress=progress))
    title = f"{source.name}: {kept.count} images"
    write_page(out.with_name(PAGE), title, told, open_images(out))
    write_left_out(out, {name_of(row): UNREADABLE for row in without})
    if source.people:
        assert kept.labels is not None
        images = np.bincount(kept.labels[kept.labels >= 0], minlength=len(source.people))
        write_people(out, source.people, images.tolist())
    return {"passport": told.summary}
