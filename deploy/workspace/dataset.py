"""A data set as read by the laptop: header, manifest, blocks, fraction. Without numpy."""

from __future__ import annotations

import array
import hashlib
import math
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, WrongUse, command, quoted
from deploy.shell import LocalShell
from deploy.shell.base import CHUNK_BYTES
from deploy.shell.ranges import Piece
from deploy.specs.facts import DataFacts
from deploy.specs.names import slug
from deploy.specs.shards import WHOLE, Shard
from deploy.workspace import encoded
from deploy.workspace.compression import NONE, Packing
from deploy.workspace.npy import HEADER_BYTES, Header, header_bytes, read_header
from deploy.workspace.sources import HERE, Files, Origin, Place

NAME = "images.npy"
REC_SUFFIX, REC = ".rec", "train.rec"  # of insightface
SIDE = 112
ROW_BYTES = SIDE * SIDE * 3
GIB = 1 << 30
INTEGERS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}  # array typecodes
PREPARE = "prepare --source folder --path DIR"

# What `app.prepare source=orl` makes, for a plan that must change nothing.
ORL_ROWS, ORL_HELD_OUT_ROWS, ORL_BLOCK_ROWS = 400, 100, 10


@dataclass(frozen=True)
class Dataset:
    """A checked images.npy or images.jpegs, with the values of its manifest, or defaults if there is none.

    `labels` are at the same origin as the images; `train_labels` is a file on the laptop.
    """

    path: Place
    name: str
    rows: int
    held_out_rows: int
    block_rows: int
    data_offset: int
    labels: Place | None
    train_labels: Path | None
    manifest: dict[str, Any]
    where: str
    files: Files
    offsets: encoded.Offsets | None = None  # of image files; None: pixels

    @property
    def train_rows(self) -> int:
        return self.rows - self.held_out_rows

    @property
    def mark(self) -> str:
        """What identifies the images: their id or, without a manifest, a mark of their path, size and time."""
        if self.manifest.get("dataset_id"):
            return str(self.manifest["dataset_id"])
        return hashlib.sha256(f"{self.path} {self.size} {self.modified_ns}".encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        return self.place_of(self.rows)

    @property
    def modified_ns(self) -> int | None:
        """A local file's modification time. None elsewhere: without a manifest, only the size shows a change."""
        return Path(str(self.path)).stat().st_mtime_ns if self.where == HERE else None

    @property
    def block_count(self) -> int:
        return -(-self.rows // self.block_rows)

    def place_of(self, row: int) -> int:
        """The byte at which a row begins; for the number of rows, the byte at which the last one ends."""
        return self.data_offset + (row * ROW_BYTES if self.offsets is None else self.offsets[row])

    def rows_of(self, block: int) -> range:
        return range(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))

    def bytes_of(self, block: int) -> int:
        rows = self.rows_of(block)
        return self.place_of(rows.stop) - self.place_of(rows.start)

    def count_rows(self, blocks: list[int]) -> int:
        return sum(len(self.rows_of(block)) for block in blocks)

    def chosen_blocks(self, fraction: float) -> list[int]:
        """Return the training blocks of a fraction; all of them if the file holds only chosen ones."""
        part = 1.0 if self.manifest.get("selection") else fraction
        return choose_blocks(self.train_rows, self.block_rows, part)

    def kept_blocks(self, fraction: float) -> list[int]:
        """Return the blocks of a staged file: the chosen training blocks, and every block with held-out rows."""
        if self.manifest.get("selection") or fraction == 1:
            return list(range(self.block_count))
        held_out = range(self.train_rows // self.block_rows, self.block_count)
        return sorted({*self.chosen_blocks(fraction), *(held_out if self.held_out_rows else [])})

    def staged_header(self, blocks: list[int]) -> bytes:
        if self.offsets is not None:
            return b""
        return header_bytes("|u1", (self.count_rows(blocks), SIDE, SIDE, 3))

    def staged_bytes(self, blocks: list[int]) -> int:
        """Return the size of a staged file with these blocks."""
        return len(self.staged_header(blocks)) + sum(map(self.bytes_of, blocks))

    def pieces(self, blocks: list[int]) -> list[Piece]:
        """Return the blocks as pieces, one after the other behind the header of the staged file."""
        known: list[str | None] = self.manifest.get("blocks") or [None] * (max(blocks) + 1)
        pieces, place = [], len(self.staged_header(blocks))
        for block in blocks:
            pieces.append(
                Piece(
                    name=f"block {block} (rows {block * self.block_rows} onwards)",
                    offset=self.place_of(self.rows_of(block).start),
                    bytes=self.bytes_of(block),
                    place=place,
                    sha256=known[block],
                )
            )
            place += pieces[-1].bytes
        return pieces


def find(origin: Origin, block_rows: int, labels: Place | None = None, train_labels: Path | None = None) -> Dataset:
    """Check an images.npy or images.jpegs, its manifest and its labels. Raises WrongUse with the fault and the fix.

    `block_rows`: the app's block size, used if no manifest has one. `labels`: labels that are not beside the images.
    `train_labels`: labels to learn instead of them.
    """
    assert origin.files is not None, "the machine is reached before its files are looked at"
    path, files = origin.path, origin.files
    path, offsets = _file_of(path, files), None
    files = files.ahead(_beginnings(path, labels))
    if path.name.endswith(encoded.SUFFIX):
        offsets = encoded.read_offsets(path, files)
        rows, data_offset = len(offsets) - 1, 0
    else:
        header = _check_images(path, files)
        rows, data_offset = header.shape[0], header.data_offset
    manifest = _read_manifest(path.with_name("manifest.json"), rows, files, encodes=offsets is not None)
    if not manifest and files.size(unfinished(path)) is not None:
        raise WrongUse(f"{path} is not complete, `prepare` was interrupted: run the same `prepare` again")
    if manifest.get("shard"):
        raise WrongUse(f"{path} holds one shard of its data set: give --data the whole file")
    if labels is None and files.size(path.with_name("labels.npy")) is not None:
        labels = path.with_name("labels.npy")
    if labels is not None:
        _check_labels(labels, rows, "data.labels_path", files)
    if train_labels is not None:
        _check_labels(train_labels, rows, "data.train_labels_path", LocalShell())
    return Dataset(
        path=path,
        name=slug(str(manifest.get("name") or (path.parent.name if path.stem == "images" else path.stem))),
        rows=rows,
        held_out_rows=int(manifest.get("held_out_rows", 0)),
        block_rows=int(manifest.get("block_rows", block_rows)),
        data_offset=data_offset,
        labels=labels,
        train_labels=train_labels,
        manifest=manifest,
        where=origin.where,
        files=origin.files,
        offsets=offsets,
    )


def facts(
    dataset: Dataset,
    fraction: float,
    packing: Packing | None = None,
    shard: Shard = WHOLE,
    blocks: list[int] | None = None,
) -> DataFacts:
    """Return the facts for the plan about the used part of a data set. Raises WrongUse if it holds another fraction.

    `blocks`: those in the staged file of `shard`; None: all of the fraction.
    """
    refuse_other_fraction(dataset, fraction)
    chosen = dataset.chosen_blocks(fraction)
    rows = sum(min((b + 1) * dataset.block_rows, dataset.train_rows) - b * dataset.block_rows for b in chosen)
    return DataFacts(
        name=dataset.name,
        path=str(dataset.path),
        rows=dataset.rows,
        train_rows=rows,
        bytes=dataset.staged_bytes(dataset.kept_blocks(fraction) if blocks is None else blocks),
        dataset_id=marked(dataset.manifest.get("dataset_id"), packing),
        labels=str(dataset.labels) if dataset.labels not in (None, dataset.path.with_name("labels.npy")) else None,
        train_labels=None if dataset.train_labels is None else str(dataset.train_labels),
        where=dataset.where,
        packed=packing.kind if packing else None,
        packed_bytes=packing.bytes if packing else None,
        file_name=NAME if dataset.offsets is None else encoded.NAME,
        staged_as=f"{dataset.name}-{marked(dataset.mark, packing)}",
        shard=shard,
        whole_rows=0 if dataset.manifest.get("selection") else dataset.train_rows,
        block_rows=dataset.block_rows,
    )


def refuse_other_fraction(dataset: Dataset, fraction: float) -> None:
    """Raise WrongUse for a file that holds another fraction of its data set."""
    selection = dataset.manifest.get("selection")
    if selection and selection["fraction"] != fraction:
        raise WrongUse(
            f"{dataset.path} holds the fraction {selection['fraction']:g} of its data set: "
            f"give --fraction {selection['fraction']:g}, or --data with the whole file"
        )


def count_classes(dataset: Dataset, fraction: float) -> int | None:
    """Count the distinct labels from 0 on in the training images of a fraction; None if they are not on this laptop."""
    path = dataset.train_labels or (dataset.labels if dataset.where == HERE else None)
    if path is None:
        return None
    header = _read_npy(path, LocalShell())
    values = array.array(INTEGERS[header.dtype[-2:]])
    values.frombytes(LocalShell().read(Path(str(path)), header.data_offset, dataset.train_rows * values.itemsize))
    if header.dtype[0] in "<>" and (header.dtype[0] == "<") != (sys.byteorder == "little"):
        values.byteswap()
    found: set[int] = set()
    for block in dataset.chosen_blocks(fraction):
        found.update(values[block * dataset.block_rows : (block + 1) * dataset.block_rows])
    return sum(label >= 0 for label in found)


def known_id(notes: Path, dataset: Dataset, fraction: float, kind: str) -> str | None:
    """Return the data set id that the job will record for these images, packed as `kind`; None if only it knows.

    A file without a manifest has no id here. A part of a data set gets another id when it is staged.
    """
    if dataset.manifest.get("selection") or not dataset.manifest.get("dataset_id"):
        return None
    return marked(dataset.manifest["dataset_id"], packing_of(notes, dataset, fraction, kind))


def marked(dataset_id: str | None, packing: Packing | None) -> str | None:
    return f"{dataset_id}{packing.mark}" if dataset_id and packing else dataset_id


def packing_of(
    notes: Path, dataset: Dataset, fraction: float, kind: str, blocks: list[int] | None = None
) -> Packing | None:
    """Return the packing of the blocks of a fraction, or of `blocks` of it; None if not packed.

    `notes`: the laptop's own folder.
    """
    if kind == NONE:
        return None
    blocks = dataset.kept_blocks(fraction) if blocks is None else blocks
    pieces = dict(zip(blocks, dataset.pieces(blocks), strict=True))
    return Packing(kind, Path(str(dataset.path)), notes / "packed" / dataset.mark / kind, (SIDE, SIDE, 3), pieces)


def unseen_facts(origin: Origin, train_labels: str | None) -> DataFacts:
    """Return facts about images on a machine that is not provisioned yet: only their location is known."""
    path = origin.path
    name = slug(path.parent.name if path.stem == "images" else path.stem)
    return DataFacts(name, str(path), 0, 0, 0, None, train_labels=train_labels, ready=False, where=origin.where)


def orl_facts(path: PurePath, fraction: float, where: str = HERE) -> DataFacts:
    """Return facts about the try-out's photographs before they are prepared."""
    train_rows = ORL_ROWS - ORL_HELD_OUT_ROWS
    rows = ORL_BLOCK_ROWS * len(choose_blocks(train_rows, ORL_BLOCK_ROWS, fraction))
    size = 128 + (rows + ORL_HELD_OUT_ROWS) * ROW_BYTES
    known = DataFacts("orl", str(path), ORL_ROWS, rows, size, dataset_id=None, ready=False, where=where)
    return replace(known, whole_rows=train_rows, block_rows=ORL_BLOCK_ROWS)


def choose_blocks(train_rows: int, block_rows: int, fraction: float) -> list[int]:
    """Choose the training blocks of a fraction: the first ones in an order that depends only on the block number."""
    count = -(-train_rows // block_rows)
    order = sorted(range(count), key=lambda block: hashlib.sha256(f"sniperface:{block}".encode()).hexdigest())
    return sorted(order[: max(1, math.floor(fraction * count + 0.5))])


def dataset_id(blocks: list[str]) -> str:
    return hashlib.sha256("".join(blocks).encode()).hexdigest()[:16]


def _beginnings(path: Place, labels: Place | None) -> dict[Place, int]:
    """Return the files that `find` reads, with the number of bytes that it reads first."""
    images = path.with_name(encoded.OFFSETS) if path.name.endswith(encoded.SUFFIX) else path
    headers = {images: HEADER_BYTES, labels or path.with_name("labels.npy"): HEADER_BYTES}
    return {path: 0, **headers, path.with_name("manifest.json"): CHUNK_BYTES}


def _file_of(path: Place, files: Files) -> Place:
    """Return the file of images that --data means: itself, or the one in the folder."""
    if path.name.endswith((".npy", encoded.SUFFIX)):
        return path
    if path.name.endswith(REC_SUFFIX):
        raise WrongUse(f"{path} is not sent as it is: convert it once with `{_conversion(path)}`")
    if isinstance(path, Path) and path.is_file():
        raise WrongUse(f"--data {path} is no file of images: give an images.npy or its folder, such as data/orl")
    there = next((name for name in (NAME, encoded.NAME, REC) if files.size(path / name) is not None), NAME)
    return _file_of(path / there, files)


def unfinished(images: Place) -> Place:
    """Return the file that `prepare` keeps beside images until their manifest is written."""
    return images.with_name(f".{images.name}.blocks.part")


def _conversion(rec: Place) -> str:
    """Return the command that makes image files of a .rec where it is. The folder of a train.rec names the data set."""
    at = rec.parent if rec.name == REC else rec
    if isinstance(rec, Path):
        return command(f"prepare --source rec --path {quoted(at)} --encoded")
    if isinstance(rec, PurePath):
        return command(f"prepare --on TARGET --source rec --path {shlex.quote(str(at))} --encoded")
    return command("prepare --source rec --path DIR --encoded")  # wherever it is downloaded to


def _check_images(path: Place, files: Files) -> Header:
    wanted = f"it must be uint8 of shape [N, 112, 112, 3]; `{command(PREPARE)}` creates one"
    size = files.size(path)
    if size is None:
        raise WrongUse(f"there is no file {path}: give --data an images.npy ({wanted})")
    header = _read_npy(path, files)
    if header.dtype not in ("|u1", "<u1", ">u1", "u1"):
        raise WrongUse(f"{path} holds {_spoken(header.dtype)}: {wanted}")
    if len(header.shape) != 4 or header.shape[1:] != (SIDE, SIDE, 3):
        raise WrongUse(f"{path} has the shape {list(header.shape)}: {wanted}")
    if header.shape[0] == 0:
        raise WrongUse(f"{path} has no rows: {wanted}, with N at least 2")
    if header.fortran_order:
        raise WrongUse(f"{path} is in Fortran order: save it again with numpy.ascontiguousarray")
    whole = header.data_offset + header.shape[0] * ROW_BYTES
    if size < whole:
        raise WrongUse(
            f"{path} is truncated: it has {size} of {whole} bytes; copy or make it again (`{command(PREPARE)}`)"
        )
    return header


def _check_labels(path: Place, rows: int, key: str, files: Files) -> None:
    if files.size(path) is None:
        raise WrongUse(f"there is no file {path}: give {key} an int32 .npy of {rows} labels, or leave it out")
    header = _read_npy(path, files)
    if len(header.shape) != 1 or header.dtype[-2:-1] not in ("i", "u"):
        raise WrongUse(f"{path} holds {_spoken(header.dtype)} of shape {list(header.shape)}: it must be int32 [{rows}]")
    if header.shape[0] != rows:
        raise WrongUse(f"{path} has {header.shape[0]} labels for {rows} images: it must have {rows}, or be removed")


def _read_npy(path: Place, files: Files) -> Header:
    try:
        return read_header(path, files)
    except (ValueError, OSError) as error:
        raise WrongUse(
            f"{path} is not a complete .npy file ({error}): copy or make it again (`{command(PREPARE)}`)"
        ) from error


def _spoken(dtype: str) -> str:
    kinds = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
    kind, size = dtype[-2:-1], dtype[-1:]
    return f"{kinds[kind]}{8 * int(size)}" if kind in kinds and size.isdecimal() else f"dtype {dtype}"


def _read_manifest(path: Place, rows: int, files: Files, *, encodes: bool) -> dict[str, Any]:
    try:
        text = files.read(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        manifest = border.document(text, "the manifest", CHUNK_BYTES)
        told, block_rows, held_out = (
            border.whole(manifest[key], key) for key in ("rows", "block_rows", "held_out_rows")
        )
        fits = len(manifest["blocks"]) == -(-told // block_rows) and 0 <= held_out < told
        fits = fits and all(isinstance(each, str) for each in manifest["blocks"])
        fits = fits and 0 < float((manifest.get("selection") or {"fraction": 1})["fraction"]) <= 1
        if manifest.get("dataset_id") is not None:  # it names a folder of this computer
            border.identifier(manifest["dataset_id"], "dataset_id")
    except (BadAnswer, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise WrongUse(f"{path} cannot be used: remove it, or make the data again (`{command(PREPARE)}`)") from error
    of_other = (manifest.get("format") == "encoded") != encodes
    if told != rows or not fits or of_other:
        raise WrongUse(f"{path} does not match the images (lists {told} rows, they have {rows}): make the data again")
    return manifest
