"""Draw a picture of sampled clusters, so that a person can check whether each shows one face.

Letters: N images mined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.config import NO_ID
from app.data.dataset import Rows
from app.data.shards import Images
from app.files import atomic
from app.mining.arrays import Ints, Longs, Mask
from app.mining.gate import Report

FACE, GAP, ROW_GAP, MARGIN, FRAME = 56, 2, 8, 16, 3  # pixels
FACES = 12  # faces per cluster
CAPTION, TITLE, LINE = 108, 34, 18  # pixels: width beside a row, height above a group, height of a line of text
LARGEST, RANDOM, SMALLEST = 5, 10, 3  # clusters
WIDTH = 2 * MARGIN + CAPTION + FACES * (FACE + GAP) - GAP
LETTERS = 110  # of a line of small text
PAPER, INK, FAINT, ALARM = (250, 250, 248), (32, 33, 36), (128, 130, 134), (200, 30, 30)


@dataclass(frozen=True)
class Row:
    """One row of faces."""

    cluster: int
    remark: str = ""  # why it is shown


def contact_sheet(
    path: Path,
    images: Images,
    rows: Rows,
    pseudo_ids: Longs,
    seed: int,
    report: Report,
    *,
    labels: Ints | None = None,
    there: Mask | None = None,
) -> None:
    """Write a PNG with a row of faces for each of a few clusters: the doubtful, the largest, random, the smallest ones.

    images [M, 112, 112, 3]; rows [N]: the images that were mined; pseudo_ids [N], NO_ID: none. With labels [N] a frame
    marks each image of another person than most of its cluster. Reads only the images that it shows. `there` [N]: the
    images that this machine has; only they are shown.
    """
    rng = np.random.default_rng(seed)
    groups = _sample(pseudo_ids, report, rng)
    head = _head(report, marked=labels is not None, partial=there is not None)
    rows_height = sum(TITLE + len(chosen) * (FACE + ROW_GAP) for chosen in groups.values())
    sheet = Image.new("RGB", (WIDTH, MARGIN + len(head) * LINE + (rows_height or TITLE)), PAPER)
    draw, plain, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(11)
    top = MARGIN // 2
    for words, colour in head:
        draw.text((MARGIN, top + LINE // 2), words, colour, small, anchor="lm")
        top += LINE
    if not groups:
        draw.text((MARGIN, top + TITLE // 2), "no clusters", INK, plain, anchor="lm")
    for title, chosen in groups.items():
        draw.text((MARGIN, top + TITLE // 2), title, INK, plain, anchor="lm")
        top += TITLE
        for row in chosen:
            members = np.flatnonzero(pseudo_ids == row.cluster)
            near = members if there is None else members[there[members]]
            shown = np.sort(rng.choice(near, min(FACES, len(near)), replace=False))
            some = f"{len(shown)} of " if len(shown) < len(members) else ""
            lines = [f"id {row.cluster}", f"{some}{len(members)} images", *([row.remark] if row.remark else [])]
            for number, words in enumerate(lines):
                at = top + FACE // 2 + 18 * number - 9 * (len(lines) - 1)
                draw.text((MARGIN, at), words, FAINT if number else INK, small if number else plain, anchor="lm")
            person = None if labels is None else _commonest(labels[members])
            for place, member in enumerate(shown):
                face = Image.fromarray(np.asarray(images[rows[member]])).resize((FACE, FACE), Image.Resampling.LANCZOS)
                corner = (MARGIN + CAPTION + place * (FACE + GAP), top)
                sheet.paste(face, corner)
                if labels is not None and labels[member] >= 0 and labels[member] != person:
                    opposite = (corner[0] + FACE - 1, corner[1] + FACE - 1)
                    draw.rectangle((corner, opposite), outline=ALARM, width=FRAME)
            top += FACE + ROW_GAP
    with atomic(path) as file:
        sheet.save(file, "PNG")


def _head(report: Report, *, marked: bool, partial: bool) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the lines above the rows, each with its colour."""
    purity = "" if report.purity is None else f", purity {report.purity:.1%}"
    measured = f"{report.coverage:.1%} of the images, separated {report.separated:.1%}{purity}"
    lines = [
        (f"{report.count} pseudo-IDs, {measured}, floor {report.floor:.2f}", INK),
        ("accepted", INK) if report.accepted else (f"REJECTED: {report.why}"[:LETTERS], ALARM),
    ]
    if marked:
        lines.append(("red frame: by its label another person than most of the cluster", FAINT))
    if partial:
        lines.append(("images of the other machines are not shown", FAINT))
    return lines


def _commonest(labels: Ints) -> int | None:
    """The label of most images; None if none has one, which is a number from 0 on."""
    names, counts = np.unique(labels[labels >= 0], return_counts=True)
    return int(names[counts.argmax()]) if len(names) else None


def _sample(pseudo_ids: Longs, report: Report, rng: np.random.Generator) -> dict[str, Sequence[Row]]:
    """Return the rows to show, by title. No cluster appears twice and no title is empty."""
    ids, sizes = np.unique(pseudo_ids[pseudo_ids != NO_ID], return_counts=True)
    loose, alike = _doubtful(report)
    doubtful = [row.cluster for row in (*loose, *alike)]
    by_size = ids[np.lexsort((ids, -sizes))]
    by_size = by_size[~np.isin(by_size, doubtful)]
    largest, rest = by_size[:LARGEST], by_size[LARGEST:]
    smallest, rest = rest[max(len(rest) - SMALLEST, 0) :], rest[: max(len(rest) - SMALLEST, 0)]
    some = np.sort(rng.choice(rest, min(RANDOM, len(rest)), replace=False))
    groups = {
        "may show several people: least similar images": loose,
        "may show one person: clusters that resemble each other": alike,
        "largest clusters": [Row(int(each)) for each in largest],
        "random clusters": [Row(int(each)) for each in some],
        "smallest clusters": [Row(int(each)) for each in smallest],
    }
    return {title: chosen for title, chosen in groups.items() if chosen}


def _doubtful(report: Report) -> tuple[list[Row], list[Row]]:
    """Return the rows of clusters that may show several people, and of pairs that may show one, without repetition."""
    pairs = [tuple(map(int, name.split())) for name in report.alike]
    alike = [Row(one, f"like id {other}") for pair in pairs for one, other in (pair, pair[::-1])]
    shown = {row.cluster for row in alike}
    loose = [Row(int(name), f"cosine {cosine:.2f}") for name, cosine in report.loose.items() if int(name) not in shown]
    return loose, alike
