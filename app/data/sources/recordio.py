"""Read data sets in insightface's format: train.rec, with optional train.idx and property files beside it.

RecordIO (dmlc-core): a record is the words MAGIC and part << 29 | length, the bytes, and zeros up to a multiple of 4.
A record with MAGIC at a multiple of 4 in its bytes is split there into parts 1, 2, …, 2, 3, without that MAGIC. A
record of one piece is part 0. An image record (mxnet) starts with 24 bytes: the number F of extra labels (0: none), one
label, two ids. F labels (float32) follow, then the image file.

Two dialects exist. im2rec writes images only. insightface also writes records without an image, anywhere in the file: a
header with [images + 1, end], and one record [first, last + 1] for each person. One rule reads both: skip records with
extra labels and no image, and compare the number of images with the header. A record with neither is im2rec's of an
empty file: an image that cannot be read. Images are read in file order, with or without an index.

Letters: R records, N images.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import IMAGE_SHAPE
from app.data.sources import decode
from app.data.sources.photograph import UNREADABLE, decode_face, why_unreadable
from app.data.sources.source import Source, fingerprint
from app.errors import WrongUse

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
WHOLE, FIRST, MIDDLE, LAST = range(4)  # the part number of a piece of a record
LENGTH_BITS = 29
HEAD_BYTES = 8  # of a piece
FIXED_BYTES = 24  # of an image record, before its extra labels
EXACT_CLASSES = 2**24  # float32 represents every whole number below exactly
CHUNK = 1 << 20  # records checked at once
NO_IMAGE = -1  # instead of the bytes of an image: the record holds extra labels only
DECODERS = ("cpu", "dali")


def rec(path: Path, decoder: str = "cpu") -> Source:
    """Open a .rec file, or train.rec in a folder, as a source with the class numbers in the file (-1: none).

    All records are checked before the first image is decoded, so a truncated file is refused at once. insightface's
    files are ordered by person, im2rec's by its list.

    Raises WrongUse with the file and the byte of the damage, or if the index or property file does not match.
    """
    if decoder not in DECODERS:
        raise WrongUse(f"decoder={decoder} is not known; choose from {', '.join(DECODERS)}")
    if decoder == "dali":
        decode.need_dali()
    file = path / "train.rec" if path.is_dir() else path
    if not file.is_file():
        raise WrongUse(f"there is no file {file}; give path=FILE.rec, or path=DIR with a train.rec")
    records = Records(file)
    index = file.with_suffix(".idx")
    starts = records.indexed(index) if index.is_file() else records.scan()
    gap = records.gap(starts)
    left_out = (
        ()
        if gap is None
        else (
            f"{index} names {len(starts)} records and omits others, the first at byte {gap} of {file.name}; "
            "remove it to read all",
        )
    )
    labels, sizes = records.heads(starts)
    pictured = sizes != NO_IMAGE
    _compare_header(records, labels[~pictured], int(pictured.sum()))
    starts = starts[pictured]
    classes = _classes(file, starts, labels[pictured])
    if file.name == "train.rec":
        _compare_property(file, classes)
    read_too = [index] if index.is_file() else []
    return Source(
        name=file.resolve().parent.name if file.name == "train.rec" else file.stem,
        count=len(starts),
        read=lambda start, stop: starts[start:stop].tolist(),
        decode=partial(decode_records if decoder == "cpu" else decode_with_dali, file),
        labels=classes,
        made_of=f"{fingerprint([file, *read_too], file.parent)} {decoder}",
        left_out=left_out,
        stored=partial(stored_in_records, file),
    )


def decode_records(file: Path, starts: Sequence[int]) -> NDArray[np.uint8]:
    """Decode the images of the records that start at those bytes, [n, 112, 112, 3] RGB."""
    records = Records(file)
    images = np.empty((len(starts), *IMAGE_SHAPE), np.uint8)
    for place, start in enumerate(starts):
        images[place] = _face(file, start, records.image(start))
    return images


def stored_in_records(file: Path, starts: Sequence[int]) -> list[bytes]:
    """The image files of the records that start at those bytes."""
    records = Records(file)
    return [records.image(start) for start in starts]


def decode_with_dali(file: Path, starts: Sequence[int]) -> NDArray[np.uint8]:
    """Like `decode_records`, on a GPU. Images of another size are decoded and resampled on the CPU."""
    records = Records(file)
    stored = [records.image(start) for start in starts]
    images = np.empty((len(starts), *IMAGE_SHAPE), np.uint8)
    for place, image in enumerate(decode.with_dali(stored)):
        images[place] = image if image.shape == IMAGE_SHAPE else _face(file, starts[place], stored[place])
    return images


def _face(file: Path, start: int, stored: bytes) -> NDArray[np.uint8]:
    try:
        return decode_face(stored)
    except UNREADABLE as error:
        why = why_unreadable(error, "holds no readable image; copy the file again")
        raise WrongUse(f"the record at byte {start} of {file} {why}") from error


class Records:
    """The records of one memory-mapped file. Errors (WrongUse) name the byte."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        if not self.size:
            self._breaks_off()  # an empty file cannot be mapped
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.words = np.frombuffer(self.data, "<u4", count=self.size // 4)

    def scan(self) -> NDArray[np.int64]:
        """Find the start of every record [R] by walking through the file."""
        starts, at, part = array("q"), 0, WHOLE
        while at < self.size:
            part, end = self._piece(at, after=part)
            if part in (WHOLE, FIRST):
                starts.append(at)
            at = _padded(end)
        if part in (FIRST, MIDDLE):
            self._breaks_off()
        return np.array(starts, np.int64)

    def indexed(self, index: Path) -> NDArray[np.int64]:
        """Read the starts of records [R] from an index and check each record; return them in ascending order.

        Raises WrongUse if it names no record, or one twice.
        """
        starts = np.sort(_offsets(index))
        if not len(starts):
            raise WrongUse(f"{index} names no record of {self.path.name}; copy both again")
        last = self.size - HEAD_BYTES  # the last place where a record can begin
        if starts[-1] > last:
            self._refuse_index(index, int(starts[-1]))
        for chunk in np.split(starts, range(CHUNK, len(starts), CHUNK)):
            begins = (chunk % 4 == 0) & (self.words[chunk // 4] == MAGIC)
            begins &= self.words[chunk // 4 + 1] >> LENGTH_BITS <= FIRST
            if not begins.all():
                self._refuse_index(index, int(chunk[~begins][0]))
            # After a record comes another one or the end of the file; this also detects a damaged length.
            ends = chunk + HEAD_BYTES + _padded(self._lengths(chunk // 4))
            followed = self.words[np.where(ends <= last, ends // 4, 0)] == MAGIC
            lost = (ends != self.size) & ((ends > last) | ~followed)
            if lost.any():
                self._no_record(int(ends[lost][0]))
            for start in chunk[self.words[chunk // 4 + 1] >> LENGTH_BITS == FIRST].tolist():  # few
                self.payload(start)
        repeated = starts[1:][starts[1:] == starts[:-1]]
        if len(repeated):
            raise WrongUse(f"{index} names byte {repeated[0]} of {self.path.name} twice; copy both again")
        return starts

    def gap(self, starts: NDArray[np.int64]) -> int | None:
        """Return the first byte that these records do not cover; None if they cover the whole file."""
        end = 0
        for at in range(0, len(starts), CHUNK):
            some = starts[at : at + CHUNK]
            ends = some + HEAD_BYTES + _padded(self._lengths(some // 4))
            split = self.words[some // 4 + 1] >> LENGTH_BITS == FIRST
            ends[split] = [self._end(start) for start in some[split].tolist()]  # few
            before = np.append(end, ends[:-1])
            gaps = np.flatnonzero(before != some)
            if len(gaps):
                return int(before[gaps[0]])
            end = int(ends[-1])
        return None if end == self.size else end

    def heads(self, starts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the first label of every record [R], and the bytes of its image [R] or NO_IMAGE."""
        labels, sizes = np.empty(len(starts), np.float32), np.empty(len(starts), np.int64)
        for at in range(0, len(starts), CHUNK):
            words = starts[at : at + CHUNK] // 4
            lengths = self._lengths(words)
            plain = (self.words[words + 1] >> LENGTH_BITS == WHOLE) & (lengths >= FIXED_BYTES)
            words = np.where(plain, words, 0)  # index 0 for all others, so that no index leaves the file
            count = np.where(plain, self.words[np.where(plain, words + 2, 0)], 0).astype(np.int64)
            behind = lengths - FIXED_BYTES - 4 * count
            plain &= behind >= 0
            label_at = np.where(plain, np.where(count > 0, words + 8, words + 3), 0)
            labels[at : at + CHUNK] = self.words[label_at].view("<f4")
            sizes[at : at + CHUNK] = np.where((behind == 0) & (count > 0), NO_IMAGE, behind)
            for place in (at + np.flatnonzero(~plain)).tolist():  # few: split records, and damaged ones to refuse
                labels[place], sizes[place] = self._head(int(starts[place]))
        return labels, sizes

    def image(self, start: int) -> bytes:
        """Return the image file in the record that starts at that byte."""
        part, end = self._piece(start, after=WHOLE)
        if part == WHOLE:  # copies only the image
            count = int(self.words[start // 4 + 2])
            return self.data[start + HEAD_BYTES + FIXED_BYTES + 4 * count : end]
        payload = self.payload(start)
        return payload[FIXED_BYTES + 4 * int.from_bytes(payload[:4], "little") :]

    def _end(self, start: int) -> int:
        """Return the end of the record that starts at that byte, padding included."""
        part, end = self._piece(start, after=WHOLE)
        while part in (FIRST, MIDDLE):
            part, end = self._piece(_padded(end), after=part)
        return int(_padded(end))

    def payload(self, start: int) -> bytes:
        """Return the joined bytes of the record that starts at that byte."""
        part, end = self._piece(start, after=WHOLE)
        pieces = [self.data[start + HEAD_BYTES : end]]
        while part in (FIRST, MIDDLE):
            at = _padded(end)
            part, end = self._piece(at, after=part)
            pieces.append(self.data[at + HEAD_BYTES : end])
        return MAGIC_BYTES.join(pieces)

    def _head(self, start: int) -> tuple[float, int]:
        """Return the label of a record, whole or split, and the bytes of its image or NO_IMAGE."""
        payload = self.payload(start)
        count = int.from_bytes(payload[:4], "little")
        behind = len(payload) - FIXED_BYTES - 4 * count
        if len(payload) < FIXED_BYTES or behind < 0:
            raise WrongUse(
                f"the record at byte {start} of {self.path} is not an image record; give a .rec file of images"
            )
        label: float = struct.unpack_from("<f", payload, FIXED_BYTES if count else 4)[0]
        return label, NO_IMAGE if count and not behind else behind

    def _piece(self, at: int, after: int) -> tuple[int, int]:
        """Read the head of the piece at byte `at`; `after` is the part before it. Return its part and end."""
        if at + HEAD_BYTES > self.size:
            self._breaks_off()
        magic, word = struct.unpack_from("<II", self.data, at)
        if magic != MAGIC:
            self._no_record(at)
        part, end = word >> LENGTH_BITS, at + HEAD_BYTES + (word & (1 << LENGTH_BITS) - 1)
        wanted = (MIDDLE, LAST) if after in (FIRST, MIDDLE) else (WHOLE, FIRST)
        if part not in wanted:
            raise WrongUse(
                f"{self.path} has part {part} of a record at byte {at}, where part {wanted[0]} or {wanted[1]} "
                "is expected; it is damaged, copy it again"
            )
        if _padded(end) > self.size:
            self._breaks_off()
        return part, end

    def _lengths(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        return (self.words[words + 1] & ((1 << LENGTH_BITS) - 1)).astype(np.int64)

    def _breaks_off(self) -> NoReturn:
        raise WrongUse(f"{self.path} ends at byte {self.size}, inside a record; copy it again")

    def _no_record(self, at: int) -> NoReturn:
        if at > self.size - HEAD_BYTES:
            self._breaks_off()
        raise WrongUse(f"{self.path} has no record at byte {at}; it is damaged or not a .rec file, copy it again")

    def _refuse_index(self, index: Path, offset: int) -> NoReturn:
        raise WrongUse(
            f"{index} names byte {offset}, where no record begins in {self.path.name} ({self.size} bytes); "
            "copy both again"
        )


def _padded(end: NDArray[np.int64] | int) -> Any:
    """Round up to a multiple of 4, where the next piece begins."""
    return end + 3 & -4


def _offsets(index: Path) -> NDArray[np.int64]:
    """Read the second column of an index [R]; the keys in the first are not needed."""
    offsets = array("q")
    with index.open("rb") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            if len(words) != 2 or not words[1].isdigit() or len(words[1]) > 18:
                raise WrongUse(f"line {number} of {index} is not a key, a tab and a byte; copy it again, or remove it")
            offsets.append(int(words[1]))
    return np.array(offsets, np.int64)


def _compare_header(records: Records, labels: NDArray[np.float32], images: int) -> None:
    """Raise WrongUse if the number of images is 0 or differs from the header's.

    `labels` are those of the records without an image. The largest is the header's; the others are starts of people.
    """
    if not images:
        raise WrongUse(f"{records.path} has no images from byte 0 to {records.size}; give a .rec file of images")
    # Compare as float32, the type in which the number was written.
    if len(labels) and labels.max() != np.float32(images + 1):
        raise WrongUse(
            f"{records.path} ends at byte {records.size} with {images} images, and its header lists "
            f"{labels.max() - 1:.0f}; copy it and its .idx again"
        )


def _classes(file: Path, starts: NDArray[np.int64], labels: NDArray[np.float32]) -> NDArray[np.int32]:
    """Convert labels to class numbers [N]. Raises WrongUse for one that is not a whole number from -1 to 2^24 - 1."""
    fits = (labels >= -1) & (labels < EXACT_CLASSES) & (labels == np.floor(labels))
    for start, label in zip(starts[~fits][:1], labels[~fits][:1], strict=True):
        large = label >= EXACT_CLASSES
        why = "and float32 labels are exact only below 16777216" if large else "not a whole number from -1 on"
        raise WrongUse(f"the record at byte {start} of {file} has the class {label:.10g}, {why}; number them from 0")
    return labels.astype(np.int32)


def _compare_property(file: Path, classes: NDArray[np.int32]) -> None:
    """Raise WrongUse if the file `property` exists and does not match the images.

    Its first line is "classes,height,width". insightface's RecBuilder adds a line with the number of images and counts
    classes as the largest label + 1; older sets count the people.
    """
    told = file.with_name("property")
    if not told.is_file():
        return
    lines = told.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    words = [word.strip() for word in lines[0].split(",")]
    if len(words) != 3 or not all(word.isdigit() for word in words):
        raise WrongUse(f"{told} is not classes,height,width, such as 85742,112,112; copy it again, or remove it")
    known = classes[classes >= 0]
    people = len(np.unique(known))
    if not people <= int(words[0]) <= max(people, int(known.max(initial=-1)) + 1):
        raise WrongUse(f"{told} lists {int(words[0])} classes and {file.name} has {people}; copy both again")
    images = lines[1].strip() if len(lines) > 1 else ""
    if images.isdigit() and int(images) != len(classes):
        raise WrongUse(f"{told} lists {int(images)} images and {file.name} has {len(classes)}; copy both again")
