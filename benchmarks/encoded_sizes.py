"""Bytes of images.jpegs against images.npy: photographs in grey and in colour, as JPEG and stored without loss.

`prepare` keeps a JPEG of 112 x 112 as it came, and stores an image of another size as WebP without loss. ORL's
photographs are grey. Photographs in colour are a portrait and others that packages bring: 40 windows of each, scaled to
112 x 112 and saved at several qualities. The script prints which it found; packages that are not installed are left
out. insightface's instructions for WebFace42M save JPEG files of quality 100.

Images without loss are also held against PNG: bytes, and images that one core decodes a second. Bytes do not depend on
the machine. Rates are CPU time of one core, in turn. No GPU is used.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.data.sources.photograph import decode_stored, lossless
from app.data.sources.source import orl
from benchmarks._claims import Claim, core_seconds, in_turn, quick, report

PORTRAIT = ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")  # a package, and a file of it
OTHERS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/rocket.jpg"),
)
WINDOWS, SIDES = 40, (150, 400)  # of each photograph; pixels
PIXELS_KIB = 112 * 112 * 3 / 1024
# How a window in colour is saved: options of Pillow's JPEG encoder, and how much smaller than pixels it is at least.
QUALITIES: dict[str, tuple[dict[str, Any], float]] = {
    "JPEG of quality 75": ({"quality": 75}, 3.0),
    "JPEG of quality 95": ({"quality": 95}, 3.0),
    "JPEG of quality 100": ({"quality": 100}, 2.0),
    "JPEG of quality 100, 4:4:4": ({"quality": 100, "subsampling": 0}, 1.5),
}


def windows(package: str, name: str) -> list[Image.Image]:
    """Return squares of a package's photograph, scaled to 112 x 112; none if it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return []
    chance, squares = np.random.default_rng(0), []
    with Image.open(Path(found.origin).parent / name) as photograph:
        for side in chance.integers(*SIDES, WINDOWS).tolist():
            x, y = (int(chance.integers(0, length - side)) for length in photograph.size)
            box = (x, y, x + side, y + side)
            squares.append(photograph.convert("RGB").resize((112, 112), Image.Resampling.BICUBIC, box=box))
    print(f"{package}: {name}, {len(squares)} windows")
    return squares


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def kib(files: Sequence[bytes]) -> float:
    return sum(map(len, files)) / len(files) / 1024


def without_loss(name: str, images: Sequence[Image.Image], at_least: float, rounds: int) -> list[Claim]:
    """Claims about images stored without loss, beside pixels and beside PNG."""
    ours, peers = [lossless(np.asarray(each)) for each in images], [saved(each, "PNG") for each in images]

    def rate(files: Sequence[bytes]) -> float:
        return len(files) / core_seconds(lambda: [decode_stored(file) for file in files])

    a, b, ratio = in_turn(lambda: rate(ours), lambda: rate(peers), rounds)
    size = kib(ours)
    return [
        Claim(f"{name}, without loss", size, PIXELS_KIB, "KiB", PIXELS_KIB / size, at_least),
        Claim(f"{name}, without loss (peer: PNG)", size, kib(peers), "KiB", kib(peers) / size, 1.0),
        Claim(f"{name}, without loss, decoded (peer: PNG)", a, b, "images/s", ratio, 1.2),
    ]


def main() -> int:
    is_quick = quick()
    source, rounds, claims = orl(), 2 if is_quick else 9, list[Claim]()
    grey = [Image.fromarray(each) for each in source.decode(source.read(0, 40 if is_quick else source.count))]
    portrait = windows(*PORTRAIT)
    several = [*portrait, *(each for of in OTHERS for each in windows(*of))]
    for name, images in (("a portrait in colour", portrait), ("photographs in colour", several)):
        for quality, (options, at_least) in QUALITIES.items():
            size = kib([saved(each, "JPEG", **options) for each in images])
            claims.append(Claim(f"{name}, {quality}", size, PIXELS_KIB, "KiB", PIXELS_KIB / size, at_least))
        claims += without_loss(name, images, 1.5, rounds)
    claims += without_loss("ORL, grey", grey, 3.0, rounds)
    return report("encoded_sizes", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
