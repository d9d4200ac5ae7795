"""Faces found and aligned by align=auto, beside the cascade as published, on photographs of real people.

The peer runs the same three networks on the whole photograph at once and takes onet's first points. Ours begins with a
small copy, and places the points again on a copy of the face that is turned upright. Both run in turn in one process on
one core.

Portraits of ORL are put into scenes of 1024 x 768 pixels, turned by up to 30 degrees and scaled by 0.8 to 4. Where a
portrait lies is known, so each detector's own points in the upright portrait tell where the scene's should be. The
error is the mean distance of the five points, in pixels of the aligned image of 112 x 112.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # one core; must be set before anything starts threads

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.data.faces.align import TEMPLATE, similarity
from app.data.faces.detect import Faces, _best_first, _search, find
from app.data.sources.source import orl
from benchmarks._claims import Claim, quick, report

SCENES, QUICK_SCENES = 100, 10
WIDTH, HEIGHT = 1024, 768
MOST_DEG, SCALES = 30.0, (0.8, 4.0)
Points = NDArray[np.float64]
Find = Callable[[Image.Image], Faces]


class Scene(NamedTuple):
    """A picture with a portrait in it; `turn` [2, 2] and `centre` [2] take the portrait's places to the scene's."""

    image: Image.Image
    portrait: Image.Image
    turn: Points
    centre: Points


def as_published(image: Image.Image) -> Faces:
    return _best_first(_search(image, 1.0, 40, 0.9), image.size)


def scenes(count: int) -> list[Scene]:
    rng = np.random.default_rng(0)
    files = orl().read(0, 400)
    return [scene(Image.open(files[row]).convert("RGB"), rng) for row in rng.choice(400, count, replace=False)]


def scene(portrait: Image.Image, rng: np.random.Generator) -> Scene:
    angle, scale = np.deg2rad(rng.uniform(-MOST_DEG, MOST_DEG)), rng.uniform(*SCALES)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0.3, 0.7, 2) * (WIDTH, HEIGHT)
    back = np.linalg.inv(turn)
    shift = np.array(portrait.size) / 2 - back @ centre
    words = tuple(np.column_stack([back, shift]).ravel().tolist())
    size, kind = (WIDTH, HEIGHT), Image.Transform.AFFINE
    there = portrait.transform(size, kind, words, Image.Resampling.BICUBIC)
    mask = Image.new("L", portrait.size, 255).transform(size, kind, words)
    noise = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    image.paste(there, (0, 0), mask)
    return Scene(image, portrait, turn, centre)


def measured(detector: Find, some: list[Scene]) -> tuple[int, float, float]:
    """Return the scenes whose face is found, the median error in pixels of 112, and images a second."""
    errors, spent_s = [], 0.0
    for each in some:
        own = detector(each.portrait).points[0]
        wanted = (own + 0.5 - np.array(each.portrait.size) / 2) @ each.turn.T + each.centre - 0.5
        begun = time.process_time()
        found = detector(each.image)
        spent_s += time.process_time() - begun
        to_image = similarity(wanted, TEMPLATE)[:, :2]
        off = [np.linalg.norm((points - wanted) @ to_image.T, axis=1).mean() for points in found.points[:1]]
        errors += [error for error in off if error < 20]  # another place is not this face
    return len(errors), float(np.median(errors)), len(some) / spent_s


def main() -> int:
    is_quick = quick()
    some = scenes(QUICK_SCENES if is_quick else SCENES)
    find(some[0].image)
    found, error, rate = measured(find, some)
    peer_found, peer_error, peer_rate = measured(as_published, some)
    portraits = [Image.open(file).convert("RGB") for file in orl().read(0, 400)[:: 20 if is_quick else 1]]
    begun = time.process_time()
    upright = sum(len(find(portrait).scores) > 0 for portrait in portraits)
    portrait_rate = len(portraits) / (time.process_time() - begun)
    claims = [
        Claim(
            "ORL photographs whose face is found", upright, len(portraits), "photographs", upright / len(portraits), 1
        ),
        Claim("scenes whose face is found", found, peer_found, "scenes", found / peer_found, 0.95),
        Claim("median error of the points", error, peer_error, "px of 112", peer_error / error, 1.2),
        Claim("search of a scene, one core", rate, peer_rate, "images/s", rate / peer_rate, 1.5),
        Claim(
            "search of a portrait beside a scene, one core", portrait_rate, rate, "images/s", portrait_rate / rate, 1.0
        ),
    ]
    return report("align", claims, is_quick=is_quick)


if __name__ == "__main__":
    sys.exit(main())
