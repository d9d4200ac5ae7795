"""A data set as the laptop sees it: header, manifest, blocks, fraction, and staging. No numpy here."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from deploy.errors import StepFailed, WrongUse, command
from deploy.machine import Machine
from deploy.origins import HERE, Files, Origin, Place
from deploy.packing import NONE, Packing, packed_file
from deploy.plan import TRAIN_LABELS, DataFacts, Plan, disk_folder, slug, staged_path, wanted_path
from deploy.settings import Settings
from deploy.shell import LocalShell, Shell
from deploy.transfer import Piece, send_pieces

SIDE = 112
ROW_BYTES = SIDE * SIDE * 3
GIB = 1 << 30
MEMORY_FOR_TRAINING_BYTES = 4 << 30
HEADER_BYTES = 64 << 10  # no .npy header of an array is longer
PREPARE = "prepare --source folder --path DIR"

# What `app.prepare source=orl` will make, for a plan that must touch nothing.
ORL_ROWS, ORL_HELD_OUT_ROWS, ORL_BLOCK_ROWS = 400, 100, 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Header:
    """The first bytes of a .npy file."""

    dtype: str
    fortran_order: bool
    shape: tuple[int, ...]
    data_offset: int


@dataclass(frozen=True)
class Dataset:
    """An images.npy that was checked, with what its manifest says, or the defaults where there is none.

    `labels` lie with the images, in their place; `train_labels` are a file of the laptop.
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

    @property
    def train_rows(self) -> int:
        return self.rows - self.held_out_rows

    @property
    def bytes(self) -> int:
        return self.data_offset + self.rows * ROW_BYTES


def find(origin: Origin, block_rows: int, labels: Place | None = None, train_labels: Path | None = None) -> Dataset:
    """Check an images.npy and what lies beside it. One sentence names what is wrong and what would work.

    `block_rows` is the app's block size, used where no manifest says it; `labels` are labels that lie elsewhere,
    `train_labels` what is learnt instead of them.
    """
    assert origin.files is not None, "the machine is reached before its files are looked at"
    path, files = origin.path, origin.files
    if not path.name.endswith(".npy"):
        path = path / "images.npy"
    header = _check_images(path, files)
    rows = header.shape[0]
    manifest = _read_manifest(path.with_name("manifest.json"), rows, files)
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
        data_offset=header.data_offset,
        labels=labels,
        train_labels=train_labels,
        manifest=manifest,
        where=origin.where,
        files=files,
    )


def facts(dataset: Dataset, fraction: float, packing: Packing | None = None) -> DataFacts:
    """What the plan needs to know about the part of a data set that will be used."""
    selection = dataset.manifest.get("selection")
    if selection and selection["fraction"] != fraction:
        raise WrongUse(
            f"{dataset.path} holds the fraction {selection['fraction']:g} of its data set: "
            f"give --fraction {selection['fraction']:g}, or --data with the whole file"
        )
    part = 1.0 if selection else fraction
    blocks = choose_blocks(dataset.train_rows, dataset.block_rows, part)
    rows = sum(min((b + 1) * dataset.block_rows, dataset.train_rows) - b * dataset.block_rows for b in blocks)
    return DataFacts(
        name=dataset.name,
        path=str(dataset.path),
        rows=dataset.rows,
        train_rows=rows,
        bytes=128 + (rows + dataset.held_out_rows) * ROW_BYTES,
        dataset_id=_marked(dataset.manifest.get("dataset_id"), packing),
        labels=str(dataset.labels) if dataset.labels not in (None, dataset.path.with_name("labels.npy")) else None,
        train_labels=None if dataset.train_labels is None else str(dataset.train_labels),
        where=dataset.where,
        packed=packing.kind if packing else None,
        packed_bytes=packing.bytes if packing else None,
    )


def _marked(dataset_id: str | None, packing: Packing | None) -> str | None:
    return f"{dataset_id}{packing.mark}" if dataset_id and packing else dataset_id


def packing_of(notes: Path, dataset: Dataset, fraction: float, kind: str) -> Packing | None:
    """How the blocks of a fraction are sent packed, if they are; `notes` is where the laptop keeps its own files."""
    if kind == NONE:
        return None
    blocks = _kept_blocks(dataset, fraction)
    source = f"{dataset.path} {dataset.bytes} {_modified_ns(dataset)}"  # where no manifest says which images these are
    name = dataset.manifest.get("dataset_id") or hashlib.sha256(source.encode()).hexdigest()[:16]
    pieces = dict(zip(blocks, _pieces(dataset, blocks), strict=True))
    return Packing(kind, Path(str(dataset.path)), notes / "packed" / str(name) / kind, (SIDE, SIDE, 3), pieces)


def unseen_facts(origin: Origin, train_labels: str | None) -> DataFacts:
    """Images that lie on a machine which is still to be had: nothing is known but where."""
    path = origin.path
    name = slug(path.parent.name if path.stem == "images" else path.stem)
    return DataFacts(name, str(path), 0, 0, 0, None, train_labels=train_labels, ready=False, where=origin.where)


def orl_facts(path: PurePath, fraction: float, where: str = HERE) -> DataFacts:
    """The try-out's photographs before they are prepared."""
    train_rows = ORL_ROWS - ORL_HELD_OUT_ROWS
    rows = ORL_BLOCK_ROWS * len(choose_blocks(train_rows, ORL_BLOCK_ROWS, fraction))
    size = 128 + (rows + ORL_HELD_OUT_ROWS) * ROW_BYTES
    return DataFacts("orl", str(path), ORL_ROWS, rows, size, dataset_id=None, ready=False, where=where)


def choose_blocks(train_rows: int, block_rows: int, fraction: float) -> list[int]:
    """The fraction rule: training blocks in an order fixed by their number alone; a fraction is its beginning."""
    count = -(-train_rows // block_rows)
    order = sorted(range(count), key=lambda block: hashlib.sha256(f"sniperface:{block}".encode()).hexdigest())
    return sorted(order[: max(1, math.floor(fraction * count + 0.5))])


@dataclass(frozen=True)
class Staged:
    """Where the images are read on the machine, and a sentence about how they came there."""

    path: PurePath
    words: str


def choose_place(shell: Shell, settings: Settings, root: PurePath, dataset: Dataset, fraction: float) -> Staged:
    """Where the images have room: in RAM as asked for, else on disk, said in words. Looks, and touches nothing."""
    about = facts(dataset, fraction)
    wanted = wanted_path(settings, root, about, fraction)
    if str(wanted) == about.path:
        return Staged(wanted, f"read in place from {wanted}")
    needed = _staged_bytes(dataset, _kept_blocks(dataset, fraction))
    lacking = _lacks_room(shell, wanted, needed)
    if lacking is None:
        return Staged(wanted, f"staged into {wanted}")
    if dataset.where == "machine" or (dataset.where == HERE and settings.is_local):
        return Staged(type(root)(about.path), f"{lacking}: they are read from disk instead, {about.path}")
    on_disk = staged_path(disk_folder(root, about), about, fraction)
    if _lacks_room(shell, on_disk, needed) is None and on_disk != wanted:
        return Staged(on_disk, f"{lacking}: they are kept on disk instead, {on_disk}")
    free = shell.free_bytes(wanted.parent)
    fits = math.floor(100 * fraction * free / max(1, needed)) / 100
    advice = (
        f"give --fraction {fits:g}, or a machine with more room" if 0 < fits < fraction else "give a larger machine"
    )
    raise StepFailed(f"{lacking}, and {root} has none either: {advice}")


def stage(
    shell: Shell,
    machine: Machine,
    code: PurePath,
    plan: Plan,
    dataset: Dataset,
    progress: Progress,
    packing: Packing | None = None,
) -> str | None:
    """Bring the images to where the plan reads them; returns what was done, or None when they are read in place.

    The room is reserved before the first byte, every block is checked against the manifest on the way, a copy that
    broke off goes on, and the file is there under its own name only when whole. From the laptop it is sent, perhaps
    packed; what lies on the machine, or at an address, the machine fetches by itself (`pod/files.py`).
    """
    if not plan.stage:
        return None
    destination = machine.path(plan.data_path)
    blocks = _kept_blocks(dataset, plan.fraction)
    manifest = _staged_manifest(dataset, blocks, plan.fraction, packing)
    there = _manifest_there(shell, destination)
    size = shell.size(destination)
    if dataset.train_labels is not None:  # small, and another file perhaps than that of the run before
        own = _labels_of(LocalShell(), dataset, dataset.train_labels, blocks)
        shell.write(destination.with_name(TRAIN_LABELS), own)
    if size is not None and there and _same(there, manifest) and size == _staged_bytes(dataset, blocks):
        if packing:
            shell.remove(packed_file(machine).parent)  # of a call that was cut after its last step but one
        return f"already there: {destination}"
    if size is not None and not there:
        raise WrongUse(
            f"{destination} is there, but was not staged by this project: remove it, or set another stage_to in "
            f"conf/deploy/{plan.target}.yaml"
        )
    if size is not None and plan.queue:
        raise WrongUse(
            f"{destination} holds other images, which the runs on this machine use: wait for their end, or use a "
            "target with another stage_to"
        )
    shell.remove(destination)  # another data set: it would take the room of this one
    if packing:
        _reserve(shell, dataset, blocks, destination)
        hashes = packing.send(shell, machine, code, _part(destination), progress)
    elif dataset.where == HERE and not machine.is_here:
        _reserve(shell, dataset, blocks, destination)
        pieces = _pieces(dataset, blocks)
        hashes = send_pieces(shell, Path(str(dataset.path)), _part(destination), pieces, progress)
    else:
        hashes = _copy(shell, machine, code, dataset, blocks, destination, progress)
    if dataset.labels is not None:
        labels = _labels_of(dataset.files, dataset, dataset.labels, blocks)
        shell.write(destination.with_name("labels.npy"), labels)
    else:
        shell.remove(destination.with_name("labels.npy"))
    originals = packing.hashes("original_sha256") if packing else hashes
    of = _marked(dataset.manifest.get("dataset_id") or dataset_id(originals), packing)
    of_part = dataset_id(hashes) + (f"-{manifest['packed']}" if manifest["packed"] else "")
    manifest |= {"blocks": hashes, "dataset_id": of if len(blocks) == _count(dataset) else of_part}
    if manifest["selection"]:
        manifest["selection"] = {**manifest["selection"], "of": of}
    # Before the rename: a break in between leaves a manifest without images, which is simply staged again.
    shell.write(destination.with_name("manifest.json"), (json.dumps(manifest, indent=1) + "\n").encode())
    shell.replace(_part(destination), destination)
    if packing:
        shell.remove(packed_file(machine).parent)
    sent = f", sent {packing.words}" if packing else ""
    return f"staged {_staged_bytes(dataset, blocks) / GIB:.2f} GiB into {destination}{sent}"


def dataset_id(blocks: list[str]) -> str:
    return hashlib.sha256("".join(blocks).encode()).hexdigest()[:16]


def read_header(path: Place, files: Files | None = None) -> Header:
    """The header of a .npy file; ValueError when it is none."""
    reader: Files = files or LocalShell()
    start = reader.read(path, 0, HEADER_BYTES)
    if start[:6] != b"\x93NUMPY":
        raise ValueError("no .npy file")
    length_bytes = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(start[8 : 8 + length_bytes], "little")
    text = start[8 + length_bytes : 8 + length_bytes + length]
    if len(text) < length:
        raise ValueError("cut short")
    try:
        values = ast.literal_eval(text.decode("latin-1"))
        return Header(values["descr"], values["fortran_order"], tuple(values["shape"]), 8 + length_bytes + length)
    except (SyntaxError, KeyError, TypeError) as error:
        raise ValueError("no .npy header") from error


def header_bytes(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A .npy header (format 1.0), padded to a multiple of 64 bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin-1")


def _check_images(path: Place, files: Files) -> Header:
    wanted = f"it must be uint8 of shape [N, 112, 112, 3]; `{command(PREPARE)}` makes one"
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
        raise WrongUse(f"{path} is in Fortran order: save numpy.ascontiguousarray of it again")
    whole = header.data_offset + header.shape[0] * ROW_BYTES
    if size < whole:
        raise WrongUse(
            f"{path} is cut short: {size} of {whole} bytes are there; copy or make it again (`{command(PREPARE)}`)"
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
            f"{path} is not a whole .npy file ({error}): copy or make it again (`{command(PREPARE)}`)"
        ) from error


def _spoken(dtype: str) -> str:
    kinds = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
    kind, size = dtype[-2:-1], dtype[-1:]
    return f"{kinds[kind]}{8 * int(size)}" if kind in kinds and size.isdigit() else f"dtype {dtype}"


def _read_manifest(path: Place, rows: int, files: Files) -> dict[str, Any]:
    try:
        text = files.read(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        manifest: dict[str, Any] = json.loads(text)
        told = int(manifest["rows"])
        block_rows, held_out = int(manifest["block_rows"]), int(manifest["held_out_rows"])
        fits = len(manifest["blocks"]) == -(-told // block_rows) and 0 <= held_out < told
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise WrongUse(f"{path} cannot be used: remove it, or make the data again (`{command(PREPARE)}`)") from error
    if told != rows or not fits:
        raise WrongUse(f"{path} does not fit the images ({told} rows told, {rows} there): make the data again")
    return manifest


def _kept_blocks(dataset: Dataset, fraction: float) -> list[int]:
    """The blocks of a staged file: the chosen training blocks, and every block with held-out rows."""
    if dataset.manifest.get("selection") or fraction == 1:
        return list(range(_count(dataset)))
    held_out = range(dataset.train_rows // dataset.block_rows, -(-dataset.rows // dataset.block_rows))
    chosen = choose_blocks(dataset.train_rows, dataset.block_rows, fraction)
    return sorted({*chosen, *(held_out if dataset.held_out_rows else [])})


def _count(dataset: Dataset) -> int:
    return -(-dataset.rows // dataset.block_rows)


def _rows_of(dataset: Dataset, block: int) -> int:
    return min((block + 1) * dataset.block_rows, dataset.rows) - block * dataset.block_rows


def _staged_bytes(dataset: Dataset, blocks: list[int]) -> int:
    return len(_staged_header(dataset, blocks)) + sum(_rows_of(dataset, b) for b in blocks) * ROW_BYTES


def _staged_header(dataset: Dataset, blocks: list[int]) -> bytes:
    return header_bytes("|u1", (sum(_rows_of(dataset, block) for block in blocks), SIDE, SIDE, 3))


def _staged_manifest(
    dataset: Dataset, blocks: list[int], fraction: float, packing: Packing | None = None
) -> dict[str, Any]:
    """The staged file's own manifest; `source` tells a changed file apart where there is no manifest to compare.

    What was sent lossy has blocks of its own, and says so for good, also where a copy of it is staged again.
    """
    rows = sum(_rows_of(dataset, block) for block in blocks)
    known: list[str] = dataset.manifest.get("blocks", [])
    own = packing.hashes("unpacked_sha256") if packing else []
    selection = dataset.manifest.get("selection")
    if selection is None and fraction < 1:
        selection = {"of": dataset.manifest.get("dataset_id"), "fraction": fraction, "blocks": blocks}
    return {
        "dataset_id": None,
        "name": dataset.name,
        "rows": rows,
        "dtype": "uint8",
        "shape": [rows, SIDE, SIDE, 3],
        "block_rows": dataset.block_rows,
        "blocks": own or ([known[block] for block in blocks] if known else []),
        "packed": packing.kind if packing and packing.mark else dataset.manifest.get("packed"),
        "held_out_rows": dataset.held_out_rows,
        "labels_sha256": None,
        "selection": selection,
        "source": {"path": str(dataset.path), "bytes": dataset.bytes, "modified_ns": _modified_ns(dataset)},
    }


def _modified_ns(dataset: Dataset) -> int | None:
    """Of a file on this laptop; what changes elsewhere without a manifest is told apart by its size alone."""
    return Path(str(dataset.path)).stat().st_mtime_ns if dataset.where == HERE else None


def _manifest_there(shell: Shell, destination: PurePath) -> dict[str, Any]:
    try:
        value = json.loads(shell.read(destination.with_name("manifest.json")))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and "source" in value else {}


def _same(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the staged file holds what is wanted: by block hashes where they are known, else by its source."""
    keys = ("rows", "block_rows", "held_out_rows", "blocks" if wanted["blocks"] else "source")
    return all(there.get(key) == wanted[key] for key in (*keys, "packed"))


def _part(destination: PurePath) -> PurePath:
    return destination.with_name(destination.name + ".part")


def _lacks_room(shell: Shell, destination: PurePath, needed: int) -> str | None:
    """Why `needed` bytes would not fit at `destination`, or None. What an earlier copy left there is room already.

    Files in RAM count against the machine's memory, and training needs some, too.
    """
    folder = destination.parent
    own = (shell.size(_part(destination)) or 0) + (shell.size(destination) or 0)
    free = shell.free_bytes(folder) + own
    if needed > free:
        return f"{folder} has {free / GIB:.2f} GiB free and the images need {needed / GIB:.2f} GiB"
    limit = shell.hardware().memory_bytes if shell.in_ram(folder) else None
    if limit is not None:
        left = limit - shell.memory_used_bytes() + own - min(MEMORY_FOR_TRAINING_BYTES, limit // 4)
        if needed > left:
            return f"{left / GIB:.2f} GiB of memory can be spared and the images need {needed / GIB:.2f} GiB of it"
    return None


def _pieces(dataset: Dataset, blocks: list[int]) -> list[Piece]:
    """The blocks, one behind the other after the header of the staged file."""
    known: list[str | None] = dataset.manifest.get("blocks") or [None] * (max(blocks) + 1)
    pieces, place = [], len(_staged_header(dataset, blocks))
    for block in blocks:
        pieces.append(
            Piece(
                name=f"block {block} (rows {block * dataset.block_rows} and on)",
                offset=dataset.data_offset + block * dataset.block_rows * ROW_BYTES,
                bytes=_rows_of(dataset, block) * ROW_BYTES,
                place=place,
                sha256=known[block],
            )
        )
        place += pieces[-1].bytes
    return pieces


def _reserve(shell: Shell, dataset: Dataset, blocks: list[int], destination: PurePath) -> None:
    """Room for all of it on another machine, before the first byte."""
    part = _part(destination)
    try:
        shell.truncate(part, _staged_bytes(dataset, blocks))
        shell.write_at(part, 0, _staged_header(dataset, blocks))
    except OSError as error:
        raise StepFailed(
            f"{destination.parent} has no room for {_staged_bytes(dataset, blocks) / GIB:.2f} GiB: {error.strerror}"
        ) from error


def _copy(
    shell: Shell,
    machine: Machine,
    code: PurePath,
    dataset: Dataset,
    blocks: list[int],
    destination: PurePath,
    progress: Progress,
) -> list[str]:
    """Run the copy on the machine; returns the SHA-256 of each block as it was copied."""
    order = machine.root / "staging.json"
    header = base64.b64encode(_staged_header(dataset, blocks)).decode("ascii")
    pieces = [asdict(piece) for piece in _pieces(dataset, blocks)]
    value = {"source": str(dataset.path), "part": str(_part(destination)), "header": header, "pieces": pieces}
    shell.write(order, json.dumps(value).encode("utf-8"), private=True)  # an address may carry a signature
    hashes: list[str] = []
    for line in shell.stream([machine.python, "-m", "deploy.pod.files", str(order)], cwd=code, again=True):
        if line.startswith("{"):
            said = json.loads(line)
            progress(said["done_bytes"], said["all_bytes"])
            hashes = said.get("sha256", hashes)
    return hashes


def _labels_of(files: Files, dataset: Dataset, labels: Place, blocks: list[int]) -> bytes:
    """A file of labels for the staged rows alone."""
    header = read_header(labels, files)
    width = int(header.dtype[-1])
    block_bytes = dataset.block_rows * width
    rows = [
        files.read(labels, header.data_offset + block * block_bytes, _rows_of(dataset, block) * width)
        for block in blocks
    ]
    return header_bytes(header.dtype, (sum(_rows_of(dataset, b) for b in blocks),)) + b"".join(rows)
