"""python -m app.prepare source=… out=…/images.npy: any source of faces as images.npy, labels.npy, manifest.json.

    source=orl                                  400 photographs of 40 people that come with a package
    source=folder path=DIR                      one sub-folder of images a person
    source=array path=FILE.npy [labels=FILE]    an array that exists already

`held_out=N` keeps the last N images for measuring, or a few more to fill a block (default: what the source says; 0
for folders and arrays).
Memory stays bounded: images are written one block after the other, each hashed on the way.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from app.data import sources
from app.data.dataset import IMAGE_SHAPE, SIDE, read_manifest
from app.errors import EXIT_WRONG_USE, WrongUse
from app.files import atomic, write_json

SOURCES = ("orl", "folder", "array")
OPTIONS = ("source", "out", "path", "labels", "held_out")
MAX_BLOCK_ROWS = 8192
BLOCKS_WANTED = 100  # so that --fraction 0.01 means something


def main(argv: list[str]) -> int:
    try:
        options = parse(argv)
        out = Path(options["out"]).absolute()
        if whole(out):
            print(f"{out} is there already")
            return 0
        manifest = prepare(choose(options), out, held_out=options.get("held_out"))
    except WrongUse as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    print(f"{out}: {manifest['rows']} images, data set {manifest['dataset_id']}")
    return 0


def parse(argv: list[str]) -> dict[str, str]:
    """key=value words to a dict; an unknown key is refused with the nearest known one."""
    options = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if key not in OPTIONS or not equals:
            near = difflib.get_close_matches(key, OPTIONS, n=1) or ["source"]
            raise WrongUse(f"{word!r} is no option of prepare; did you mean {near[0]}=…?")
        options[key] = value
    if options.get("source") not in SOURCES:
        raise WrongUse(f"source={options.get('source', '')} is not known; choose from {', '.join(SOURCES)}")
    if Path(options.get("out", "")).suffix != ".npy":
        raise WrongUse(f"out={options.get('out', '')} must end in .npy, such as out=data/faces/images.npy")
    if options["source"] != "orl" and "path" not in options:
        raise WrongUse(f"source={options['source']} needs path=…, such as path=data/photos")
    return options


def choose(options: dict[str, str]) -> sources.Source:
    if options["source"] == "orl":
        return sources.orl()
    path = Path(options["path"])
    if options["source"] == "folder":
        return sources.folder(path)
    return sources.array(path, Path(options["labels"]) if "labels" in options else None)


def whole(out: Path) -> bool:
    """Whether an earlier call finished: the manifest is written last, and the file has the size it speaks of."""
    if not (out.is_file() and out.with_name("manifest.json").is_file()):
        return False
    images = np.load(out, mmap_mode="r")
    return bool(read_manifest(out, len(images)))


def prepare(source: sources.Source, out: Path, *, held_out: str | None = None) -> dict[str, Any]:
    """Write `source` to `out` and what belongs beside it; returns the manifest."""
    if held_out is not None and not (held_out.isdigit() and int(held_out) <= source.count - 2):
        raise WrongUse(f"held_out={held_out} must be a number from 0 to {source.count - 2}, such as 0")
    block_rows = source.block_rows or max(1, min(MAX_BLOCK_ROWS, source.count // BLOCKS_WANTED))
    held_out_rows = source.held_out if held_out is None else int(held_out)
    if held_out_rows:
        # Whole blocks, so that a fraction of the training images never brings a held-out one along.
        held_out_rows = min(held_out_rows + (source.count - held_out_rows) % block_rows, source.count)
    out.parent.mkdir(parents=True, exist_ok=True)
    image_bytes = SIDE * SIDE * 3
    stream = source.images()
    blocks, done = [], 0
    with atomic(out, 128 + source.count * image_bytes, f"{source.count} images") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (source.count, *IMAGE_SHAPE)}
        )
        while block := b"".join(image.tobytes() for image in islice(stream, block_rows)):
            file.write(block)
            blocks.append(hashlib.sha256(block).hexdigest())
            done += len(block) // image_bytes
            print(f"  {done} of {source.count} images", flush=True)
    labels_sha256 = None
    if source.labels is not None:
        with atomic(out.with_name("labels.npy")) as file:
            np.save(file, source.labels)
        labels_sha256 = hashlib.sha256(out.with_name("labels.npy").read_bytes()).hexdigest()
    manifest = {
        "dataset_id": hashlib.sha256("".join(blocks).encode()).hexdigest()[:16],
        "name": source.name,
        "rows": source.count,
        "dtype": "uint8",
        "shape": [source.count, *IMAGE_SHAPE],
        "block_rows": block_rows,
        "blocks": blocks,
        "held_out_rows": held_out_rows,
        "labels_sha256": labels_sha256,
        "selection": None,
    }
    write_json(out.with_name("manifest.json"), manifest)
    return manifest


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
