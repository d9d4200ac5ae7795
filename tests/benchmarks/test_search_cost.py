"""The table of costs in docs/mining.md is what benchmarks/_search_cost.py computes."""

from __future__ import annotations

import json

import pytest

from benchmarks import _search_cost as search_cost
from benchmarks._claims import RESULTS
from benchmarks._pages import tables_of
from deploy.specs import mining
from deploy.specs.estimate import rough


def test_the_page_has_the_table_of_the_script() -> None:
    page = search_cost.PAGE.read_text(encoding="utf-8")
    assert tables_of(page, search_cost.HEAD) == [search_cost.table()], "run: python benchmarks/_search_cost.py --write"


def test_all_pairs_are_two_operations_for_each_number_of_a_pair() -> None:
    assert mining.operations("exact", 1000, 512) == 2 * 1000 * 1000 * 512
    # 24 images a cell, of which 8 train the centres, twice
    assert mining.operations("ivf", 2400, 512) == pytest.approx(2 * 100 * (2400 + 2 * 800) * 512)


def test_the_rates_of_one_core_are_those_of_the_committed_results() -> None:
    claim = json.loads((RESULTS / "search_large.json").read_text(encoding="utf-8"))["claims"][0]
    assert f"N={mining.AMONG:,}, D={mining.NUMBERS}," in claim["name"]
    assert {"exact": claim["peer"], "ivf": claim["ours"]} == mining.QUERIES


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.087, "0.087 s"), (59.4, "59 s"), (61, "1 min"), (4682, "78 min"), (9266, "2.6 h"), (11_600_000, "130 days")],
)
def test_a_duration_has_two_digits_and_a_unit_that_suits(seconds: float, text: str) -> None:
    assert rough(seconds) == text
