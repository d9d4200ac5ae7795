"""python -m app.prepare source=… out=…/images.npy: convert faces to images.npy, labels.npy, manifest.json.

    source=orl                                  400 photographs of 40 people that come with a package
    source=folder path=DIR                      one sub-folder of photographs a person; see below
    source=pairs path=FILE.csv                  an evaluation set: lines of img1,img2,label with paths relative to the
                                                file, 1 for one person and 0 for two; or LFW's pairs.txt beside its
                                                folder of photographs; adds pairs.npy; see below
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

Photographs of source=folder and source=pairs of any size become 112 x 112 in one of three ways:

    align=auto           find the largest face near the centre and align it by its five points. Images of 112 x 112 are
                         aligned already; align=all aligns them too. align=none, the default, is for animals and other
                         subjects. [min_face=40] pixels of the photograph and [min_score_pct=90] make a face.
                         [not_found=keep] scales photographs without a face; default: leave them out.
                         [several=skip] leaves out photographs with several faces
    landmarks=FILE.csv   align by points from a file: name,x,y of left eye, right eye, nose, left and right mouth corner
    fit=crop|squash|pad  scale the middle square (the default), the whole with other proportions, or with black bars

All but orl and synthetic get passport.html with everything suspect in pictures, left_out.csv and, where people have
names, people.csv; with align= also landmarks.csv, which landmarks= reads. `json=true` prints one JSON document.
`out=DIR/images.jpegs` writes image files instead of pixels, with offsets.npy: a JPEG, WebP or PNG of 112 x 112 as it
came, all others as WebP without loss. Training decodes them to the same pixels. Smaller than images.npy: JPEG files of
quality 95 about 5 times, WebP without loss about 2 times in colour and 3 times in grey.
`workers=N` processes convert the images (default: one per core); their number does not change the result.
Memory stays bounded: images are written piece by piece. The same command continues an interrupted or killed call.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.data.array_source import array
from app.data.arrays import ARRAYS, ENCODED, IMAGE_SHAPE, open_npy
from app.data.dataset import id_of, open_images, read_manifest
from app.data.faces.examine import examine
from app.data.faces.placing import ALIGN, NOT_FOUND, SEVERAL, UNREADABLE, Placing, placed
from app.data.faces.stored_images import write_passport
from app.data.faces.told import Facts, Told, document, none_left, summary
from app.data.options import failed, parse_options
from app.data.progress import Bar, listen
from app.data.sources import encoded_writer, writer
from app.data.sources import source as sources
from app.data.sources.photograph import FITS
from app.data.sources.recordio import rec
from app.data.sources.worker_pool import cores
from app.data.synthetic.source import synthetic
from app.errors import EXIT_FAILED, EXIT_WRONG_USE, WrongUse, as_typed
from app.files import atomic, make_folder, one_at_a_time, write_json
from app.output import say

PLACED = ("align", "fit", "landmarks", "min_face", "min_score_pct", "not_found", "several")
OPTIONS: dict[str, tuple[str, ...]] = {
    "orl": (),
    "folder": ("path", *PLACED),
    "pairs": ("path", *PLACED),
    "array": ("path", "labels"),
    "parquet": ("path", "image_column", "label_column", "split"),
    "rec": ("path", "decoder"),
    "synthetic": ("identities", "per_identity", "seed", "variation_pct"),
}
EXAMINED = ("array", "parquet", "rec")  # as photographs are; the others come with this project
EVERYWHERE = ("source", "out", "held_out", "unreadable", "workers", "json")
CHOICES: dict[str, Collection[str]] = {
    "unreadable": ("refuse", "skip"),
    "json": ("true", "false"),
    "align": ALIGN,
    "fit": FITS,
    "not_found": NOT_FOUND,
    "several": SEVERAL,
}
MAX_BLOCK_ROWS = 8192
BLOCKS_WANTED = 100  # so that --fraction 0.01 means something
EXIT_INTERRUPTED = 130
FEW_ROWS = 4096  # converted in less time than other processes take to start
FEW_SEARCHES = 64  # the same, of photographs whose faces are searched
Write = Callable[[Path], Facts]  # writes the passport beside the images, and returns what it adds to the manifest


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & {*argv}:
        say((__doc__ or "").strip())
        return 0
    listen()
    try:
        options = parse(argv)
        out = Path(options["out"]).absolute()
        source = choose(options)
        placing = how_to_place(options, source)
        source = placing.of(source)
        # Each process with DALI takes GPU memory, and one process is enough.
        few = FEW_SEARCHES if placing.look.for_faces else FEW_ROWS
        alone = source.count <= few or options.get("decoder") == "dali"
        workers = number(options, "workers", 1 if alone else cores(), least=1)
        there = whole(source, out, held_out=options.get("held_out"))
        if there is None:
            for sentence in source.left_out:
                print(sentence, file=sys.stderr)
            photographs = partial(make_photographs, placing=placing) if source.files else make
            manifest = photographs(source, out, options, workers)
    except writer.Unreadable as error:
        return failed(error.listed(out), EXIT_WRONG_USE, argv)
    except WrongUse as error:
        return failed(str(error), EXIT_WRONG_USE, argv)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = f"{out.parent} has no room left; free some space, then" if full else f"{error};"
        return failed(f"{why} run the same command to continue", EXIT_FAILED, argv)
    except KeyboardInterrupt:
        return failed("interrupted; run the same command to continue", EXIT_INTERRUPTED, argv)
    if options.get("json") == "true":
        say(json.dumps(document(out, there or manifest)))
    elif there is not None:
        say(f"{out} already exists")
    else:
        say(f"{out}: {manifest['rows']} images, data set {manifest['dataset_id']}")
        say("".join(f"{as_typed(line)}\n" for line in summary(manifest, placing, out)), end="")
    return 0


def make(source: sources.Source, out: Path, options: dict[str, str], workers: int) -> dict[str, Any]:
    """Convert, and write the passport of images that are examined."""

    def passport(bad: Mapping[int, str]) -> Write | None:
        def write(out: Path) -> Facts:
            # DALI's one process leaves the other cores free.
            several = cores() if options.get("decoder") == "dali" and source.count > FEW_ROWS else workers
            with Bar(total=source.count - len(bad), what="images examined") as bar:
                return write_passport(source, sorted(bad), out, workers=several, progress=bar.update)

        return write if options["source"] in EXAMINED else None

    return convert(source, out, options, workers, passport, {}, ())


def make_photographs(
    source: sources.Source, out: Path, options: dict[str, str], workers: int, placing: Placing
) -> dict[str, Any]:
    """Examine all photographs, convert those that become images, and write the passport.

    Raises Unreadable for images that cannot be read, unless they are skipped, and WrongUse if none is left.
    """
    make_folder(out.parent, "out", of=out)
    notes = out.with_name(f".{out.name}.faces.part")
    with one_at_a_time(notes), Bar(total=source.count, what="photographs examined") as bar:
        examined = examine(source.files, placing.look, notes, workers=workers, progress=bar.update)
        if not placing.look.for_faces:
            notes.unlink()  # a second look at sizes is cheap
    unread = {row: each.bad for row, each in enumerate(examined) if each.bad}
    if unread and options.get("unreadable") != "skip":
        raise writer.Unreadable([writer.BadImage(row, sentence) for row, sentence in unread.items()])
    points = placing.points(source, examined)
    not_placed = placing.left_out(points, examined)

    def passport(bad: Mapping[int, str]) -> Write:
        left = {**not_placed, **dict.fromkeys(bad, UNREADABLE)}
        if len(left) == source.count:
            raise WrongUse(none_left(source, placing, left))
        if source.pairs is not None:
            source.pairs.without(left)  # raises WrongUse before the work
        return Told(source, examined, points, left, placing).write

    everything = placed(source, points, placing.fit)
    manifest = convert(everything, out, options, workers, passport, unread, not_placed)
    notes.unlink(missing_ok=True)
    return manifest


def convert(
    source: sources.Source,
    out: Path,
    options: dict[str, str],
    workers: int,
    passport: Callable[[Mapping[int, str]], Write | None],
    bad: Mapping[int, str],
    left: Collection[int],
) -> dict[str, Any]:
    """Convert with a progress bar. With unreadable=skip, convert again without the images that could not be read.

    `bad`: row -> why it could not be read, as known before; `left`: other rows that are left out. `passport` gets all
    unreadable rows.
    """
    while True:
        rows, write = sorted({*left, *bad}), passport(bad)
        rest = source.without(rows) if rows else source
        try:
            with Bar(total=rest.count) as bar:
                return prepare(
                    rest,
                    out,
                    held_out=options.get("held_out"),
                    workers=workers,
                    progress=bar.update,
                    skipped=[writer.BadImage(row, bad[row]) for row in sorted(bad)],
                    skipped_rows=rows,
                    passport=write,
                )
        except writer.Unreadable as error:
            if options.get("unreadable") != "skip" or len(error.bad) == rest.count:
                raise
            kept = np.delete(np.arange(source.count), rows)
            bad = {**bad, **{int(kept[image.row]): image.sentence for image in error.bad}}
            count = len(error.bad)
            print(f"{count} images left out, listed in the manifest; preparing again without them", file=sys.stderr)


def parse(argv: list[str]) -> dict[str, str]:
    """Parse key=value words. Raises WrongUse, with a key that fits, for a key that is unknown or of another source."""
    known = {*EVERYWHERE, *(key for keys in OPTIONS.values() for key in keys)}
    options = parse_options(argv, known, "prepare", "source")
    for key, known_values in CHOICES.items():
        if options.get(key) not in (None, *known_values):
            raise WrongUse(f"{key}={options[key]} is not known; give {key}={'|'.join(known_values)}, or leave it out")
    source = options.get("source", "")
    if source not in OPTIONS:
        hint = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(source, OPTIONS, n=1))
        raise WrongUse(f"source={source} is not known; {hint}choose from {', '.join(OPTIONS)}")
    if Path(options.get("out", "")).suffix not in (".npy", ENCODED[0]):
        raise WrongUse(
            f"out={options.get('out', '')} must end in .npy or {ENCODED[0]}, such as out=data/faces/images.npy or "
            f"out=data/faces/images{ENCODED[0]}"
        )
    for key in options:
        if key not in (*EVERYWHERE, *OPTIONS[source]):
            takes = ", ".join(f"{key}=" for key in (*OPTIONS[source], *EVERYWHERE[1:]))
            raise WrongUse(f"{key}= is not an option of source={source}; it takes {takes}")
    if "path" in OPTIONS[source] and not options.get("path"):
        example = "pairs.csv" if source == "pairs" else "data/photos"
        raise WrongUse(f"source={source} needs path=…, such as path={example}")
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
    if kind == "pairs":
        return sources.photographs_of_pairs(path)
    if kind == "rec":
        return rec(path, options.get("decoder", "cpu"))
    if kind == "parquet":
        # pyarrow loads slowly, and workers of other sources would load it too
        from app.data.sources.parquet import parquet

        return parquet(path, options.get("image_column"), options.get("label_column"), options.get("split"))
    return array(path, Path(options["labels"]) if "labels" in options else None)


def how_to_place(options: dict[str, str], source: sources.Source) -> Placing:
    """The options about faces. Raises WrongUse for one that has no effect."""
    align = options.get("align", "none")
    if align == "none":
        searching = ("min_face", "min_score_pct", "several", *(() if "landmarks" in options else ("not_found",)))
        idle = [key for key in searching if key in options]
        if idle:
            raise WrongUse(f"{idle[0]}= has no effect without a search for faces; add align=auto, or leave it out")
    else:
        # onnxruntime loads slowly, and sources without a search would load it too
        from app.data.faces.networks import need_weights

        need_weights()
    placing = Placing(
        align=align,
        fit=options.get("fit", Placing.fit),
        min_face=number(options, "min_face", Placing.min_face, least=12),
        min_score_pct=number(options, "min_score_pct", Placing.min_score_pct, least=70, most=100),
        not_found=options.get("not_found", Placing.not_found),
        several=options.get("several", Placing.several),
    )
    return placing.with_landmarks(Path(options["landmarks"]), source) if "landmarks" in options else placing


def number(options: dict[str, str], key: str, default: int, *, least: int = 0, most: int = 2**31 - 1) -> int:
    """Read a whole number from the options. Raises WrongUse if it is none, or out of bounds."""
    told = options.get(key)
    if told is None:
        return default
    # int() raises for very long numbers; those are too large anyway.
    if not (told.isascii() and told.isdigit() and len(told) < 20 and least <= int(told) <= most):
        raise WrongUse(f"{key}={told} must be a whole number from {least} to {most}, such as {key}={default}")
    return int(told)


def whole(source: sources.Source, out: Path, *, held_out: str | None = None) -> dict[str, Any] | None:
    """The manifest of an earlier call that finished: written last, it matches the file and the request.

    Other data at `out` is never overwritten. Raises WrongUse for it.
    """
    other = _of_another_set(out)
    if other is not None:
        raise WrongUse(f"{other} is there, with its own manifest.json and labels.npy; give out= in another folder")
    if not out.is_file():
        return None
    manifest = out.with_name("manifest.json")
    if not manifest.is_file():
        if writer.begun(out):
            return None
        raise WrongUse(f"{out} already exists and is not from prepare; give another out=…, or move it away")
    there = read_manifest(out, len(open_images(out)))
    source = source.without(there["skipped_rows"]) if there.get("skipped_rows") else source
    block_rows, held_out_rows = layout(source, held_out)
    asked = {"rows": source.count, "block_rows": block_rows, "held_out_rows": held_out_rows, "made_of": source.made_of}
    for key, value in asked.items():
        if there.get(key, value) != value:
            what = "other or older images" if key == "made_of" else f"{key}={there[key]} instead of {value}"
            raise WrongUse(f"{out} already exists, with {what}; give another out=…, or move it away")
    return there


def _of_another_set(out: Path) -> Path | None:
    """Images in the folder of `out`, under another name, whose manifest and labels it would replace."""
    other = next(out.with_name(name) for name in ARRAYS if Path(name).suffix != out.suffix)
    if other.is_file():
        return other
    has_manifest = out.with_name("manifest.json").is_file()
    arrays = sorted(out.parent.glob("*.npy")) if has_manifest else []
    return next((file for file in arrays if file.name != out.name and _holds_images(file)), None)


def _holds_images(file: Path) -> bool:
    try:
        return open_npy(file, "").shape[1:] == IMAGE_SHAPE
    except WrongUse:  # another kind of file, or a damaged one
        return False


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
    skipped_rows: Sequence[int] = (),
    passport: Write | None = None,
) -> dict[str, Any]:
    """Write `source` to `out`, with labels and manifest beside it; returns the manifest.

    `progress` is called with the number of images done since its last call. `skipped` lists the unreadable images,
    which `source` no longer contains; `skipped_rows` all rows that it lacks, others that are left out too. `passport`
    is called with `out` when the images are complete, and adds to the manifest. Raises WrongUse if a data set is there.
    """
    block_rows, held_out_rows = layout(source, held_out)
    make_folder(out.parent, "out", of=out)
    manifest_file = out.with_name("manifest.json")
    with one_at_a_time(manifest_file):
        if manifest_file.is_file() and (out.is_file() or _of_another_set(out)):
            raise WrongUse(f"another process has finished a data set in {out.parent} meanwhile; run this command again")
        if out.suffix == ENCODED[0]:
            made = encoded_writer.write_encoded(source, out, block_rows, workers=workers, progress=progress)
            blocks, pixels = [each.sha256 for each in made], [each.pixels_sha256 for each in made]
        else:
            blocks = pixels = writer.write_images(source, out, block_rows, workers=workers, progress=progress)
        labels_sha256 = None
        if source.labels is not None:
            with atomic(out.with_name("labels.npy")) as file:
                np.save(file, source.labels)
            labels_sha256 = hashlib.sha256(out.with_name("labels.npy").read_bytes()).hexdigest()
        manifest = {
            "dataset_id": id_of(pixels),
            "name": source.name,
            "rows": source.count,
            **({"format": "encoded"} if out.suffix == ENCODED[0] else {}),
            "dtype": "uint8",
            "shape": [source.count, *IMAGE_SHAPE],
            "block_rows": block_rows,
            "blocks": blocks,
            "held_out_rows": held_out_rows,
            "labels_sha256": labels_sha256,
            "selection": None,
            "made_of": source.made_of,
            "left_out": [*source.left_out, *(image.sentence for image in skipped)],
            "skipped_rows": [*skipped_rows],
            **({} if passport is None else passport(out)),
        }
        write_json(manifest_file, manifest)
        writer.finish(out)
        encoded_writer.finish(out)
        return manifest


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
