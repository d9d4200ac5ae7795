"""Embed images: python -m app.embed weights=FILE images=PATH,… out=embeddings.npy [key=value …]

    weights=FILE       a checkpoint of a run, a file of published weights (needs backbone=NAME), or an ONNX file
    images=PATH,…      a prepared images.npy or its folder, or photographs of aligned faces: files or patterns, in
                       this order
    out=FILE.npy       the embeddings, fp32 [N, D], a row an image, as the network gives them; a JSON beside the file
                       names weights, images and options
    flip=false         embed each image alone, without adding the embedding of its mirror image
    fit=squash|pad     photographs that are not square: all of the image; default: crop, its middle square
    key=value          changes a setting, such as backbone=iresnet50 or train.eval.batch_size=64

The cosine of two rows says how alike two faces are. `python -m app.mine embeddings=embeddings.npy` groups them.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.config import own_words
from app.data.arrays import ENCODED, array_in
from app.data.dataset import open_images
from app.data.sources.photograph import is_image, load_faces
from app.errors import Failed, WrongUse
from app.evaluation.embedding import batch_size_for, embed_all
from app.evaluation.weights import how_read, network_of, with_configs
from app.files import atomic, describes, make_folder, refuse_to_replace, write_json
from app.runtime import checkpoint, dist
from app.runtime.command import answer
from app.runtime.dist import World
from app.runtime.stop import Interrupted, Stop

OWN_WORDS = ("weights", "images", "out", "flip", "fit")
CHUNK = 4096  # images in memory at once: 150 MB


def main(argv: list[str]) -> int:
    stop = Stop().listen()

    def work() -> tuple[str, int]:
        try:
            with dist.world() as here, stop.at_once(here):
                if here.size > 1:
                    raise WrongUse("app.embed is for one process; start it with python -m app.embed, without torchrun")
                return embed(argv, here, stop), 0
        except Interrupted as error:
            raise Failed("stopped; run the same command to start again") from error

    return answer(argv, __doc__ or "", work)


def embed(argv: Sequence[str], here: World, stop: Stop) -> str:
    """Embed as the command line says, and return what to print.

    Raises WrongUse, Interrupted, and Failed for NaN or infinity.
    """
    given, overrides = own_words(argv, OWN_WORDS)
    for key, example in (("weights", "model.onnx"), ("images", "images.npy"), ("out", "embeddings.npy")):
        if not given.get(key):
            raise WrongUse(f"{key}=… is missing; give one such as {key}={example}")
    out = Path(given["out"])
    if out.suffix != ".npy":
        raise WrongUse(f"out={out} is not a name of an array; give one that ends in .npy, such as out=embeddings.npy")
    flip, fit = how_read(given)
    files = matching(given["images"])
    weights = Path(given["weights"])
    refuse_to_replace(out, [*files, weights])
    if out.exists() and not describes(out.with_suffix(".json"), out.name):
        raise WrongUse(
            f"out={out} would replace an array that app.embed did not write; give another name, or remove it"
        )
    config = with_configs([weights], overrides)[weights]
    network = network_of(weights, config)
    make_folder(out.absolute().parent, "out")
    size, asked, rows = batch_size_for(config.train.eval.batch_size, here), stop.asked.is_set, []
    for images in chunks(files, fit):
        some, _ = embed_all(network, images, config.backbone, here, batch_size=size, flip=flip, interrupted=asked)
        stop.leave_together(here)
        rows.append(some)
    found = np.concatenate(rows)
    if not np.isfinite(found).all():
        raise Failed(f"the embeddings of {int((~np.isfinite(found)).any(1).sum())} of {len(found)} are not finite")
    with atomic(out, found.nbytes, "the embeddings") as file:
        np.save(file, found)
    about = {"file": out.name, "weights": str(weights), "sha256": checkpoint.sha256(weights), "count": len(found)}
    options = {"dim": found.shape[1], "flip": flip, "fit": fit, "images": [str(each) for each in files]}
    write_json(out.with_suffix(".json"), {**about, **options})
    return f"{len(found):,} embeddings of {found.shape[1]} numbers: {out}"


def matching(patterns: str) -> list[Path]:
    """Files of comma-separated names and patterns, in order. Raises WrongUse for one without a file."""
    found: list[Path] = []
    for pattern in filter(None, patterns.split(",")):
        path = Path(pattern)
        prepared = array_in(path) if path.is_dir() else path
        paths = [prepared] if prepared and prepared.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        files = [path for path in paths if path.is_file()]
        if not files:
            example = pattern_for(path) if path.is_dir() else "faces/*.jpg"
            raise WrongUse(f"images={pattern} matches no file; give images.npy, or photographs such as '{example}'")
        found += files
    arrays = [path for path in found if path.suffix in (".npy", *ENCODED)]
    if arrays and len(found) > 1:
        raise WrongUse(f"images={arrays[0]} and others are given; give one {arrays[0].suffix} alone, or photographs")
    return found


def pattern_for(folder: Path) -> Path:
    """A pattern of the images in a folder, or else in its sub-folders."""
    suffix = next((file.suffix for file in sorted(folder.iterdir()) if file.suffix and is_image(file)), None)
    return folder / f"*{suffix}" if suffix else folder / "*" / "*.jpg"


def chunks(files: list[Path], fit: str) -> Iterator[NDArray[np.uint8]]:
    """Yield images [n, 112, 112, 3] of a prepared array or of photographs."""
    if files[0].suffix in (".npy", *ENCODED):
        array = open_images(files[0])
        yield from (np.array(array[start : start + CHUNK]) for start in range(0, len(array), CHUNK))
        return
    yield from (load_faces(files[start : start + CHUNK], fit) for start in range(0, len(files), CHUNK))


if __name__ == "__main__":
    dist.leave(main(sys.argv[1:]))
