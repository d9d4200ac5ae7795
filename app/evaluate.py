"""Evaluate weights: python -m app.evaluate weights="runs/*/checkpoints/*.pt" sets=lfw.bin,pairs.csv [key=value …]

    weights=PATTERN,…    checkpoints of runs, files of published weights (these need backbone=NAME), or ONNX files
    sets=PATH,…          what to measure on: .bin, .csv, LFW's pairs.txt, a folder of arrays, IJB-B or IJB-C
                         (app/evaluation/sets.py says how each looks); left out: the held-out people of each run's own
                         data set
    gallery=DIR          identification (1:N): people to find, a sub-folder of aligned images each, or what
                         `app.prepare source=folder align=auto` made of photographs. Of IJB-B and IJB-C the folder with
                         meta/, which lists galleries and probes
    probes=DIR           images to search in the gallery, made the same way; people match by the names of their folders.
                         Left out: half of the people of gallery= are enrolled with one image each, and all other
                         images are probes, by a fixed choice
    out=DIR              where the results go (default: evaluation/<time>)
    flip=false           embed each image alone, without the embedding of its mirror image
    fit=squash|pad       photographs of a list that are not square: all of the image; default: crop, its middle square.
                         squash is what testarcface.py does; `app.prepare source=pairs align=auto` finds the faces
    key=value            changes a setting, such as backbone=iresnet50 or train.eval.batch_size=64

Prints a table, best weights first, and a verdict on each set in a sentence. Writes eval.json and a plot of the curves
of each set, with those of the untrained network and of raw pixels where the run measured them. Accuracy is the
mean of ten folds, each with the threshold tuned on the other nine. Some papers publish the accuracy with a threshold
tuned on the test pairs; it is reported beside the first, under that name. Identification gives ranks 1, 5 and 10 (CMC),
and TPIR (DIR) at FPIR (FAR) 1e-3, 1e-2 and 1e-1 with thresholds, where enough probes show people outside the gallery;
app/evaluation/identification.py defines them. Under torchrun the processes share the work.
"""

from __future__ import annotations

import glob
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.config import Config, own_words
from app.errors import Failed, WrongUse
from app.evaluation import curve, results
from app.evaluation.embedding import batch_size_for, embed_all, own_rows
from app.evaluation.gallery import open_gallery
from app.evaluation.image_set import Faces, ImageSet, Streamed, decode
from app.evaluation.results import Row
from app.evaluation.sets import held_out, open_set
from app.evaluation.weights import how_read, network_of, with_configs
from app.files import make_folder, shown
from app.output import say
from app.report import facts, of_weights
from app.runtime import checkpoint, dist
from app.runtime.command import answer
from app.runtime.dist import ALONE, World
from app.runtime.finite import NotFinite
from app.runtime.folder import RunFolder
from app.runtime.stop import Interrupted, Stop

OWN_WORDS = ("weights", "sets", "gallery", "probes", "out", "flip", "fit")


@dataclass(frozen=True)
class Request:
    """A validated request: the weights, the sets, and which weights are measured on which sets."""

    weights: dict[Path, Config]
    sets: dict[str, ImageSet]  # by name
    measured_on: dict[Path, list[str]]  # file of weights -> names of sets
    out: Path
    flip: bool
    fit: str


def main(argv: list[str]) -> int:
    stop = Stop().listen()

    def work() -> tuple[str, int]:
        with stop.at_once(ALONE):
            request = decide(argv)
        with dist.world() as here:
            return evaluate(request, here, stop)

    return answer(argv, __doc__ or "", work)


class Stopped(Failed):
    """The evaluation was stopped; the results of the sets that were finished are on disk."""


def decide(argv: Sequence[str]) -> Request:
    """Parse and check a command line. Raises WrongUse."""
    given, overrides = own_words(argv, OWN_WORDS)
    if "weights" not in given:
        raise WrongUse('weights=… is missing; give files such as weights="runs/*/checkpoints/*.pt"')
    flip, fit = how_read(given)
    files = matching("weights", given["weights"])
    folder = next((file for file in files if not file.is_file()), None)
    if folder is not None:
        raise WrongUse(f'weights={folder} is a folder; give the files in it, such as weights="{folder}/*.pt"')
    weights = with_configs(files, overrides)
    if given.get("probes") and not given.get("gallery"):
        raise WrongUse(f"probes={given['probes']} needs a gallery to be searched in; add gallery=DIR")
    probes = Path(given["probes"]) if given.get("probes") else None
    searched = [open_gallery(Path(gallery), probes, fit)] if (gallery := given.get("gallery")) else []
    sets, measured_on = choose_sets(given.get("sets"), weights, fit, searched)
    out = Path(given.get("out") or f"evaluation/{time.strftime('%Y%m%d-%H%M%S')}")
    return Request(weights, sets, measured_on, out.absolute(), flip, fit)


def matching(key: str, patterns: str) -> list[Path]:
    """Files that match comma-separated patterns, each once, in order. Raises WrongUse for a pattern without a match."""
    found: dict[Path, None] = {}
    for pattern in filter(None, patterns.split(",")):
        paths = sorted(glob.glob(pattern, recursive=True)) or ([pattern] if Path(pattern).exists() else [])
        if not paths:
            raise WrongUse(f"{key}={pattern} matches no file here ({Path.cwd()}); give one such as {EXAMPLES[key]}")
        found |= dict.fromkeys(map(Path, paths))
    if not found:
        raise WrongUse(f"{key}= names nothing; give files such as {EXAMPLES[key]}")
    return list(found)


EXAMPLES = {"weights": '"runs/*/checkpoints/*.pt"', "sets": "lfw.bin"}


def choose_sets(
    patterns: str | None, weights: dict[Path, Config], fit: str, searched: Sequence[ImageSet]
) -> tuple[dict[str, ImageSet], dict[Path, list[str]]]:
    """The sets by name, and for each file of weights the names of the sets it is measured on. Raises WrongUse."""
    if patterns is not None or searched:
        paths = [] if patterns is None else matching("sets", patterns)
        opened = [*(open_set(path, fit) for path in paths), *searched]
        sets = {images.name: images for images in with_unlike_names(opened)}
        return sets, {file: list(sets) for file in weights}
    of_data: dict[tuple[object, ...], ImageSet] = {}
    keys = {
        file: (c.data.binary_cache_path, c.data.labels_path, c.data.data_fraction, of.max_images, of.validation)
        for file, c in weights.items()
        for of in [c.train.eval]
    }
    for file, config in weights.items():
        if config.data.binary_cache_path is None:
            raise WrongUse(f"{file} has no data set of its own; name sets to measure on, such as sets=lfw.bin")
        if keys[file] not in of_data:
            of_data[keys[file]] = held_out(config)
    unlike = dict(zip(of_data, with_unlike_names(list(of_data.values())), strict=True))
    return {images.name: images for images in unlike.values()}, {file: [unlike[keys[file]].name] for file in weights}


def with_unlike_names(sets: Sequence[ImageSet]) -> list[ImageSet]:
    """Make names unique: sets that share a name (every package has an lfw.bin) get their folder's name in front."""
    count = Counter(images.name for images in sets)
    named = [
        replace(images, name=f"{Path(images.path).absolute().parent.name}-{images.name}")
        if count[images.name] > 1
        else images
        for images in sets
    ]
    count = Counter(images.name for images in named)
    return [
        replace(images, name=f"{images.name}-{number}") if count[images.name] > 1 else images
        for number, images in enumerate(named, 1)
    ]


def evaluate(request: Request, here: World, stop: Stop) -> tuple[str, int]:
    """Measure all weights on all sets, set by set, so that images are decoded once if they fit in memory.

    Returns the text to print and the exit code: 1 if weights or embeddings are not finite.
    Raises Stopped after a request to stop.
    """
    out = dist.from_main(request.out, here)  # the default name is the time, which may differ between processes
    done: list[ImageSet] = []
    try:
        with stop.at_once(here):
            return measure_all(request, out, done, here, stop)
    except Interrupted as error:
        finished = f"{len(done)} of {len(request.sets)} sets"
        raise Stopped(f"stopped; {out} contains the finished results: {finished}") from error


def measure_all(request: Request, out: Path, done: list[ImageSet], here: World, stop: Stop) -> tuple[str, int]:
    """Measure everything. After each set, add the set to `done` and rewrite the results.

    Returns as `evaluate`. Raises Interrupted.
    """
    shorts = short_names(list(request.weights))
    rows = {
        file: Row(file, shorts[file], checkpoint.sha256(file), config.as_dict())
        for file, config in request.weights.items()
    }
    unusable = faults_of(request.weights)
    faults = dict(unusable)
    known: dict[str, of_weights.Before] = {}
    pictures: list[str] = []
    wanted = min(config.train.eval.batch_size for config in request.weights.values())
    batch_size = batch_size_for(wanted, here)
    if here.is_main:
        make_folder(out, "out")
    for images in request.sets.values():
        started = time.monotonic()
        decoded = decode(images, own_rows(images.count, batch_size, here), here, stop.asked.is_set)
        stop.leave_together(here)
        how = "read again for each file of weights" if isinstance(decoded, Streamed) else "decoded"
        for note in images.notes:
            tell(f"{images.name}: {note}", here)
        tell(f"{images.name}: {images.count:,} images, {how} ({time.monotonic() - started:.1f} s)", here)
        for file, row in rows.items():
            if images.name not in request.measured_on[file]:
                continue
            if file in unusable:
                row.outcomes[images.name] = None
                continue
            measure(row, images, decoded, request, batch_size, here, stop)
            if row.outcomes[images.name] is None:
                faults[file] = f"{file}: its embeddings of {images.name} are not finite"
        done.append(images)
        if here.is_main:
            ranked = results.best_first(list(rows.values()), [images])
            known[images.name] = measured_before(ranked[0], images, request)
            pictures += picture_of(images, ranked, known[images.name], out)
            settings = {"flip": request.flip, "fit": request.fit, "world_size": here.size}
            results.write(out / "eval.json", list(rows.values()), done, settings)
    table = results.table(list(rows.values()), done)
    told = [  # on the main process, which prints
        of_weights.sentence(results.best_first(list(rows.values()), [each]), each, known[each.name])
        for each in done
        if each.name in known
    ]
    beside = f"; curves beside it: {', '.join(pictures)}" if pictures else ""
    where = f"report: {shown(out / 'eval.json')}{beside}"
    return "\n".join([*faults.values(), table, where, *map(wrapped, told)]), int(bool(faults))


def wrapped(text: str) -> str:
    """Break a text between words at the width of the terminal. Elsewhere it stays one line."""
    return textwrap.fill(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text


def measured_before(best: Row, images: ImageSet, request: Request) -> of_weights.Before:
    """What the run of the best weights measured before on the same images, for the verdict and the curves."""
    run = RunFolder.with_weights(best.file)
    is_own = run is not None and request.flip and images.path == str(request.weights[best.file].data.binary_cache_path)
    return of_weights.before(facts.read(run) if run is not None and is_own else None, images)


def faults_of(weights: dict[Path, Config]) -> dict[Path, str]:
    """A sentence for each file whose weights are not finite. Raises WrongUse for weights that do not fit.

    Loads every file before the first measurement, so that a bad one does not show up hours later.
    """
    faults = {}
    for file, config in weights.items():
        try:
            network_of(file, config)
        except NotFinite as error:
            faults[file] = str(error)
    return faults


def measure(
    row: Row, images: ImageSet, decoded: Faces, request: Request, batch_size: int, here: World, stop: Stop
) -> None:
    """Measure one file of weights on one set and put the outcome into its `row`. Raises Interrupted."""
    started, config = time.monotonic(), request.weights[row.file]
    network, asked = network_of(row.file, config), stop.asked.is_set
    embeddings, length = embed_all(
        network, decoded, config.backbone, here, batch_size=batch_size, flip=request.flip, interrupted=asked
    )
    stop.leave_together(here)
    finite = bool(np.isfinite(embeddings).all())
    row.outcomes[images.name] = images.protocol.judge(embeddings, here) if finite else None
    row.lengths[images.name] = length
    tell(f"{images.name}: {row.short} measured in {time.monotonic() - started:.1f} s", here)


def picture_of(images: ImageSet, ranked: Sequence[Row], known: of_weights.Before, out: Path) -> list[str]:
    """Draw the curves of a set. Returns the name of the file; [] if no weights have a curve."""
    drawn, left_out = of_weights.curves(ranked, images, known)
    if not drawn:
        return []
    axes = next(outcome.axes for row in ranked if (outcome := row.outcomes.get(images.name)) and len(outcome.far))
    name = f"{axes.file}_{images.name}.png"
    curve.draw(out / name, f"{images.name}: {images.protocol.pairs:,} pairs", drawn, axes, left_out=left_out)
    return [name]


def short_names(files: Sequence[Path]) -> dict[Path, str]:
    """Short unique names: run and checkpoint; of one run, the checkpoint; outside a run, the file's name.

    The whole path where those clash.
    """
    runs = {file.absolute().parent.parent if file.parent.name == "checkpoints" else None for file in files}

    def name_of(file: Path) -> str:
        if file.parent.name != "checkpoints":
            return file.name
        return file.stem if len(runs) == 1 else f"{file.absolute().parent.parent.name}/{file.stem}"

    short = {file: name_of(file) for file in files}
    count = Counter(short.values())
    return {file: name if count[name] == 1 else str(file) for file, name in short.items()}


def tell(line: str, here: World) -> None:
    if here.is_main:
        say(f"  {line}")


if __name__ == "__main__":
    dist.leave(main(sys.argv[1:]))
