"""images.npy: open and check it, choose the rows of a fraction, order the rows of an epoch.

Letters: N images, C classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.config import NO_ID, DataConfig
from app.data.arrays import ENCODED, IMAGE_SHAPE, open_labels, open_npy
from app.data.encoded import open_encoded
from app.data.shards import BY_NODE, Images, LocalImages, Part, Shard, file_blocks, file_rows
from app.data.sources.writer import begun
from app.errors import WrongUse

SAMPLED = 64  # images hashed to identify a data set without a manifest

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Images with their labels and row selections. `images` is memory-mapped, never copied as a whole."""

    images: Images  # [N, 112, 112, 3] RGB
    labels: NDArray[np.int32] | None  # [N]
    train_rows: Rows  # ascending
    held_out_rows: Rows  # ascending; never trained on
    dataset_id: str | None
    fraction: float
    classes: NDArray[np.int64] | None = None  # [N] targets of recipe supervised: 0 … C - 1; NO_ID: left out
    class_labels: NDArray[np.int64] | None = None  # [C] the label of each class, ascending
    blocks: tuple[int, ...] = ()  # those to train on, ascending, numbered by `block_rows` of the N rows
    block_rows: int = 1
    part: Part | None = None  # which shard the file holds; None: it holds all N images
    shard: Shard | None = None  # what this machine reads; None: all training images

    @property
    def own_rows(self) -> Rows:
        """The training images that this machine reads, ascending."""
        return self.train_rows if self.shard is None else self.shard.own(self.train_rows)


def open_configured(config: DataConfig) -> Dataset:
    """Open the configured data set and choose the rows of its fraction. Raises WrongUse."""
    if config.binary_cache_path is None:
        raise WrongUse("data.binary_cache_path is not set; give the path of an images.npy, such as data/orl/images.npy")
    data = open_dataset(
        Path(config.binary_cache_path),
        labels_path=Path(config.labels_path) if config.labels_path else None,
        fraction=config.data_fraction,
        block_rows=config.block_size,
    )
    if data.part is not None and config.shards != BY_NODE:
        raise WrongUse(
            f"{config.binary_cache_path} holds shard {data.part.number} of {data.part.of} of its data set; "
            "give data.shards=by_node, or the whole file"
        )
    return data


def open_dataset(path: Path, *, labels_path: Path | None, fraction: float, block_rows: int) -> Dataset:
    """Open images.npy with labels.npy and manifest.json beside it, or a .rec, and choose the rows of `fraction`.

    Raises WrongUse with the file and its expected content if they do not match.
    """
    images: Images = open_images(path)
    manifest = read_manifest(path, len(images))
    held_out, block_rows = manifest.get("held_out_rows", 0), manifest.get("block_rows", block_rows)
    part, selection = None, manifest.get("selection")
    if shard := manifest.get("shard"):
        part, selection = Part(shard["number"], shard["of"]), selection or {"fraction": 1.0}
        blocks_there = file_blocks(shard["rows"], held_out, block_rows, part.number, part.of)
        images = LocalImages(images, blocks_there, block_rows, shard["rows"])
    # Labels of a .rec are in it; a labels.npy beside it may belong to prepared images.
    if labels_path is None and path.suffix != ".rec" and path.with_name("labels.npy").exists():
        labels_path = path.with_name("labels.npy")
    labels = getattr(images, "labels", None) if labels_path is None else open_labels(labels_path, len(images))
    train_count = len(images) - held_out
    if train_count < 2:
        raise WrongUse(f"{path} has {train_count} rows to train on; give a file with at least 2 more than held out")
    if selection is None:
        blocks = choose_blocks(train_count, block_rows, fraction)
    elif selection["fraction"] == fraction:
        blocks = [*range(-(-train_count // block_rows))]  # the file holds only the selected blocks
    else:
        raise WrongUse(
            f"{path} holds the fraction {selection['fraction']:g} of its data set, not {fraction:g}; "
            f"give data.data_fraction={selection['fraction']:g}, or the whole file"
        )
    return Dataset(
        images=images,
        labels=labels,
        train_rows=rows_of_blocks(blocks, block_rows, train_count),
        held_out_rows=np.arange(train_count, len(images)),
        dataset_id=(selection or {}).get("of", manifest.get("dataset_id")),
        fraction=fraction,
        blocks=tuple(blocks),
        block_rows=block_rows,
        part=part,
    )


def identity(data: Dataset) -> dict[str, Any]:
    """Identify the data in a checkpoint: name, number of training images, shards, digests of classes and labels.

    A data set without a manifest is named by a hash of some images. A partly staged data set keeps its name.
    """
    classes = labels = None
    if data.classes is not None and data.class_labels is not None:
        classes = digest(data.class_labels)
        labels = digest(data.class_labels[data.classes[data.train_rows]])
    name = data.dataset_id or f"without manifest {fingerprint(data.images)}"
    shards = 1 if data.shard is None else data.shard.of
    return {"data": name, "rows": len(data.train_rows), "shards": shards, "classes": classes, "labels": labels}


def fingerprint(images: Images) -> str:
    """Hash the number of images [N, 112, 112, 3] and up to `SAMPLED` evenly spaced ones."""
    rows = np.unique(np.linspace(0, len(images) - 1, SAMPLED).round().astype(np.int64))
    return digest(np.append(images[rows].reshape(-1), np.frombuffer(str(len(images)).encode(), np.uint8)))


def digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def id_of(blocks: Sequence[str]) -> str:
    """Return the id of a data set from the hashes of the pixels of its blocks."""
    return hashlib.sha256("".join(blocks).encode()).hexdigest()[:16]


def with_classes(data: Dataset, config: DataConfig) -> Dataset:
    """Number the training labels 0 … C - 1 and drop training images without a label.

    `labels` stays as it is, for evaluation on held-out images. Raises WrongUse without labels or with fewer than 2
    classes.
    """
    source = config.train_labels_path
    labels = data.labels if source is None else open_labels(Path(source), len(data.images))
    if labels is None:
        raise WrongUse(
            f"there is no labels.npy beside {config.binary_cache_path}, and a margin head needs labels; "
            "give data.train_labels_path=FILE.npy"
        )
    labels = np.asarray(labels)
    rows = data.train_rows[labels[data.train_rows] >= 0]
    values, numbers = np.unique(labels[rows], return_inverse=True)
    if len(values) < 2:
        raise WrongUse(
            f"{source or 'labels.npy'} gives the {len(data.train_rows)} training images {len(values)} classes; "
            "a margin head needs at least 2"
        )
    classes = np.full(len(data.images), NO_ID, np.int64)
    classes[rows] = numbers
    return replace(data, train_rows=rows, classes=classes, class_labels=values.astype(np.int64))


def open_images(path: Path) -> Images:
    """Map images.npy, images.jpegs or a .rec read-only. Raises WrongUse if its type, shape or order is wrong."""
    if path.suffix in ENCODED:
        return open_encoded(path)
    array = open_npy(path, "`invoke prepare` makes one, or give data.binary_cache_path=PATH")
    wanted = "it must be uint8 of shape [N, 112, 112, 3], as `invoke prepare --source folder --path DIR` makes it"
    if array.dtype != np.uint8:
        raise WrongUse(f"{path} is {array.dtype}; {wanted}")
    if array.ndim != 4 or array.shape[1:] != IMAGE_SHAPE:
        raise WrongUse(f"{path} has the shape {list(array.shape)}; {wanted}")
    if len(array) == 0:
        raise WrongUse(f"{path} has no rows; {wanted}, with N at least 1")
    if not array.flags["C_CONTIGUOUS"]:
        raise WrongUse(f"{path} is in Fortran order; {wanted}, in C order (numpy.ascontiguousarray)")
    return array


def read_manifest(path: Path, count: int) -> dict[str, Any]:
    """Read the manifest beside images.npy; {} if there is none. Raises WrongUse if it does not match the images."""
    file = path.with_name("manifest.json")
    if path.suffix == ".rec":  # beside a .rec it is of another file
        return {}
    if not file.is_file():
        if begun(path):  # its held-out images and labels are not written yet
            raise WrongUse(f"{path} is not complete, `prepare` was interrupted; run the same `prepare` again")
        return {}
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        selection = manifest.get("selection") or {"fraction": 1}
        rows, block_rows, held_out = manifest["rows"], manifest.get("block_rows", 1), manifest.get("held_out_rows", 0)
        fits = all(type(each) is int for each in (rows, block_rows, held_out))
        fits = fits and 0 <= held_out <= rows and block_rows >= 1 and 0 < float(selection["fraction"]) <= 1
        fits = fits and _shard_fits(manifest.get("shard"), rows, held_out, block_rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WrongUse(f"{file} is not an image manifest; run `invoke prepare` again, or remove it") from error
    if not fits:
        raise WrongUse(f"{file} has numbers that are out of range; run `invoke prepare` again, or remove it")
    if (manifest.get("format") == "encoded") != (path.suffix == ENCODED[0]):
        raise WrongUse(f"{file} is not of {path.name} but of another file; move one of them to another folder")
    if rows != count:
        raise WrongUse(f"{file} lists {manifest['rows']} rows, {path.name} has {count}; run `invoke prepare` again")
    return manifest


def choose_blocks(train_rows: int, block_rows: int, fraction: float) -> list[int]:
    """Choose the blocks for `fraction` of the training rows; return them in ascending order.

    Blocks are sorted by a hash of their number, and a fraction takes the first ones. So a larger fraction contains
    every smaller one. deploy/workspace/dataset.py applies the same rule on the laptop, and tests/test_contracts.py
    checks that both agree.
    """
    count = -(-train_rows // block_rows)
    order = sorted(range(count), key=lambda block: hashlib.sha256(f"sniperface:{block}".encode()).hexdigest())
    return sorted(order[: max(1, int(fraction * count + 0.5))])


def rows_of_blocks(blocks: list[int], block_rows: int, train_rows: int) -> Rows:
    return np.concatenate([np.arange(b * block_rows, min((b + 1) * block_rows, train_rows)) for b in blocks])


def epoch_order(rows: Rows, *, seed: int, epoch: int, shard: int = 0) -> Rows:
    """Shuffle the rows of one epoch, of a shard if the data is divided; each occurs once.

    The order depends only on the seed, the epoch and the shard. So a resumed run visits the same images in the same
    order, even with another number of processes per machine.
    """
    return np.random.default_rng([seed, epoch, *([shard] if shard else [])]).permutation(rows)


def chances(place: int, count: int, *, seed: int, epoch: int, shard: int = 0) -> NDArray[np.float64]:
    """Draw random numbers [count, 2] in [0, 1) for the positions `place`, `place` + 1, … of an epoch's order.

    Philox is counter-based (Salmon et al. 2011), so a position gets the same numbers in every process.
    """
    counter = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([place, shard, 0, 0], np.uint64)
    )
    return np.random.Generator(counter).random((count, 4))[:, :2]  # one counter step yields four numbers


def _shard_fits(shard: dict[str, Any] | None, rows: int, held_out: int, block_rows: int) -> bool:
    """Whether the numbers of a shard describe a file of `rows` images."""
    if shard is None:
        return True
    number, of, whole = (shard[key] for key in ("number", "of", "rows"))
    fits = all(type(each) is int for each in (number, of, whole)) and 0 <= number < of and held_out <= whole
    return fits and file_rows(whole, held_out, block_rows, number, of) == rows
