"""The passport of a data set as one HTML page with its pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from app.data.faces.passport import DUPLICATES, OTHER_PEOPLE, Groups, Passport, Row
from app.data.shards import Images
from app.data.sources.photograph import UNREADABLE, fitted, jpeg_of, photograph
from app.errors import visible
from app.files import write_text

SHOWN = 60  # pictures a finding
LISTED = 200  # people in the table
SAMPLE = 40  # images of the data set, evenly spread
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


def write_page(path: Path, title: str, told: Passport, images: Images, root: Path | None = None) -> None:
    """Write the page. images [N, 112, 112, 3]; photographs that were left out are read again from `root`."""
    findings = {"a sample of the images": [[place] for place in _spread(told.kept)], **told.findings}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("passport.html.jinja").render(
        title=visible(title),
        counts=_counts(told),
        sections=[_section(finding, groups, told.rows, images, root) for finding, groups in findings.items()],
        what=told.what,
        people=[(visible(person), *counts) for person, *counts in told.people[:LISTED]],
        people_count=_of(LISTED, told.summary["people"] + told.summary["people_without_images"]) if told.people else "",
    )
    write_text(path, page + "\n")


def _counts(told: Passport) -> dict[str, Any]:
    summary = told.summary
    lines: dict[str, Any] = {f"{told.what} that came in": summary[told.what], "images": summary["images"]}
    if "people" in summary:
        lines["people"] = summary["people"]
        lines["images a person"] = "{least} to {most}, median {median}".format_map(summary["images_a_person"])
    if "shorter_side_px" in summary:
        lines["shorter side"] = "{least} to {most} pixels, median {median}".format_map(summary["shorter_side_px"])
    lines |= {f"left out: {reason}": count for reason, count in summary["left_out"].items()}
    return lines | {title: count for title, count in summary["found"].items() if title != "left out"}


def _spread(kept: Sequence[int] | NDArray[np.int64]) -> list[int]:
    places = np.unique(np.linspace(0, len(kept) - 1, min(SAMPLE, len(kept))).astype(int))
    return [int(kept[place]) for place in places.tolist()]


def _of(shown: int, count: int) -> str:
    return f"{shown} of {count}" if shown < count else f"{count}"


def _section(title: str, groups: Groups, rows: Sequence[Row], images: Images, root: Path | None) -> dict[str, Any]:
    figures: list[list[dict[str, str]]] = []
    shown = 0
    for group in groups:
        if shown + len(group) > SHOWN and shown:
            break
        figures.append([_figure(rows[place], images, root) for place in group[:SHOWN]])
        shown += len(group)
    return {"title": title, "count": _of(shown, sum(map(len, groups))), "why": WHY.get(title, ""), "groups": figures}


def _figure(row: Row, images: Images, root: Path | None) -> dict[str, str]:
    picture = ""
    if row.image is not None:
        picture = jpeg_of(images[row.image])
    elif root is not None:
        with suppress(*UNREADABLE):
            picture = jpeg_of(np.asarray(fitted(photograph((root / row.name).read_bytes()), "pad")))
    score = f"{row.examined.score:.2f}" if row.examined.points else ""
    return {"picture": picture, "caption": visible(" · ".join(filter(None, [row.name, row.left_out, score])))}
