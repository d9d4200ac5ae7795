"""The figures of docs/mining.md are those of the committed results."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks._claims import RESULTS
from benchmarks._pages import DOCS, tables_of

ROUNDED = 0.0501  # figures have one digit, results four
HEAD = ("data", "F", "precision", "best peer, F", "script")
F, PRECISION, PEER = 1, 2, 3
# Beginning of a row, its columns -> results file, claim. A column is F, PRECISION or PEER.
FIGURES = [
    ("synthetic people of twelve kinds", (F, PEER), "kinds", "mean F against the best of 7 peers"),
    ("one of these kinds: all difficulties", (F, PEER), "kinds", "F of everything against best peer"),
    ("one of these kinds: all difficulties", (PRECISION,), "kinds", "precision of everything"),
    ("one of these kinds: few dimensions", (F, PEER), "kinds", "F of low_dim against best peer"),
    ("one of these kinds: few dimensions", (PRECISION,), "kinds", "precision of low_dim"),
    ("the twelve kinds, medium noise", (F, PEER), "kinds_20000", "mean F against the best of 4 peers"),
    ("of these, few dimensions", (F, PEER), "kinds_20000", "F of low_dim against best peer"),
    ("of these, few dimensions", (PRECISION,), "kinds_20000", "precision of low_dim"),
    ("20 people of 128", (F,), "kinds", "F, 20 people of 128 images"),
    ("20 people of 128", (F,), "kinds", "F, 20 people of 1000 images"),
    ("people of fifteen kinds", (F, PEER), "shapes", "mean F against the best of 7 peers"),
    ("two of these kinds", (F, PEER), "shapes", "F of curve_twins against best peer"),
    ("two of these kinds", (F, PEER), "shapes", "F of converging against best peer"),
    ("two of these kinds", (PRECISION,), "shapes", "precision of curve_twins"),
    ("two of these kinds", (PRECISION,), "shapes", "precision of converging"),
    ("one of these kinds: two sorts", (F, PEER), "shapes", "F of modes against best peer"),
    ("one of these kinds: two sorts", (PRECISION,), "shapes", "precision of modes"),
    ("one of these kinds: four cameras", (PEER,), "shapes", "F of four_domains against best peer"),
    ("one of these kinds: four cameras", (PRECISION,), "shapes", "precision of four_domains"),
    ("the first eight of these kinds", (F, PEER), "shapes_20000", "mean F against the best of 4 peers"),
    ("200,000 synthetic images", (F, PEER), "clusters", "F against components, best threshold"),
    ("the first 20,000 of these", (F, PEER), "clusters", "F against HDBSCAN, 20,000 images"),
    ("400 photographs", (F, PEER), "real_faces", "F of photographs against best peer"),
    ("400 photographs", (PRECISION,), "real_faces", "precision of photographs"),
    ("each photograph turned", (F, PEER), "real_faces", "F of four views against best peer"),
    ("each photograph turned", (PRECISION,), "real_faces", "precision of four views"),
    ("these, and two more", (F, PEER), "real_faces", "F of views, a third poor against best peer"),
    ("these, and two more", (PRECISION,), "real_faces", "precision of views, a third poor"),
    ("the four ways, of people", (F, PEER), "real_faces", "F of views of 1 to 10 against best peer"),
    ("the four ways, of people", (PRECISION,), "real_faces", "precision of views of 1 to 10"),
    ("the 300 photographs", (F, PEER), "weak_networks", "mean F of networks against best peer"),
    ("the 300 photographs", (PRECISION,), "weak_networks", "precision of networks"),
    ("all 400 as eigenfaces", (F, PEER), "weak_networks", "mean F of eigenfaces against best peer"),
    ("all 400 as eigenfaces", (PRECISION,), "weak_networks", "precision of eigenfaces"),
]


def claims(name: str) -> dict[str, dict[str, float]]:
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return {claim["name"]: claim for claim in content["claims"]}


def rows() -> list[list[str]]:
    (table,) = tables_of((DOCS / "mining.md").read_text(encoding="utf-8"), HEAD)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def states(cell: str, figure: float) -> bool:
    return any(abs(float(number) - figure) < ROUNDED for number in re.findall(r"\d+\.\d", cell))


@pytest.mark.parametrize(("begins", "columns", "name", "claim"), FIGURES)
def test_a_figure_is_the_measured_one(begins: str, columns: tuple[int, ...], name: str, claim: str) -> None:
    found = [row for row in rows() if row[0].startswith(begins)]
    measured = claims(name)[claim]
    for column in columns:
        figure = measured["peer" if column == PEER else "ours"]
        assert states(found[0][column], figure), f"{name}.json has {figure}, docs/mining.md {found[0][column]}"


def test_each_row_of_the_table_is_checked() -> None:
    assert [row[0] for row in rows() if not any(row[0].startswith(begins) for begins, *_ in FIGURES)] == []


@pytest.mark.parametrize(
    ("name", "of_kinds", "least", "kinds"),
    [("kinds", 12, 95, 10), ("kinds_20000", 12, 98, 11), ("shapes", 15, 96, 13), ("shapes_20000", 8, 99, 8)],
)
def test_as_many_kinds_are_as_precise_as_the_page_says(name: str, of_kinds: int, least: float, kinds: int) -> None:
    of = [claim["ours"] for key, claim in claims(name).items() if re.fullmatch(r"precision of \w+", key)]
    assert (len(of), sum(each >= least for each in of)) == (of_kinds, kinds)
