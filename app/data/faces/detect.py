"""Find faces in a photograph, each with five points: the cascade of MTCNN (Zhang et al. 2016).

pnet scans a pyramid of smaller copies for candidates, rnet rejects most of them, onet places the box and the points.
The scan is the expensive part, so it begins with a small copy. Only if that copy shows no face is a larger one scanned:
it shows smaller faces, and gives larger ones another chance.

Letters: K faces or candidates. A box is left, top, right, bottom in pixels; points are x, y in pixels, as in `align`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.faces.align import sampled, similarity
from app.data.faces.networks import network

Floats = NDArray[np.float64]

CELL, STRIDE = 12, 2  # pixels: pnet's field of view, and the distance between two
PYRAMID = 0.709  # ratio of two sizes: half the area
LEAST = 20.0  # pixels: the smallest face that is searched for in a copy
SIDES = (320, 640, 2048)  # pixels: longest side of the copies
THRESHOLDS = (0.6, 0.7, 0.7)  # scores that candidates need after each network; a face may need more
OVERLAP_A_SIZE, OVERLAP = 0.5, 0.7  # candidates that share more of their area are one
MOST = 256  # candidates of a level, and of all levels, that go on: the best ones
# Where onet sees the points of an upright face in its square, as parts of its side: the mean over ORL's photographs.
UPRIGHT = np.array([[0.351, 0.391], [0.735, 0.395], [0.539, 0.598], [0.372, 0.776], [0.704, 0.781]])
ONET = 48  # pixels
OFF_CENTRE = 0.5  # what a face in a corner loses of its area when the best one is chosen


class Faces(NamedTuple):
    """Faces in a photograph, the best one first: boxes [K, 4], scores [K], points [K, 5, 2]."""

    boxes: Floats
    scores: Floats
    points: Floats


def find(image: Image.Image, *, min_face: int = 40, min_score: float = 0.9) -> Faces:
    """Return the faces in an RGB image that are at least `min_face` pixels wide and have a score of `min_score`.

    The best face comes first: it is large and near the centre. Raises WrongUse if the networks are not installed.
    """
    found = _nothing()
    longest, scanned = max(image.size), 0.0
    for side in SIDES:
        copy_scale = min(1.0, side / longest)
        if copy_scale == scanned:
            break
        scanned = copy_scale
        found = _search(image, copy_scale, min_face, min_score)
        if len(found.scores):
            break
    found = _best_first(found, image.size)
    if len(found.scores):
        found.points[0] = _upright_again(image, found.points[0])
    return found


def _upright_again(image: Image.Image, points: Floats) -> Floats:
    """Place the points [5, 2] of a face once more, on a copy that they have turned upright.

    onet was trained on upright faces, and its points of a turned face lean towards the upright ones.
    """
    to_square = similarity(points + 0.5, UPRIGHT * ONET)
    back = np.linalg.inv(np.vstack([to_square, [0.0, 0.0, 1.0]]))[:2]
    square = sampled(image, back, ONET)
    _, marks, scores = network("onet")(_normalised(np.asarray(square)[None]))
    if scores[0, 1] < THRESHOLDS[2]:
        return points
    there = np.stack([marks[0, :5], marks[0, 5:]], axis=1).astype(np.float64) * ONET
    return there @ back[:, :2].T + back[:, 2] - 0.5


def _search(image: Image.Image, copy_scale: float, min_face: int, min_score: float) -> Faces:
    size = (max(1, round(image.width * copy_scale)), max(1, round(image.height * copy_scale)))
    copy = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    scale = np.array([size[0] / image.width, size[1] / image.height] * 2)
    boxes = _scan(copy, max(LEAST, min_face * copy_scale))
    boxes = _refine(copy, boxes)
    return _place(image, boxes / scale, min_face, min_score)


def _scan(image: Image.Image, least: float) -> Floats:
    """Square candidates [K, 4] of at least `least` pixels."""
    kept: list[Floats] = [np.zeros((0, 4))]
    all_scores: list[Floats] = [np.zeros(0)]
    scale, level = CELL / least, image
    while min(image.size) * scale >= CELL:
        size = (max(CELL, round(image.width * scale)), max(CELL, round(image.height * scale)))
        level = level.resize(size, Image.Resampling.BILINEAR)
        offsets, scores = network("pnet")(_normalised(np.asarray(level)[None]))
        rows, columns = np.nonzero(scores[0, 1] > THRESHOLDS[0])
        score = scores[0, 1, rows, columns].astype(np.float64)
        corner = np.stack([columns, rows], axis=1) * STRIDE
        boxes = np.concatenate([corner, corner + CELL], axis=1) + offsets[0, :, rows, columns].astype(np.float64) * CELL
        keep = _apart(boxes, score, OVERLAP_A_SIZE)[:MOST]
        kept.append(boxes[keep] / np.array([size[0] / image.width, size[1] / image.height] * 2))
        all_scores.append(score[keep])
        scale *= PYRAMID
    boxes, score = np.concatenate(kept).astype(np.float64), np.concatenate(all_scores).astype(np.float64)
    return _squares(boxes[_apart(boxes, score, OVERLAP)[:MOST]])


def _refine(image: Image.Image, boxes: Floats) -> Floats:
    """The candidates that rnet accepts, moved, as squares."""
    if not len(boxes):
        return boxes
    offsets, scores = network("rnet")(_patches(image, boxes, 24))
    score = scores[:, 1].astype(np.float64)
    boxes = _moved(boxes, offsets)
    good = score > THRESHOLDS[1]
    boxes, score = boxes[good], score[good]
    return _squares(boxes[_apart(boxes, score, OVERLAP)])


def _place(image: Image.Image, boxes: Floats, min_face: int, min_score: float) -> Faces:
    """The candidates that onet accepts as faces."""
    if not len(boxes):
        return _nothing()
    offsets, points, scores = network("onet")(_patches(image, boxes, ONET))
    score = scores[:, 1].astype(np.float64)
    corner, side = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    marks = np.stack([points[:, :5], points[:, 5:]], axis=2) * side[:, None] + corner[:, None] - 0.5
    boxes = _moved(boxes, offsets)
    good = (score >= max(THRESHOLDS[2], min_score)) & (boxes[:, 2] - boxes[:, 0] >= min_face)
    boxes, score, marks = boxes[good], score[good], marks[good]
    keep = _apart(boxes, score, OVERLAP, of_smaller=True)
    return Faces(boxes[keep], score[keep], marks[keep])


def _best_first(faces: Faces, size: tuple[int, int]) -> Faces:
    boxes = faces.boxes
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array(size) / 2
    off = np.linalg.norm(middle, axis=1) / (np.hypot(*size) / 2)
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * (1 - OFF_CENTRE * off.clip(0, 1)), kind="stable")
    return Faces(boxes[order], faces.scores[order], faces.points[order])


def _nothing() -> Faces:
    return Faces(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))


def _patches(image: Image.Image, boxes: Floats, side: int) -> NDArray[np.float32]:
    """Cut boxes out and scale them: float32 [K, 3, side, side]. Pixels outside the image are black."""
    patches = np.empty((len(boxes), side, side, 3), np.uint8)
    for place, box in enumerate(boxes.round().astype(int).tolist()):
        left, top, right, bottom = box
        cut = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        patches[place] = np.asarray(cut.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))
    return _normalised(patches)


def _normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [K, H, W, 3] -> float32 [K, 3, H, W] in [-1, 1]."""
    return np.ascontiguousarray(((images.astype(np.float32) - 127.5) / 128).transpose(0, 3, 1, 2))


def _moved(boxes: Floats, offsets: NDArray[np.float32]) -> Floats:
    side = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * np.concatenate([side, side], axis=1)


def _squares(boxes: Floats) -> Floats:
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def _apart(boxes: Floats, scores: Floats, most: float, *, of_smaller: bool = False) -> NDArray[np.intp]:
    """Which boxes to keep, best score first: no two of them share more than `most` of their union or smaller area."""
    order = np.argsort(-scores, kind="stable")[: 2 * MOST]
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        corners = np.maximum(boxes[first, :2], boxes[order, :2]), np.minimum(boxes[first, 2:], boxes[order, 2:])
        shared = (corners[1] - corners[0]).clip(0).prod(axis=1)
        of = np.minimum(areas[first], areas[order]) if of_smaller else areas[first] + areas[order] - shared
        order = order[shared <= most * np.maximum(of, 1e-9)]
    return np.array(kept, dtype=np.intp)
