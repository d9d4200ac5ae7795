"""Pseudo-IDs of real photographs in the embeddings of weak networks, against peers at their best settings.

A network that trains on its own pseudo-IDs is weak while it mines. Sets: the 300 photographs on which the job of the
README trains, embedded by its network after every third epoch; and all 400 as eigenfaces (Turk and Pentland 1991), 32
numbers of an image at 12, 16, 28 and 56 pixels, each scaled by the root of its deviation. Lists, peers and the choice
of their settings are as in `shapes.py`. The seed of the network differs from the one that the method was chosen with;
the eigenfaces served to choose it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import load
from app.data.dataset import open_configured
from app.mining.refresh import Interlude, embed_share
from app.models import build_backbone
from app.runtime.dist import ALONE
from app.runtime.folder import RunFolder
from app.runtime.weights import load_backbone
from benchmarks._claims import quick, report
from benchmarks._planted import Floats, Ints, unit
from benchmarks._runs import app, prepared
from benchmarks.kinds import Row, installed, measure, percent
from benchmarks.shapes import QUANTILES

SEED, EVERY, SIDES, NUMBERS = 8, 3, (12, 16, 28, 56), 32
LEAST, PRECISION = 0.85, 0.85  # share of the best peer's F; of the pairs found, those of one person
LATE = 12  # epochs


def of_networks(images: Path, folder: Path, more: list[str]) -> Iterator[tuple[str, Floats, Ints]]:
    """Train as the README does; yield embeddings [300, D] after every EVERY epochs, and the person of each."""
    words = [
        f"data.binary_cache_path={images}",
        f"train.seed={SEED}",
        "train.checkpoint.keep=1000",
        f"run.dir={folder}",
    ]
    if app("app.train", "experiment=tryout", "run.report=false", *words, *more).wait():
        raise SystemExit("the training failed")
    run = RunFolder(folder)
    config = load([], base=run.config)
    config.train.precision = "fp32"
    data = open_configured(config.data)
    assert data.labels is not None
    for path in sorted(run.checkpoints.glob("epoch_*.pt"))[EVERY - 1 :: EVERY]:
        network = build_backbone(config.backbone)
        load_backbone(path, network)
        interlude = Interlude(folder / path.stem, lambda: False, lambda _done, _total: None)
        rows = embed_share(network, config, data, ALONE, interlude)
        yield path.stem, rows.numpy(), data.labels[data.train_rows].astype(np.int32)


def eigenfaces(images: Path, side: int) -> tuple[Floats, Ints]:
    """Return embeddings [400, NUMBERS] and the person of each."""
    grey = np.load(images).mean(axis=3).astype(np.uint8)
    small = [Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR) for each in grey]
    pixels = np.stack([np.asarray(each, np.float64).ravel() for each in small])
    left, scale, _ = np.linalg.svd(pixels - pixels.mean(axis=0), full_matrices=False)
    labels = np.load(images.with_name("labels.npy")).astype(np.int32)
    return unit(left[:, :NUMBERS] * scale[:NUMBERS] ** 0.5), labels


def main() -> int:
    is_quick, peers = quick(), installed()
    torch.set_num_threads(1)
    images = prepared("orl", ["source=orl"])
    with tempfile.TemporaryDirectory() as folder:
        more = [f"train.epochs={EVERY}"] if is_quick else []
        networks = [
            measure("network", name, (rows, labels), peers, QUANTILES)
            for name, rows, labels in of_networks(images, Path(folder), more)
        ]
    sides = SIDES[: 1 if is_quick else None]
    faces = [measure("eigenfaces", str(side), eigenfaces(images, side), peers, QUANTILES) for side in sides]
    late = networks[LATE // EVERY - 1 :] or networks

    def best(row: Row) -> float:
        return max(float(row[peer]) for peer in peers)

    claims = [
        percent("mean F of networks against best peer", networks, best, LEAST),
        percent(f"mean F of networks from epoch {LATE} on against best peer", late, best, LEAST),
        percent("mean F of eigenfaces against best peer", faces, best, LEAST),
        percent("precision of networks", networks, lambda _: 1.0, PRECISION, "precision"),
        percent("precision of eigenfaces", faces, lambda _: 1.0, PRECISION, "precision"),
    ]
    return report("weak_networks", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
