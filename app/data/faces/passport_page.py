"""The passport of a data set as one HTML page with its pictures inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.arrays import SIDE
from app.data.faces.passport import DUPLICATES, OTHER_PEOPLE, Groups, Passport, Row
from app.data.shards import Images
from app.data.sources.photograph import UNREADABLE, fitted, photograph
from app.files import write_text

SHOWN = 60  # pictures a finding
LISTED = 200  # people in the table
SAMPLE = 40  # images of the data set, evenly spread
QUALITY = 85  # of the JPEG pictures
WHY = {
    "left out": "Not in the data set. left_out.csv lists all of them.",
    OTHER_PEOPLE: "Two people have the same picture, so one of the two labels is wrong, or both are one person.",
    DUPLICATES: "The same picture several times. It counts as several images in training.",
    "people of one image": "Nothing else shows this person, so recipe supervised learns little from the image.",
    "low face score": "The detector is less sure of these faces; lowest first.",
    "several faces": "The largest face near the centre is taken. several=skip leaves such photographs out.",
    "kept without a face": "No face was found, and not_found=keep scales the whole photograph.",
    "smaller than 112 pixels": "Enlarged, so they have less detail than the network expects.",
    "not square": "fit=crop takes the middle; fit=pad and fit=squash take all; align=auto takes the face.",
    "grey": "Without colour. Harmless, unless only some people are grey.",
    "turned upright by EXIF": "The camera was held sideways and noted it; the images are upright.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1080px; padding: 0 1rem; color: #202124 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem } p { margin: .3rem 0; color: #5f6368 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.sheet { display: flex; flex-wrap: wrap; gap: 8px } figure { margin: 0; width: 112px }
.group { display: flex; gap: 2px; border: 1px solid #dadce0; padding: 4px }
figcaption { font-size: 11px; line-height: 1.2; color: #5f6368; overflow-wrap: anywhere }
.none { width: 112px; height: 112px; background: #eee }
@media (prefers-color-scheme: dark) { body { background: #202124; color: #e8eaed } }
"""


def write_page(path: Path, title: str, told: Passport, images: Images, root: Path | None = None) -> None:
    """Write the page. images [N, 112, 112, 3]; photographs that were left out are read again from `root`."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title><style>{STYLE}</style>",
        f"<h1>{_text(title)}</h1>",
        _counts(told),
        _section("a sample of the images", "", [[place] for place in _spread(told.kept)], told.rows, images, root),
    ]
    parts += [
        _section(finding, WHY.get(finding, ""), groups, told.rows, images, root)
        for finding, groups in told.findings.items()
    ]
    if told.people:
        parts.append(_people(told))
    write_text(path, "\n".join(parts) + "\n")


def _counts(told: Passport) -> str:
    summary = told.summary
    lines: dict[str, Any] = {f"{told.what} that came in": summary[told.what], "images": summary["images"]}
    if "people" in summary:
        lines["people"] = summary["people"]
        lines["images a person"] = "{least} to {most}, median {median}".format_map(summary["images_a_person"])
    if "shorter_side_px" in summary:
        lines["shorter side"] = "{least} to {most} pixels, median {median}".format_map(summary["shorter_side_px"])
    lines |= {f"left out: {reason}": count for reason, count in summary["left_out"].items()}
    lines |= {title: count for title, count in summary["found"].items() if title != "left out"}
    rows = "".join(f"<tr><td>{_text(str(k))}<td class=n>{_text(str(v))}" for k, v in lines.items())
    return f"<table>{rows}</table>"


def _spread(kept: Sequence[int] | NDArray[np.int64]) -> list[int]:
    places = np.unique(np.linspace(0, len(kept) - 1, min(SAMPLE, len(kept))).astype(int))
    return [int(kept[place]) for place in places.tolist()]


def _section(
    title: str,
    why: str,
    groups: Groups,
    rows: Sequence[Row],
    images: Images,
    root: Path | None,
) -> str:
    figures, shown = [], 0
    for group in groups:
        if shown + len(group) > SHOWN and shown:
            break
        pictures = "".join(_figure(rows[place], images, root) for place in group[:SHOWN])
        figures.append(f"<div class=group>{pictures}</div>" if len(group) > 1 else pictures)
        shown += len(group)
    count = sum(map(len, groups))
    of = f"{min(shown, count)} of {count}" if shown < count else f"{count}"
    note = f"<p>{_text(why)}</p>" if why else ""
    return f"<h2>{_text(title)} ({of})</h2>{note}<div class=sheet>{''.join(figures)}</div>"


def _figure(row: Row, images: Images, root: Path | None) -> str:
    picture = ""
    if row.image is not None:
        picture = _data(Image.fromarray(images[row.image]))
    elif root is not None:
        with suppress(*UNREADABLE):
            picture = _data(fitted(photograph((root / row.name).read_bytes()), "pad"))
    about = f" · {row.left_out}" if row.left_out else ""
    score = f" · {row.examined.score:.2f}" if row.examined.points else ""
    image = f'<img width={SIDE} height={SIDE} alt="" src="{picture}">' if picture else "<div class=none></div>"
    return f"<figure>{image}<figcaption>{_text(row.name)}{_text(about)}{score}</figcaption></figure>"


def _people(told: Passport) -> str:
    lines = "".join(
        f"<tr><td>{_text(person)}<td class=n>{came}<td class=n>{kept}" for person, came, kept in told.people[:LISTED]
    )
    count = told.summary["people"] + told.summary["people_without_images"]
    of = f"{LISTED} of {count}" if count > LISTED else f"{count}"
    return f"<h2>people ({of})</h2><table><tr><th>person<th>{told.what}<th>images{lines}</table>"


def _data(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _text(words: str) -> str:
    return html.escape(words.encode("utf-8", "replace").decode())
