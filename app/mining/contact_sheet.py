"""Draw a picture of sampled clusters, so that a person can check whether each shows one face.

Letters: N images mined.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from app.config import NO_ID
from app.data.dataset import Rows
from app.files import atomic

FACE, GAP, ROW_GAP, MARGIN = 56, 2, 8, 16  # pixels
FACES = 12  # faces per cluster
CAPTION, TITLE = 108, 34  # pixels: width beside a row, height above a group
LARGEST, RANDOM, SMALLEST = 5, 10, 3  # clusters
PAPER, INK, FAINT = (250, 250, 248), (32, 33, 36), (128, 130, 134)


def contact_sheet(path: Path, images: NDArray[np.uint8], rows: Rows, pseudo_ids: NDArray[np.int64], seed: int) -> None:
    """Write a PNG with a row of faces for each of a few clusters: the largest, random ones, the smallest.

    images [M, 112, 112, 3]; rows [N]: the images that were mined; pseudo_ids [N], NO_ID: none. Reads only the images
    that it shows.
    """
    rng = np.random.default_rng(seed)
    groups = _sample(pseudo_ids, rng)
    heights = [TITLE + len(ids) * (FACE + ROW_GAP) for ids in groups.values()]
    width = 2 * MARGIN + CAPTION + FACES * (FACE + GAP) - GAP
    sheet = Image.new("RGB", (width, MARGIN + max(sum(heights), TITLE)), PAPER)
    draw, plain, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(11)
    if not groups:
        draw.text((MARGIN, MARGIN), "no clusters", INK, plain)
    top = MARGIN // 2
    for title, ids in groups.items():
        draw.text((MARGIN, top + TITLE // 2), title, INK, plain, anchor="lm")
        top += TITLE
        for cluster in ids:
            members = np.flatnonzero(pseudo_ids == cluster)
            shown = np.sort(rng.choice(members, min(FACES, len(members)), replace=False))
            some = f"{len(shown)} of " if len(shown) < len(members) else ""
            draw.text((MARGIN, top + FACE // 2 - 9), f"id {cluster}", INK, plain, anchor="lm")
            draw.text((MARGIN, top + FACE // 2 + 9), f"{some}{len(members)} images", FAINT, small, anchor="lm")
            for place, member in enumerate(shown):
                face = Image.fromarray(np.asarray(images[rows[member]])).resize((FACE, FACE), Image.Resampling.LANCZOS)
                sheet.paste(face, (MARGIN + CAPTION + place * (FACE + GAP), top))
            top += FACE + ROW_GAP
    with atomic(path) as file:
        sheet.save(file, "PNG")


def _sample(pseudo_ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Return the clusters to show, by title. No cluster appears twice and no title is empty."""
    ids, sizes = np.unique(pseudo_ids[pseudo_ids != NO_ID], return_counts=True)
    by_size = ids[np.lexsort((ids, -sizes))]
    largest, rest = by_size[:LARGEST], by_size[LARGEST:]
    smallest, rest = rest[max(len(rest) - SMALLEST, 0) :], rest[: max(len(rest) - SMALLEST, 0)]
    some = np.sort(rng.choice(rest, min(RANDOM, len(rest)), replace=False))
    groups = {"largest clusters": largest, "random clusters": some, "smallest clusters": smallest}
    return {title: chosen for title, chosen in groups.items() if len(chosen)}
