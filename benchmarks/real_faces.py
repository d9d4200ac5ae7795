"""Pseudo-IDs of real faces in the embeddings of a published network, against peers at their best settings.

The photographs are those of `source=orl`: 40 people, 10 each. The network is dlib's (King 2017), trained on 3 million
photographs of others. It gives strangers a cosine of about 0.86. Sets: the photographs; four views of each, turned,
lit and cropped otherwise; these and two of each at 10 to 28 pixels; and the views of people with 1 to 10 photographs.
Lists, peers and the choice of their settings are as in `shapes.py`. `nearest true mean` knows the people, and assigns
each image to the mean of the other images that is nearest: where it fails, the network does not tell people apart.

No dependency of the project, and used here only: pip install --target FOLDER dlib-bin face_recognition_models
scikit-learn infomap, then PYTHONPATH=FOLDER.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.data.sources.source import orl
from app.mining.gate import pair_f, pair_precision
from benchmarks._claims import quick, report
from benchmarks._planted import Floats, Ints, unit
from benchmarks.kinds import Row, installed, measure, of, percent
from benchmarks.shapes import QUANTILES

SEED, SIDE = 11, 112
CLEAR, POOR = 4, 2  # views of a photograph
Picture = NDArray[np.uint8]
Random = np.random.Generator


class Network:
    """dlib's network for aligned faces."""

    def __init__(self) -> None:
        import dlib

        package = importlib.util.find_spec("face_recognition_models")
        if package is None or not package.submodule_search_locations:
            raise SystemExit("face_recognition_models is not installed; its files are the network")
        models = Path(package.submodule_search_locations[0]) / "models"
        self.whole: Any = dlib.rectangle(SIDE // 10, SIDE // 10, SIDE * 9 // 10, SIDE * 19 // 20)
        self.landmarks: Any = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
        self.network: Any = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(self, picture: Picture) -> NDArray[np.float64]:
        """Return the 128 numbers of a picture [SIDE, SIDE, 3]."""
        return np.array(self.network.compute_face_descriptor(picture, self.landmarks(picture, self.whole)))


def view(picture: Picture, random: Random) -> Picture:
    """Return the picture turned, mirrored, lit and cropped at random."""
    image = Image.fromarray(picture)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR, fillcolor=(127, 127, 127))
    image = ImageEnhance.Brightness(image).enhance(random.uniform(0.6, 1.4))
    image = ImageEnhance.Contrast(image).enhance(random.uniform(0.6, 1.4))
    side = int(SIDE * random.uniform(0.75, 1))
    left, top = random.integers(0, SIDE - side + 1, 2).tolist()
    return np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + side, top + side)))


def poor(picture: Picture, random: Random) -> Picture:
    """Return a view at 10 to 28 pixels, with noise."""
    side = int(random.integers(10, 28))
    image = Image.fromarray(view(picture, random)).resize((side, side), Image.Resampling.BILINEAR)
    rough = np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(np.float64)
    rough += random.normal(0, random.uniform(0, 20), (SIDE, SIDE, 1))
    return rough.clip(0, 255).astype(np.uint8)


def sets(network: Network, random: Random) -> dict[str, tuple[Floats, Ints]]:
    """Return embeddings [n, 128] and the person of each."""
    faces = orl()
    pictures = [np.ascontiguousarray(each) for each in faces.decode(faces.read(0, faces.count))]
    assert faces.labels is not None
    people = faces.labels.astype(np.int32)
    photographs = np.array([network.embed(each) for each in pictures])
    clear = np.array([network.embed(view(each, random)) for each in pictures for _ in range(CLEAR)])
    blurred = np.array([network.embed(poor(each, random)) for each in pictures for _ in range(POOR)])
    owner, number = np.repeat(people, CLEAR), np.repeat(np.arange(len(people)) % 10, CLEAR)
    kept = np.ceil(10 * random.random(40) ** 2)[owner] > number
    return {
        "photographs": (unit(photographs), people),
        "four views": (unit(clear), owner),
        "views, a third poor": (
            unit(np.concatenate([clear, blurred])),
            np.concatenate([owner, np.repeat(people, POOR)]),
        ),
        "views of 1 to 10": (unit(clear[kept]), owner[kept]),
    }


def nearest_mean(x: Floats, labels: Ints) -> Ints:
    """Return the person [n] of the nearest mean of the unit embeddings `x` [n, D]; an image is not in its own mean."""
    x = x - x.mean(axis=0)
    count, added = np.bincount(labels), np.zeros((labels.max() + 1, x.shape[1]), x.dtype)
    np.add.at(added, labels, x)
    squared = ((x[:, None] - (added / count[:, None])[None]) ** 2).sum(2)
    others = (added[labels] - x) / np.maximum(count[labels] - 1, 1)[:, None]
    squared[np.arange(len(x)), labels] = ((x - others) ** 2).sum(1)
    return squared.argmin(1).astype(np.int32)


def main() -> int:
    is_quick, peers = quick(), installed()
    found = sets(Network(), np.random.default_rng(SEED))
    rows = []
    for name in list(found)[: 1 if is_quick else None]:
        oracle, labels = nearest_mean(*found[name]).astype(np.int64), found[name][1]
        limits: Row = {"oracle": pair_f(oracle, labels), "oracle precision": pair_precision(oracle, labels)}
        print(limits)
        rows.append({**measure(name, "real", found[name], peers, QUANTILES), **limits})

    def best(row: Row) -> float:
        return max(float(row[peer]) for peer in peers)

    claims = [
        percent(f"mean F against the best of {len(peers)} peers", rows, best, 1.0),
        *(percent(f"F of {row['kind']} against best peer", [row], best, 0.85) for row in rows),
        *(percent(f"F of {row['kind']} against nearest true mean", [row], of("oracle"), 0.85) for row in rows),
        *(percent(f"precision of {row['kind']}", [row], lambda _: 1.0, 0.95, "precision") for row in rows),
        *(
            percent(f"precision of {row['kind']}, nearest true mean", [row], lambda _: 1.0, 0.95, "oracle precision")
            for row in rows
        ),
    ]
    return report("real_faces", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
