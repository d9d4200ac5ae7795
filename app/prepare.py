"""python -m app.prepare source=… out=…/images.npy: convert faces to images.npy, labels.npy, manifest.json.

    source=orl                                  400 photographs of 40 people that come with a package
    source=folder path=DIR                      one sub-folder of images a person
    source=array path=FILE.npy [labels=FILE]    an array that exists already
    source=parquet path=FILE_OR_DIR             DigiFace and its like: a column of image files, one of identities
                                                [image_column=NAME] [label_column=NAME] [split=train]
    source=rec path=FILE.rec_OR_DIR             train.rec of insightface, or what im2rec wrote; train.idx and property
                                                are compared where they lie beside it [decoder=cpu|dali]
    source=synthetic identities=N per_identity=N [seed=N] [variation_pct=N]    procedural faces

`held_out=N` reserves the last N images for evaluation, or a few more to fill a block. Default: the last 10 people of
ORL, the last tenth of the synthetic people; 0 for folders, arrays, parquet and rec. Files of insightface are sorted by
person, so the last images are the last people; a list that im2rec shuffled is not sorted.
`unreadable=skip` leaves out images that cannot be read and lists them in the manifest. Default: list all of them and
stop; the readable images are kept, so the next call converts only the missing ones.
`workers=N` processes convert the images (default: one per core); their number does not change the result.
Memory stays bounded: images are written piece by piece. The same command continues an interrupted or killed call.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from app.data.dataset import IMAGE_SHAPE, open_images, read_manifest
from app.data.sources import source as sources
from app.data.sources import writer
from app.data.sources.recordio import rec
from app.data.synthetic.source import synthetic
from app.errors import EXIT_WRONG_USE, WrongUse, framed
from app.files import atomic, make_folder, one_at_a_time, write_json

OPTIONS: dict[str, tuple[str, ...]] = {
    "orl": (),
    "folder": ("path",),
    "array": ("path", "labels"),
    "parquet": ("path", "image_column", "label_column", "split"),
    "rec": ("path", "decoder"),
    "synthetic": ("identities", "per_identity", "seed", "variation_pct"),
}
EVERYWHERE = ("source", "out", "held_out", "unreadable", "workers")
MAX_BLOCK_ROWS = 8192
BLOCKS_WANTED = 100  # so that --fraction 0.01 means something
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
FEW_ROWS = 4096  # converted in less time than other processes take to start
SHOWN = 20  # unreadable images listed on the terminal
PLAIN_S = 5.0  # between progress lines without a terminal


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & {*argv}:
        print((__doc__ or "").strip())
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        options = parse(argv)
        out = Path(options["out"]).absolute()
        source = choose(options)
        # Each process with DALI takes GPU memory, and one process is enough.
        alone = source.count <= FEW_ROWS or options.get("decoder") == "dali"
        workers = number(options, "workers", 1 if alone else cores(), least=1)
        if whole(source, out, held_out=options.get("held_out")):
            print(f"{out} already exists")
            return 0
        for sentence in source.left_out:
            print(sentence, file=sys.stderr)
        manifest = make(source, out, options, workers)
    except writer.Unreadable as error:
        print(framed(told(error.bad, out)), file=sys.stderr)
        return EXIT_WRONG_USE
    except WrongUse as error:
        print(framed(str(error)), file=sys.stderr)
        return EXIT_WRONG_USE
    except OSError as error:
        print(framed(f"{error}; run the same command to continue"), file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted; run the same command to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"{out}: {manifest['rows']} images, data set {manifest['dataset_id']}")
    return 0


def make(source: sources.Source, out: Path, options: dict[str, str], workers: int) -> dict[str, Any]:
    """Convert with a progress bar. With unreadable=skip, convert again without the images that could not be read."""
    held_out = options.get("held_out")
    try:
        with Bar(total=source.count) as bar:
            return prepare(source, out, held_out=held_out, workers=workers, progress=bar.update)
    except writer.Unreadable as error:
        if options.get("unreadable") != "skip" or len(error.bad) == source.count:
            raise
        print(
            f"{len(error.bad)} images left out, listed in the manifest; preparing again without them", file=sys.stderr
        )
        rest = source.without([image.row for image in error.bad])
        with Bar(total=rest.count) as bar:
            return prepare(rest, out, held_out=held_out, workers=workers, progress=bar.update, skipped=error.bad)


def told(bad: Sequence[writer.BadImage], out: Path) -> str:
    """Message about the unreadable images: the first SHOWN; with more than SHOWN, the path of a file with all."""
    if len(bad) == 1:
        return f"{bad[0].sentence}, or leave it out with unreadable=skip"
    lines = [image.sentence for image in bad[:SHOWN]]
    if len(bad) > SHOWN:
        listing = out.with_name("unreadable.txt")
        with atomic(listing) as file:
            file.write("".join(f"{image.sentence}\n" for image in bad).encode())
        lines.append(f"and {len(bad) - SHOWN} more; {listing} lists all of them")
    return "\n".join([*lines, f"{len(bad)} images cannot be read; leave them out with unreadable=skip"])


def parse(argv: list[str]) -> dict[str, str]:
    """Parse key=value words. Raises WrongUse, with a key that fits, for a key that is unknown or of another source."""
    options = {}
    known = sorted({*EVERYWHERE, *(key for keys in OPTIONS.values() for key in keys)})
    for word in argv:
        key, equals, value = word.partition("=")
        if key not in known or not equals:
            near = difflib.get_close_matches(key, known, n=1) or ["source"]
            raise WrongUse(f"{word!r} is not an option of prepare; did you mean {near[0]}=…?")
        if key in options:
            raise WrongUse(f"{key}= is given twice; give it once")
        options[key] = value
    if options.get("unreadable", "refuse") not in ("refuse", "skip"):
        raise WrongUse(f"unreadable={options['unreadable']} is not known; give unreadable=skip, or leave it out")
    source = options.get("source", "")
    if source not in OPTIONS:
        hint = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(source, OPTIONS, n=1))
        raise WrongUse(f"source={source} is not known; {hint}choose from {', '.join(OPTIONS)}")
    if Path(options.get("out", "")).suffix != ".npy":
        raise WrongUse(f"out={options.get('out', '')} must end in .npy, such as out=data/faces/images.npy")
    for key in options:
        if key not in (*EVERYWHERE, *OPTIONS[source]):
            takes = ", ".join(f"{key}=" for key in (*OPTIONS[source], *EVERYWHERE[1:]))
            raise WrongUse(f"{key}= is not an option of source={source}; it takes {takes}")
    if "path" in OPTIONS[source] and not options.get("path"):
        raise WrongUse(f"source={source} needs path=…, such as path=data/photos")
    return options


def choose(options: dict[str, str]) -> sources.Source:
    kind = options["source"]
    if kind == "orl":
        return sources.orl()
    if kind == "synthetic":
        identities = number(options, "identities", 2000, least=4)
        per_identity = number(options, "per_identity", 20, least=2)
        variation_pct = number(options, "variation_pct", 100, most=100)
        return synthetic(identities, per_identity, number(options, "seed", 0), variation_pct)
    path = Path(options["path"])
    if kind == "folder":
        return sources.folder(path)
    if kind == "rec":
        return rec(path, options.get("decoder", "cpu"))
    if kind == "parquet":
        # pyarrow loads slowly, and workers of other sources would load it too
        from app.data.sources.parquet import parquet

        return parquet(path, options.get("image_column"), options.get("label_column"), options.get("split"))
    return sources.array(path, Path(options["labels"]) if "labels" in options else None)


def number(options: dict[str, str], key: str, default: int, *, least: int = 0, most: int = 2**31 - 1) -> int:
    told = options.get(key)
    if told is None:
        return default
    # int() raises for very long numbers; those are too large anyway.
    if not (told.isascii() and told.isdigit() and len(told) < 20 and least <= int(told) <= most):
        raise WrongUse(f"{key}={told} must be a whole number from {least} to {most}, such as {key}={default}")
    return int(told)


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer if this process may use only some cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def whole(source: sources.Source, out: Path, *, held_out: str | None = None) -> bool:
    """Whether an earlier call finished: the manifest, written last, exists and matches the file and the request.

    Other data at `out` is never overwritten. Raises WrongUse for it.
    """
    if not out.is_file():
        return False
    manifest = out.with_name("manifest.json")
    if not manifest.is_file():
        if writer.begun(out):
            return False
        raise WrongUse(f"{out} already exists and is not from prepare; give another out=…, or move it away")
    there = read_manifest(out, len(open_images(out)))
    source = source.without(there["skipped_rows"]) if there.get("skipped_rows") else source
    block_rows, held_out_rows = layout(source, held_out)
    asked = {"rows": source.count, "block_rows": block_rows, "held_out_rows": held_out_rows, "made_of": source.made_of}
    for key, value in asked.items():
        if there.get(key, value) != value:
            what = "other or older images" if key == "made_of" else f"{key}={there[key]} instead of {value}"
            raise WrongUse(f"{out} already exists, with {what}; give another out=…, or move it away")
    return True


def layout(source: sources.Source, held_out: str | None) -> tuple[int, int]:
    """Rows per block, and rows held out. Raises WrongUse."""
    if held_out is not None and not (held_out.isdigit() and int(held_out) <= source.count - 2):
        raise WrongUse(f"held_out={held_out} must be a number from 0 to {source.count - 2}, such as 0")
    block_rows = source.block_rows or max(1, min(MAX_BLOCK_ROWS, source.count // BLOCKS_WANTED))
    held_out_rows = source.held_out if held_out is None else int(held_out)
    if held_out_rows:
        # Whole blocks, so that a fraction of the training images never includes a held-out image.
        held_out_rows = min(held_out_rows + (source.count - held_out_rows) % block_rows, source.count)
    return block_rows, held_out_rows


def prepare(
    source: sources.Source,
    out: Path,
    *,
    held_out: str | None = None,
    workers: int = 1,
    progress: Callable[[int], Any] = lambda _: None,
    skipped: Sequence[writer.BadImage] = (),
) -> dict[str, Any]:
    """Write `source` to `out`, with labels and manifest beside it; returns the manifest.

    `progress` is called with the number of images done since its last call. `skipped` lists the unreadable images,
    which `source` no longer contains.
    """
    block_rows, held_out_rows = layout(source, held_out)
    make_folder(out.parent, "out", of=out)
    with one_at_a_time(out):
        blocks = writer.write_images(source, out, block_rows, workers=workers, progress=progress)
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
            "made_of": source.made_of,
            "left_out": [*source.left_out, *(image.sentence for image in skipped)],
            "skipped_rows": [image.row for image in skipped],  # rows of the unfiltered source
        }
        write_json(out.with_name("manifest.json"), manifest)
        writer.finish(out)
        return manifest


class Bar(tqdm):
    """Progress in images: a bar in a terminal; elsewhere, such as in a log, a line every few seconds."""

    def __init__(self, total: int) -> None:
        self.plain = not sys.stderr.isatty()
        super().__init__(
            total=total,
            unit=" images",
            file=sys.stderr,
            mininterval=PLAIN_S if self.plain else 0.1,
            delay=PLAIN_S if self.plain else 0.5,
            bar_format="  {n_fmt} of {total_fmt} images, {rate_fmt}, {remaining} left" if self.plain else None,
            smoothing=0.1,
        )

    def close(self) -> None:
        if self.plain:
            self.disable = True  # or tqdm would print an empty line
        super().close()

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        if file.isatty():
            printer: Callable[[str], None] = tqdm.status_printer(file)
            return printer
        return lambda text: print(text, file=file, flush=True) if text.strip() else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
