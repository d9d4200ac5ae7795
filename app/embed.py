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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from app.config import load, own_words
from app.data.arrays import ENCODED, SIDE, array_in
from app.data.dataset import open_images
from app.data.sources.photograph import FITS, load_faces
from app.errors import Failed, WrongUse
from app.evaluation.embedding import batch_size_for, embed_all
from app.files import atomic, make_folder, write_json
from app.models import build_backbone
from app.runtime import checkpoint, dist
from app.runtime.command import answer
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.stop import Interrupted, Stop
from app.runtime.weights import load_backbone

OWN_WORDS = ("weights", "images", "out", "flip", "fit")
CHUNK = 4096  # images in memory at once: 150 MB


@dataclass(frozen=True)
class Embeds:
    """A network with what it takes."""

    network: nn.Module
    image_size: int
    dim: int
    batch_size: int


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
    out, fit = Path(given["out"]), given.get("fit", "crop")
    if out.suffix != ".npy":
        raise WrongUse(f"out={out} is not a name of an array; give one that ends in .npy, such as out=embeddings.npy")
    if given.get("flip", "true") not in ("true", "false"):
        raise WrongUse(f"flip={given['flip']} is neither true nor false; give flip=false, or leave it out")
    if fit not in FITS:
        raise WrongUse(f"fit={fit} is not known; give fit={'|'.join(FITS)}, or leave it out")
    files = matching(given["images"])
    weights, flip = Path(given["weights"]), given.get("flip") != "false"
    embeds = network_of(weights, overrides)
    make_folder(out.absolute().parent, "out")
    rows = [embedded(embeds, images, flip, here, stop) for images in chunks(files, fit)]
    found = np.concatenate(rows)
    if not np.isfinite(found).all():
        raise Failed(f"the embeddings of {int((~np.isfinite(found)).any(1).sum())} of {len(found)} are not finite")
    with atomic(out, found.nbytes, "the embeddings") as file:
        np.save(file, found)
    about = {"file": out.name, "weights": str(weights), "sha256": checkpoint.sha256(weights), "count": len(found)}
    options = {"dim": embeds.dim, "flip": flip, "fit": fit, "images": [str(each) for each in files]}
    write_json(out.with_suffix(".json"), {**about, **options})
    return f"{len(found):,} embeddings of {embeds.dim} numbers: {out}"


def matching(patterns: str) -> list[Path]:
    """Files of comma-separated names and patterns, in order. Raises WrongUse for one without a file."""
    found: list[Path] = []
    for pattern in filter(None, patterns.split(",")):
        path = Path(pattern)
        prepared = array_in(path) if path.is_dir() else path
        paths = [prepared] if prepared and prepared.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        files = [path for path in paths if path.is_file()]
        if not files:
            example = path / "*" / "*.jpg" if path.is_dir() else "faces/*.jpg"
            raise WrongUse(f"images={pattern} matches no file; give images.npy, or photographs such as '{example}'")
        found += files
    arrays = [path for path in found if path.suffix in (".npy", *ENCODED)]
    if arrays and len(found) > 1:
        raise WrongUse(f"images={arrays[0]} and others are given; give one {arrays[0].suffix} alone, or photographs")
    return found


def chunks(files: list[Path], fit: str) -> Iterator[NDArray[np.uint8]]:
    """Yield images [n, 112, 112, 3] of a prepared array or of photographs."""
    if files[0].suffix in (".npy", *ENCODED):
        array = open_images(files[0])
        yield from (np.array(array[start : start + CHUNK]) for start in range(0, len(array), CHUNK))
        return
    yield from (load_faces(files[start : start + CHUNK], fit) for start in range(0, len(files), CHUNK))


def network_of(weights: Path, overrides: Sequence[str]) -> Embeds:
    """Build the network of a file and load its weights. Raises WrongUse and NotFinite."""
    if weights.suffix == ".onnx":
        from app.onnx.network import OnnxNetwork

        onnx = OnnxNetwork(weights)
        return Embeds(onnx, SIDE, onnx.embedding_dim, load(overrides).train.eval.batch_size)
    run = RunFolder.with_weights(weights)
    if run is not None:
        config = load(overrides, base=run.config)
    elif any(word.startswith("backbone=") for word in overrides):
        config = load(overrides)
    else:
        raise WrongUse(
            f"{weights} is not in a run's folder, so its backbone is unknown; add one such as backbone=iresnet50"
        )
    network = build_backbone(config.backbone)
    load_backbone(weights, network)
    shape = config.backbone
    return Embeds(network, shape.image_size, shape.embedding_dim, config.train.eval.batch_size)


def embedded(embeds: Embeds, images: NDArray[np.uint8], flip: bool, here: World, stop: Stop) -> NDArray[np.float32]:
    """Return embeddings [n, D] of images [n, 112, 112, 3], as app.evaluate computes them."""
    found, _ = embed_all(
        embeds.network,
        images,
        here,
        image_size=embeds.image_size,
        batch_size=batch_size_for(embeds.batch_size, here),
        embedding_dim=embeds.dim,
        flip=flip,
        interrupted=stop.asked.is_set,
    )
    stop.leave_together(here)
    return found


if __name__ == "__main__":
    dist.leave(main(sys.argv[1:]))
