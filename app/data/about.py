"""Facts about a prepared data set, from its files and its manifest.

Letters: N images.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import OFFSETS, array_in, open_npy
from app.data.dataset import Dataset, Rows, digest, id_of, identity, open_dataset, open_images, read_manifest
from app.data.encoded import EncodedImages, stored_bytes
from app.data.shards import Images
from app.errors import WrongUse

PAGE, PAIRS = "passport.html", "pairs.npy"  # beside images.npy, if prepare wrote them
BLOCK_ROWS = 8192  # of images without a manifest
LISTED = 5  # data sets that a message names
PIECE_ROWS = 1024  # images decoded at once
About = dict[str, Any]


def about(path: Path, *, verify: bool = False) -> About:
    """Facts about images.npy at `path`, or in the folder `path`; `faults` lists files that are not as prepared.

    `verify` also hashes all images. Raises WrongUse for a path without a data set, and if its files do not match.
    """
    path = images_at(path)
    images = open_images(path)
    manifest = read_manifest(path, len(images))
    fraction = (manifest.get("selection") or {}).get("fraction", 1.0)
    data = open_dataset(path, labels_path=None, fraction=fraction, block_rows=BLOCK_ROWS)
    passport = manifest.get("passport") or {}
    page = path.with_name(PAGE)
    return {
        "path": str(path),
        "name": manifest.get("name", path.resolve().parent.name),
        "data": identity(data)["data"],
        "labels": None if data.labels is None else digest(data.labels),
        "images": len(images),
        "bytes": path.stat().st_size,
        **people_of(data),
        "training": part_of(data, data.train_rows),
        "held_out": part_of(data, data.held_out_rows),
        "people_in_both": len(np.intersect1d(known(data, data.train_rows), known(data, data.held_out_rows))),
        "block_rows": manifest.get("block_rows"),
        "part_of": manifest.get("selection"),
        "packed": manifest.get("packed"),
        "pairs": pairs_of(path, manifest),
        "left_out": passport.get("left_out", {}),
        "left_out_in_words": manifest.get("left_out", []),
        "suspects": {title: count for title, count in passport.get("found", {}).items() if title != "left out"},
        "examined": bool(passport),
        "page": str(page) if passport and page.is_file() else None,
        "verified": verify,
        "faults": [*labels_fault(path, manifest), *(image_faults(path, images, manifest) if verify else [])],
    }


def images_at(path: Path) -> Path:
    """The images that `path` means: images.npy, images.jpegs or a .rec, or the one in that folder.

    Raises WrongUse, with the data sets below a folder that has several.
    """
    if not path.exists():
        raise WrongUse(
            f"there is no file {path}; `invoke prepare` makes one, or give an images.npy or its folder as data=…"
        )
    if not path.is_dir():
        return path
    if file := array_in(path):
        return file
    if (path / "train.rec").is_file():
        return path / "train.rec"
    below = sorted(file.parent for file in path.glob("*/images.npy"))
    if below:
        more = f" and {len(below) - LISTED} more" if len(below) > LISTED else ""
        listed = ", ".join(map(str, below[:LISTED]))
        raise WrongUse(f"{path} has no images.npy; give data= with a data set below it: {listed}{more}")
    raise WrongUse(f"{path} has no images.npy; `invoke prepare` makes one, such as data/orl/images.npy")


def known(data: Dataset, rows: Rows) -> NDArray[np.int32]:
    """The labels of `rows` that are people; a label below 0 is none."""
    labels = np.empty(0, np.int32) if data.labels is None else data.labels[rows]
    return labels[labels >= 0]


def part_of(data: Dataset, rows: Rows) -> About:
    return {"images": len(rows), "people": None if data.labels is None else len(np.unique(known(data, rows)))}


def people_of(data: Dataset) -> About:
    """Counts of people over all images; None for each without labels."""
    if data.labels is None:
        return dict.fromkeys(("people", "images_a_person", "people_of_one_image", "images_without_label"))
    each = np.unique(data.labels[data.labels >= 0], return_counts=True)[1]
    spread = (each.min(), np.median(each), each.max()) if len(each) else (0, 0, 0)
    return {
        "people": len(each),
        "images_a_person": dict(zip(("least", "median", "most"), map(int, spread), strict=True)),
        "people_of_one_image": int((each == 1).sum()),
        "images_without_label": int((data.labels < 0).sum()),
    }


def pairs_of(path: Path, manifest: About) -> About | None:
    """The counts of pairs.npy beside the images; `left_out` is known only from the manifest.

    Raises WrongUse for another shape.
    """
    file = path.with_name(PAIRS)
    if not file.is_file():
        return None
    pairs = open_npy(file, "")
    if pairs.ndim != 2 or pairs.shape[1] != 3:
        raise WrongUse(f"{file} has the shape {list(pairs.shape)}; it must be [P, 3]")
    lost = (manifest.get("pairs") or {}).get("left_out")
    return {"count": len(pairs), "of_one_person": int((pairs[:, 2] == 1).sum()), "left_out": lost}


def labels_fault(path: Path, manifest: About) -> list[str]:
    """One sentence if labels.npy is not the file of the manifest."""
    file, wanted = path.with_name("labels.npy"), manifest.get("labels_sha256")
    if wanted is None:
        return []
    if not file.is_file():
        return [f"{file} is missing, and the data set was prepared with labels; copy it again"]
    if hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
        return [f"{file} is not what prepare wrote; copy it again, or prepare the data set again"]
    return []


def image_faults(path: Path, images: Images, manifest: About) -> list[str]:
    """One sentence if images [N, 112, 112, 3] differ from the manifest's blocks. Raises WrongUse without them."""
    wanted, rows = manifest.get("blocks"), manifest.get("block_rows")
    if not wanted or not rows:
        raise WrongUse(f"{path} has no manifest.json with hashes of its images; leave verify=true out")
    starts = range(0, len(images), rows)
    if len(starts) != len(wanted):
        return [f"the manifest of {path} lists {len(wanted)} blocks for {len(starts)}; prepare the data set again"]
    bad = [
        block
        for block, start in enumerate(starts)
        if hashlib.sha256(stored_bytes(images, start, min(start + rows, len(images)))).hexdigest() != wanted[block]
    ]
    if not bad:
        return pixel_faults(path, images, manifest) if isinstance(images, EncodedImages) else []
    first = f"rows {bad[0] * rows} to {min((bad[0] + 1) * rows, len(images)) - 1}"
    more = f" and {len(bad) - 1} more blocks" if len(bad) > 1 else ""
    return [f"{path} is not what prepare wrote: {first}{more} differ; copy it or prepare it again"]


def pixel_faults(path: Path, images: EncodedImages, manifest: About) -> list[str]:
    """One sentence if an image cannot be decoded, or if all give another data set id than in the manifest.

    The hashes of blocks leave out where an image begins within its block, and what this computer's decoders make of it.
    """
    rows, pixels = manifest["block_rows"], list[str]()
    try:
        for start in range(0, len(images), rows):
            stop = min(start + rows, len(images))
            sha256 = hashlib.sha256()
            for at in range(start, stop, PIECE_ROWS):
                sha256.update(images[at : min(at + PIECE_ROWS, stop)].data)
            pixels.append(sha256.hexdigest())
    except WrongUse as error:
        return [str(error)]
    is_part = manifest.get("selection") or manifest.get("shard")
    if is_part or id_of(pixels) == manifest.get("dataset_id"):
        return []
    return [
        f"{path} gives other pixels than prepare saw; copy it together with {OFFSETS} again, or install the Pillow and "
        "simplejpeg of constraints.txt"
    ]


def in_words(told: About) -> list[str]:
    """The facts as lines for the terminal, each a title and what is known."""
    lines = {
        told["name"]: told["path"],
        "identity": told["data"] + (f", labels {told['labels']}" if told["labels"] else ", no labels"),
        "images": f"{told['images']:,} ({told['bytes'] / 2**20:,.1f} MiB)",
    }
    if told["people"] is not None:
        spread = told["images_a_person"]
        lines["people"] = (
            f"{told['people']:,}, with {spread['least']:,} to {spread['most']:,} images each (median "
            f"{spread['median']:,}); {told['people_of_one_image']:,} of one image"
        )
        if told["images_without_label"]:
            lines["without a person"] = f"{told['images_without_label']:,} images with a label below 0"
    for title, part in (("to train on", told["training"]), ("held out", told["held_out"])):
        of = "" if part["people"] is None or not part["images"] else f" of {part['people']:,} people"
        lines[title] = f"{part['images']:,} images{of}"
    if told["people_in_both"]:
        are = "is" if told["people_in_both"] == 1 else "are"
        lines["held out"] += f"; {told['people_in_both']:,} of these people {are} trained on too"
    if told["part_of"]:
        lines["part"] = f"the fraction {told['part_of'].get('fraction', 1):g} of its data set"
    if told["packed"]:
        lines["packed"] = f"{told['packed']}, before it was sent here"
    if told["pairs"]:
        lost = f"; {told['pairs']['left_out']:,} left out with their photographs" if told["pairs"]["left_out"] else ""
        lines["pairs"] = f"{told['pairs']['count']:,}, {told['pairs']['of_one_person']:,} of one person{lost}"
    if told["left_out"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in told["left_out"].items())
        lines["left out"] = reasons
    elif told["left_out_in_words"]:
        lines["left out"] = f"{len(told['left_out_in_words']):,} entries; manifest.json lists them"
    if told["examined"]:
        suspects = ", ".join(f"{title} ({count:,})" for title, count in told["suspects"].items())
        lines["suspects"] = suspects or "none"
    else:
        lines["suspects"] = "not looked for: prepare does this for --source folder, pairs, array, parquet and rec"
    if told["page"]:
        lines["pictures"] = told["page"]
    if told["verified"] and not told["faults"]:
        lines["verified"] = "all images are what prepare wrote"
    width = max(map(len, lines))
    return [f"{title:{width}}  {text}" for title, text in lines.items()]
