"""Look at every photograph of a folder before it is converted: its size, its orientation and, on request, its faces.

Finding faces is the slow part of align=auto, so the results are written to a file as they come. A later call, after an
interruption or with other photographs, examines only those that are new or changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from app.data.arrays import SIDE
from app.data.faces.landmarks import Points
from app.data.sources.photograph import UNREADABLE, outline, photograph, readable
from app.data.sources.source import version_of
from app.data.sources.worker_pool import in_order
from app.errors import WrongUse

PIECE = 8  # photographs a task
EACH_AHEAD = 4  # tasks a process that wait


class Look(NamedTuple):
    """What to look for: only size and orientation, or faces of at least `min_face` pixels and a score in percent.

    `aligned`: photographs of 112 x 112 count as aligned and are not searched.
    """

    for_faces: bool = False
    aligned: bool = True
    min_face: int = 40
    min_score_pct: int = 90


class Examined(NamedTuple):
    """A photograph: upright width and height in pixels, whether EXIF turns it, and the number of faces found.

    `score` and `points` are those of the best face. `bad` is the sentence about a photograph that cannot be read.
    `searched` is False if no search took place.
    """

    width: int = 0
    height: int = 0
    turned: bool = False
    searched: bool = False
    faces: int = 0
    score: float = 0.0
    points: Points | None = None
    bad: str = ""


def examine(
    files: Sequence[Path],
    look: Look,
    notes: Path,
    *,
    workers: int = 1,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Examined]:
    """Examine photographs, in order. `notes` is the file of results; the caller deletes it when all is done."""
    keys = [_key(file, look) for file in files]
    known = _read(notes, keys)
    progress(sum(key in known for key in keys))
    missing = [place for place, key in enumerate(keys) if key not in known]
    pieces = [missing[start : start + PIECE] for start in range(0, len(missing), PIECE)]

    def task(piece: list[int]) -> tuple[list[Path], Look]:
        return [files[place] for place in piece], look

    examining = in_order(pieces, task, examine_each, workers, each_ahead=EACH_AHEAD)
    # A newline first: an interrupted call may have left half a line.
    with notes.open("a", encoding="utf-8") as file, closing(examining) as done:
        file.write("\n" if pieces else "")
        for piece, results in done:
            for place, result in zip(piece, results, strict=True):
                known[keys[place]] = result
                file.write(json.dumps([keys[place], *result]) + "\n")
            file.flush()
            progress(len(piece))
    return [known[key] for key in keys]


def examine_each(files: Sequence[Path], look: Look) -> list[Examined]:
    return [examine_one(file, look) for file in files]


def examine_one(file: Path, look: Look) -> Examined:
    """Examine one photograph. An unreadable one has `bad`; its header may still be good."""
    try:
        (width, height), turned = outline(file)
    except UNREADABLE:
        width = height = 0
        turned = False
    plain = Examined(width, height, turned)
    if not look.for_faces or (look.aligned and (width, height) == (SIDE, SIDE)):
        return plain
    try:
        with readable(file):
            image = photograph(file.read_bytes())
    except WrongUse as error:
        return plain._replace(bad=str(error))
    # onnxruntime loads slowly, and sources without a search would load it too
    from app.data.faces.detect import find

    found = find(image, min_face=look.min_face, min_score=look.min_score_pct / 100)
    if not len(found.scores):
        return plain._replace(searched=True)
    points = tuple(round(float(number), 3) for number in found.points[0].ravel())
    score = round(float(found.scores[0]), 4)
    return plain._replace(searched=True, faces=len(found.scores), score=score, points=points)


def _key(file: Path, look: Look) -> str:
    told = f"{file.absolute()}\0{version_of(file)}\0{look}"
    return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _read(notes: Path, keys: Sequence[str]) -> dict[str, Examined]:
    known = dict[str, Examined]()
    if not notes.is_file():
        return known
    wanted = {*keys}
    with notes.open(encoding="utf-8") as file:
        for line in file:
            try:
                key, *fields = json.loads(line)
                result = Examined(*fields)
            except (ValueError, TypeError):  # half a line of an interrupted call
                continue
            if key in wanted:
                known[key] = result._replace(points=None if result.points is None else tuple(result.points))
    return known
