"""Exponents of growth: fitted to known powers, and the page shows those of the committed measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import _growth as growth
from benchmarks._claims import RESULTS
from benchmarks._pages import DOCS, as_table, tables_of

SIZES = [10, 40, 100, 1000]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_power_is_found_whatever_its_factor(power: float) -> None:
    for factor in (1e-6, 3.0):
        exponent, between = growth.fitted(SIZES, [factor * n**power for n in SIZES])
        assert [exponent, *between] == pytest.approx([power] * 4)


def test_the_spread_is_that_between_neighbouring_sizes() -> None:
    exponent, between = growth.fitted([1, 10, 100], [1, 10, 1000])
    assert between == pytest.approx([1.0, 2.0])
    assert exponent == pytest.approx(1.5)


def test_the_page_states_the_committed_results() -> None:
    record = json.loads(growth.SECONDS.read_text(encoding="utf-8"))
    claims = json.loads((RESULTS / "growth.json").read_text(encoding="utf-8"))["claims"]
    page = (DOCS / "mining.md").read_text(encoding="utf-8")
    assert tables_of(page, growth.HEAD) == [growth.table(record)], "run: python benchmarks/growth.py --draw"
    assert f"]({growth.PICTURE})" in page
    for claim, name in zip(claims, record["core_seconds"], strict=True):
        exponent, _ = growth.fitted(record["images"], record["core_seconds"][name])
        assert claim["ours"] == pytest.approx(exponent, rel=1e-3), name


def test_the_plot_has_a_line_and_points_for_each_kind(tmp_path: Path) -> None:
    drawn = []
    for kinds in (1, 4):
        series = {f"kind {number}": [float(n) for n in SIZES] for number in range(kinds)}
        growth.draw(SIZES, series, "a machine", tmp_path / "growth.svg")
        drawn.append((tmp_path / "growth.svg").read_text().count('<g id="line2d_'))
    assert drawn[1] - drawn[0] == 3 * 3  # points, a line, and its sample in the legend


def test_tables_are_found_by_their_first_columns() -> None:
    table = as_table(["images", "one", "two"], [["1", "2", "3"], ["4", "5", "6"]])
    assert table == "| images | one | two |\n|---|---|---|\n| 1 | 2 | 3 |\n| 4 | 5 | 6 |"
    other = table.replace("images", "others")
    assert tables_of(f"before\n\n{other}\n\n{table}\n\nafter\n", ["images", "one"]) == [table]
