"""Data sets as insightface publishes them: train.rec, with train.idx and property beside it where they are there.

RecordIO (dmlc-core): a record is the words MAGIC and part << 29 | length, the bytes, and zeros up to a multiple of 4.
Bytes that hold MAGIC at a multiple of 4 are cut there into parts 1, 2, …, 2, 3, and that MAGIC is left out; a record of
one piece is part 0. An image record (mxnet) is the number F of labels that follow (0: none), one label, two ids,
24 bytes in all; then F labels (float32), then the image file.

Two dialects: im2rec writes images only. insightface also writes, anywhere in the file, records without an image: a
header with [images + 1, end], and one [first, last + 1] for each person. One rule reads both: what has no image is left
out, and the number that the header tells is compared. Images are taken in the order of the file, index or not.

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

from app.data.dataset import IMAGE_SHAPE
from app.data.sources import decode
from app.data.sources.source import UNREADABLE, Source, decode_face, fingerprint
from app.errors import WrongUse

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
WHOLE, FIRST, MIDDLE, LAST = range(4)  # which part of its record a piece is
LENGTH_BITS = 29
HEAD_BYTES = 8  # of a piece
FIXED_BYTES = 24  # of an image record, before its labels
EXACT_CLASSES = 2**24  # float32 tells every whole number below from its neighbours
CHUNK = 1 << 20  # records looked at together
DECODERS = ("cpu", "dali")


def rec(path: Path, decoder: str = "cpu") -> Source:
    """The images of a .rec file, or of train.rec in a folder, with the class numbers that it holds (-1: none).

    All records are looked at before the first image is made, so a file that was cut short is refused at once. Files of
    insightface hold the images of one person after another, im2rec's those of its list.

    Raises WrongUse with the file and the byte where it is damaged, or for an index or a property file of another one.
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
            f"{index} names {len(starts)} records and leaves others out, the first at byte {gap} of {file.name}; "
            "remove it to read all",
        )
    )
    labels, pictured = records.heads(starts)
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
    )


def decode_records(file: Path, starts: Sequence[int]) -> NDArray[np.uint8]:
    """The images of the records that begin at those bytes, [n, 112, 112, 3] RGB."""
    records = Records(file)
    images = np.empty((len(starts), *IMAGE_SHAPE), np.uint8)
    for place, start in enumerate(starts):
        images[place] = _face(file, start, records.image(start))
    return images


def decode_with_dali(file: Path, starts: Sequence[int]) -> NDArray[np.uint8]:
    """The same on a GPU; images of another size are resampled as everywhere else."""
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
        raise WrongUse(f"the record at byte {start} of {file} holds no readable image; copy the file again") from error


class Records:
    """The records of one file, mapped: only what is asked for is read. Every refusal (WrongUse) names the byte."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        if not self.size:
            self._breaks_off()  # and nothing cannot be mapped
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.words = np.frombuffer(self.data, "<u4", count=self.size // 4)

    def scan(self) -> NDArray[np.int64]:
        """Where the records begin [R], found by going through all of them."""
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
        """Where the records begin that an index names [R], ascending; each is looked at."""
        starts = np.sort(_offsets(index))
        if not len(starts):
            raise WrongUse(f"{index} names no record of {self.path.name}; copy both again")
        last = self.size - HEAD_BYTES  # where a record can begin
        if starts[-1] > last:
            self._refuse_index(index, int(starts[-1]))
        for chunk in np.split(starts, range(CHUNK, len(starts), CHUNK)):
            begins = (chunk % 4 == 0) & (self.words[chunk // 4] == MAGIC)
            begins &= self.words[chunk // 4 + 1] >> LENGTH_BITS <= FIRST
            if not begins.all():
                self._refuse_index(index, int(chunk[~begins][0]))
            # Behind a record comes another, or the end: this finds a damaged length, too.
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
        """The first byte of a record that is none of these; None where they are all. Each begins where one ends."""
        ends = starts + HEAD_BYTES + _padded(self._lengths(starts // 4))
        split = self.words[starts // 4 + 1] >> LENGTH_BITS == FIRST
        ends[split] = [self._end(start) for start in starts[split].tolist()]  # few
        ends = np.append(0, ends)
        gaps = np.flatnonzero(ends != np.append(starts, self.size))
        return int(ends[gaps[0]]) if len(gaps) else None

    def heads(self, starts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The label of every record [R], the first where there are several, and whether an image follows [R]."""
        labels, pictured = np.empty(len(starts), np.float32), np.empty(len(starts), bool)
        for at in range(0, len(starts), CHUNK):
            words = starts[at : at + CHUNK] // 4
            lengths = self._lengths(words)
            plain = (self.words[words + 1] >> LENGTH_BITS == WHOLE) & (lengths >= FIXED_BYTES)
            words = np.where(plain, words, 0)  # a number that does not belong to a record must not lead out of the file
            count = np.where(plain, self.words[np.where(plain, words + 2, 0)], 0).astype(np.int64)
            behind = lengths - FIXED_BYTES - 4 * count
            plain &= behind >= 0
            label_at = np.where(plain, np.where(count > 0, words + 8, words + 3), 0)
            labels[at : at + CHUNK] = self.words[label_at].view("<f4")
            pictured[at : at + CHUNK] = behind > 0
            for place in (at + np.flatnonzero(~plain)).tolist():  # few: split, or refused
                labels[place], pictured[place] = self._head(int(starts[place]))
        return labels, pictured

    def image(self, start: int) -> bytes:
        """The image file in the record that begins at that byte."""
        part, end = self._piece(start, after=WHOLE)
        if part == WHOLE:  # without a copy of the rest
            count = int(self.words[start // 4 + 2])
            return self.data[start + HEAD_BYTES + FIXED_BYTES + 4 * count : end]
        payload = self.payload(start)
        return payload[FIXED_BYTES + 4 * int.from_bytes(payload[:4], "little") :]

    def _end(self, start: int) -> int:
        """Where the record that begins there ends, with its padding."""
        part, end = self._piece(start, after=WHOLE)
        while part in (FIRST, MIDDLE):
            part, end = self._piece(_padded(end), after=part)
        return int(_padded(end))

    def payload(self, start: int) -> bytes:
        """The bytes of the record that begins there, put together again."""
        part, end = self._piece(start, after=WHOLE)
        pieces = [self.data[start + HEAD_BYTES : end]]
        while part in (FIRST, MIDDLE):
            at = _padded(end)
            part, end = self._piece(at, after=part)
            pieces.append(self.data[at + HEAD_BYTES : end])
        return MAGIC_BYTES.join(pieces)

    def _head(self, start: int) -> tuple[float, bool]:
        """Label, and whether an image follows, of a record of any kind."""
        payload = self.payload(start)
        count = int.from_bytes(payload[:4], "little")
        behind = len(payload) - FIXED_BYTES - 4 * count
        if len(payload) < FIXED_BYTES or behind < 0:
            raise WrongUse(f"the record at byte {start} of {self.path} is no image record; give a .rec file of images")
        label: float = struct.unpack_from("<f", payload, FIXED_BYTES if count else 4)[0]
        return label, behind > 0

    def _piece(self, at: int, after: int) -> tuple[int, int]:
        """The piece that begins at byte `at`, after one that was part `after`: which part it is, and where it ends."""
        if at + HEAD_BYTES > self.size:
            self._breaks_off()
        magic, word = struct.unpack_from("<II", self.data, at)
        if magic != MAGIC:
            self._no_record(at)
        part, end = word >> LENGTH_BITS, at + HEAD_BYTES + (word & (1 << LENGTH_BITS) - 1)
        wanted = (MIDDLE, LAST) if after in (FIRST, MIDDLE) else (WHOLE, FIRST)
        if part not in wanted:
            raise WrongUse(
                f"{self.path} has part {part} of a record at byte {at}, where part {wanted[0]} or {wanted[1]} belongs; "
                "it is damaged, copy it again"
            )
        if _padded(end) > self.size:
            self._breaks_off()
        return part, end

    def _lengths(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        return (self.words[words + 1] & ((1 << LENGTH_BITS) - 1)).astype(np.int64)

    def _breaks_off(self) -> NoReturn:
        raise WrongUse(f"{self.path} breaks off at byte {self.size}, within a record; copy it again")

    def _no_record(self, at: int) -> NoReturn:
        if at > self.size - HEAD_BYTES:
            self._breaks_off()
        raise WrongUse(f"{self.path} has no record at byte {at}; it is damaged or no .rec file, copy it again")

    def _refuse_index(self, index: Path, offset: int) -> NoReturn:
        raise WrongUse(
            f"{index} names byte {offset}, where no record begins in {self.path.name} ({self.size} bytes); "
            "copy both again"
        )


def _padded(end: NDArray[np.int64] | int) -> Any:
    """Pieces begin at multiples of 4."""
    return end + 3 & -4


def _offsets(index: Path) -> NDArray[np.int64]:
    """The second column of an index [R]; the keys say nothing that the records do not."""
    offsets = array("q")
    with index.open("rb") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            if len(words) != 2 or not words[1].isdigit() or len(words[1]) > 18:
                raise WrongUse(f"line {number} of {index} is not a key, a tab and a byte; copy it again, or remove it")
            offsets.append(int(words[1]))
    return np.array(offsets, np.int64)


def _compare_header(records: Records, labels: NDArray[np.float32], images: int) -> None:
    """That there are as many images as the header tells, given the labels of the records without an image.

    Of those, the header's first label is the largest: the others tell where a person begins.
    """
    if not images:
        raise WrongUse(f"{records.path} has no images from byte 0 to {records.size}; give a .rec file of images")
    # Compared as float32, as which the number was written.
    if len(labels) and labels.max() != np.float32(images + 1):
        raise WrongUse(
            f"{records.path} ends at byte {records.size} with {images} images, and its header tells of "
            f"{labels.max() - 1:.0f}; copy it and its .idx again"
        )


def _classes(file: Path, starts: NDArray[np.int64], labels: NDArray[np.float32]) -> NDArray[np.int32]:
    """Labels as class numbers [N]."""
    fits = (labels >= -1) & (labels < EXACT_CLASSES) & (labels == np.floor(labels))
    for start, label in zip(starts[~fits][:1], labels[~fits][:1], strict=True):
        why = "and float32 labels are exact only below 16777216" if label >= EXACT_CLASSES else "not a whole number"
        raise WrongUse(f"the record at byte {start} of {file} has the class {label:.10g}, {why}; number them from 0")
    return labels.astype(np.int32)


def _compare_property(file: Path, classes: NDArray[np.int32]) -> None:
    """Raises WrongUse where the file `property` speaks of other images.

    Its first line is "classes,height,width". insightface's RecBuilder adds a line with the number of images, and counts
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
        raise WrongUse(f"{told} tells of {int(words[0])} classes and {file.name} has {people}; copy both again")
    images = lines[1].strip() if len(lines) > 1 else ""
    if images.isdigit() and int(images) != len(classes):
        raise WrongUse(f"{told} tells of {int(images)} images and {file.name} has {len(classes)}; copy both again")


def framed(payload: bytes) -> bytes:
    """One record as it lies in a file."""
    cuts = [at for at in range(0, len(payload) - 3, 4) if payload[at : at + 4] == MAGIC_BYTES]
    edges = list(zip([0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)], strict=True))
    parts = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if cuts else [WHOLE]
    pieces = [
        struct.pack("<II", MAGIC, part << LENGTH_BITS | stop - start) + payload[start:stop]
        for part, (start, stop) in zip(parts, edges, strict=True)
    ]
    return b"".join(pieces) + bytes(-len(payload) % 4)


def image_record(image: bytes, labels: float | Sequence[float], key: int = 0) -> bytes:
    """An image record to be framed; several labels stand behind the fixed bytes."""
    if isinstance(labels, float | int):
        return struct.pack("<IfQQ", 0, labels, key, 0) + image
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, key, 0, *labels) + image
