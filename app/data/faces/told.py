"""Write what is known about a folder of photographs beside its data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.data.dataset import open_images
from app.data.faces.examine import Examined
from app.data.faces.landmarks import Points, quoted, write_landmarks
from app.data.faces.passport import Row, passport
from app.data.faces.passport_page import write_page
from app.data.faces.placing import Placing, names
from app.data.sources.source import Source
from app.files import atomic

PAGE, LEFT_OUT, LANDMARKS, PEOPLE, PAIRS = "passport.html", "left_out.csv", "landmarks.csv", "people.csv", "pairs.npy"
Facts = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """All photographs of `source` with what was found; `left` has the rows that are no image, with the reason."""

    source: Source
    examined: Sequence[Examined]
    points: Sequence[Points | None]
    left: Mapping[int, str]
    placing: Placing

    def write(self, out: Path) -> Facts:
        """Write the passport, its lists and pairs.npy beside the images; return the manifest's new entries."""
        assert self.source.root is not None
        called, labels = names(self.source), self.source.labels
        people = [""] * len(called) if labels is None else [self.source.people[label] for label in labels.tolist()]
        rows, image = [], 0
        for row, (name, person) in enumerate(zip(called, people, strict=True)):
            why = self.left.get(row, "")
            rows.append(Row(name, person, self.examined[row], None if why else image, why))
            image += not why
        images = open_images(out)
        judged = passport(rows, images)
        write_page(out.with_name(PAGE), f"{self.source.name}: {image} images", judged, images, self.source.root)
        write_left_out(out, {called[row]: self.left[row] for row in sorted(self.left)})
        if self.placing.look.for_faces:
            found = {name: its for name, its in zip(called, self.points, strict=True) if its is not None}
            write_landmarks(out.with_name(LANDMARKS), found)
        if self.source.people:
            kept = Counter(row.person for row in rows if row.image is not None)
            write_people(out, self.source.people, [kept[person] for person in self.source.people])
        return {"passport": judged.summary, **self._pairs(out)}

    def _pairs(self, out: Path) -> Facts:
        if self.source.pairs is None:
            return {}
        pairs, facts = self.source.pairs.without(self.left)
        with atomic(out.with_name(PAIRS)) as file:
            np.save(file, pairs)
        return {"pairs": facts}


def write_left_out(out: Path, why: Mapping[str, str]) -> None:
    """Write left_out.csv: the reason for each row that is no image; without such rows remove an earlier one."""
    if not why:
        out.with_name(LEFT_OUT).unlink(missing_ok=True)
        return
    with atomic(out.with_name(LEFT_OUT)) as file:
        lines = ["file,reason", *(f"{quoted(name)},{reason}" for name, reason in why.items()), ""]
        file.write("\n".join(lines).encode("utf-8", "surrogateescape"))


def write_people(out: Path, people: Sequence[str], images: Sequence[int]) -> None:
    """Write people.csv: the name of each label, and its number of images."""
    with atomic(out.with_name(PEOPLE)) as file:
        told = enumerate(zip(people, images, strict=True))
        lines = [f"{label},{quoted(person)},{count}" for label, (person, count) in told]
        file.write("\n".join(["label,person,images", *lines, ""]).encode("utf-8", "surrogateescape"))


def document(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The answer of json=true: the manifest's facts without its lists of blocks and rows."""
    kept = ("dataset_id", "name", "rows", "block_rows", "held_out_rows", "labels_sha256", "left_out")
    added = ("passport", "pairs")
    page = out.with_name(PAGE)
    return {
        "out": str(out),
        **{key: manifest[key] for key in (*kept, *added) if key in manifest},
        "page": str(page) if "passport" in manifest and page.is_file() else None,
    }


def summary(manifest: dict[str, Any], placing: Placing, out: Path) -> list[str]:
    """What the passport says, in lines for the terminal; none without a passport."""
    told = manifest.get("passport")
    if told is None:
        return []
    lines, found = [], dict(told["found"])
    what = "photographs" if "photographs" in told else "rows"
    count = told[what]
    if told["left_out"]:
        reasons = ", ".join(f"{number} {reason}" for reason, number in told["left_out"].items())
        del found["left out"]
        lines.append(f"{sum(told['left_out'].values())} of {count} {what} left out: {reasons}")
    odd = found.get("not square", 0)
    if odd and placing.fit == "crop":
        choice = what == "photographs" and not placing.by_points
        hint = "; align=auto takes the face instead, fit=pad all of the image" if choice else ""
        lines.append(f"{odd} of {count} {what} are not square: their middle is used{hint}")
        del found["not square"]
    if found:
        lines.append("found: " + ", ".join(f"{title} ({number})" for title, number in found.items()))
    lines += [f"{out.with_name(PAGE)} shows them"] if lines else []
    if pairs := manifest.get("pairs"):
        lost = f"; {pairs['left_out']} left out with their photographs" if pairs["left_out"] else ""
        lines.append(f"{pairs['count']} pairs, {pairs['of_one_person']} of one person{lost}")
    return lines


def none_left(source: Source, placing: Placing, left: dict[int, str]) -> str:
    """The sentence about a folder whose photographs are all left out."""
    reasons = ", ".join(sorted({*left.values()}))
    if placing.by_points:
        return (
            f"none of the {source.count} photographs becomes an image: {reasons}; give align=none for other subjects, "
            "a smaller min_face=, or not_found=keep"
        )
    return f"none of the {source.count} photographs of {source.root} can be read; save them again as .png or .jpg"
