"""The verdict, stable numbers (as properties), measures computed by hand, and the contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app.config import NO_ID, MiningConfig
from app.mining.contact_sheet import contact_sheet
from app.mining.gate import bcubed_f, churn, effective_rank, histogram, judge, keep_ids, pair_f, pair_precision, purity

NEW = np.full(100, NO_ID)


def test_the_judge_refuses_too_little_too_large_and_too_new_and_says_why() -> None:
    config = MiningConfig(min_coverage=0.1, max_largest_share=0.3, max_churn=0.5)
    few = judge(np.array([0, 0, *[NO_ID] * 98]), NEW, None, config, floor=0.5)
    assert not few.accepted
    assert "2.0%" in few.why
    one = judge(np.zeros(100, np.int64), NEW, None, config, floor=0.5)
    assert not one.accepted
    assert "100 of 100" in one.why
    good = np.arange(100) // 5
    other = judge(good + 20, np.where(np.arange(100) < 40, good, good + 20), None, config, floor=0.5)
    assert (other.accepted, other.churn) == (True, 0.4)
    other = judge(good + 20, good, None, config, floor=0.5)
    assert not other.accepted
    assert "100.0%" in other.why


def test_the_report_counts_and_can_be_written_as_json() -> None:
    found = np.array([7, 7, 3, 3, 3, 9, 9, 9, 9, NO_ID])
    labels = np.array([0, 0, 1, 1, 2, 3, 3, 3, 3, 3], np.int32)
    report = judge(found, found, labels, MiningConfig(max_largest_share=1), floor=0.5, recall=0.9999, unusable=1)
    assert json.loads(json.dumps(report.as_dict())) == {
        "count": 3,
        "coverage": 0.9,
        "largest": 4,
        "median": 3.0,
        "size_95": pytest.approx(3.9),
        "sizes": {"2-3": 2, "4-7": 1},
        "churn": 0.0,
        "purity": pytest.approx(8 / 9),
        "pair_f": pytest.approx(2 * 8 / (10 + 12)),
        "cosine": None,
        "floor": 0.5,
        "search": "exact",
        "recall": 0.9999,
        "unusable": 1,
        "offset": 0.0,
        "shared": 0,
        "silhouette": 0.0,
        "separated": 0.0,
        "cut": 0,
        "left_out": 0,
        "loose": {},
        "alike": {},
        "accepted": True,
        "why": "",
    }


def test_no_clusters_at_all_can_be_reported() -> None:
    report = judge(NEW, NEW, np.zeros(100, np.int32), MiningConfig(), floor=0.5)
    assert (report.count, report.largest, report.median, report.sizes, report.churn) == (0, 0, 0.0, {}, None)
    assert not report.accepted


def test_purity_counts_the_commonest_label() -> None:
    assert purity(np.array([0, 0, 0, 1, 1]), np.array([5, 5, 6, 7, 7], np.int32)) == pytest.approx(4 / 5)
    assert purity(np.array([], np.int64), np.array([], np.int32)) == 1.0


def test_sizes_are_counted_by_powers_of_two() -> None:
    assert histogram(np.array([2, 3, 4, 7, 8, 72])) == {"2-3": 2, "4-7": 2, "8-15": 1, "64-127": 1}


def test_churn_is_what_does_not_keep_its_number() -> None:
    assert churn(np.array([0, 0, 1, 1, NO_ID]), np.array([0, NO_ID, 1, 2, 3])) == 0.5
    assert churn(NEW, NEW) is None


numbers = st.lists(st.integers(-1, 6), min_size=1, max_size=40).map(np.array)


@given(numbers, numbers)
def test_pair_f_is_that_of_all_pairs(found: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    n = min(len(found), len(labels))
    pairs = [(a, b) for a in range(n) for b in range(a)]
    same = {(a, b) for a, b in pairs if found[a] == found[b] != NO_ID}
    true = {(a, b) for a, b in pairs if labels[a] == labels[b]}
    expected = 2 * len(same & true) / (len(same) + len(true)) if same or true else 1.0
    assert pair_f(found[:n], labels[:n].astype(np.int32)) == pytest.approx(expected)


@given(numbers)
def test_the_same_clusters_keep_their_numbers(previous: NDArray[np.int64]) -> None:
    assert np.array_equal(keep_ids(previous, previous), previous)


@given(numbers, numbers, st.permutations(range(7)))
def test_how_clusters_come_numbered_does_not_matter(
    previous: NDArray[np.int64], found: NDArray[np.int64], names: list[int]
) -> None:
    n = min(len(found), len(previous))
    renamed = np.where(found == NO_ID, NO_ID, np.array(names)[found])
    assert np.array_equal(keep_ids(previous[:n], found[:n]), keep_ids(previous[:n], renamed[:n]))


@given(numbers, numbers)
def test_renumbering_changes_no_cluster_and_new_numbers_are_unused(
    previous: NDArray[np.int64], found: NDArray[np.int64]
) -> None:
    n = min(len(found), len(previous))
    previous, found = previous[:n], found[:n]
    kept = keep_ids(previous, found)
    assert np.array_equal(kept == NO_ID, found == NO_ID)
    assert np.array_equal(kept[:, None] == kept, found[:, None] == found)
    fresh = sorted({*kept.tolist()} - {*previous.tolist(), NO_ID})
    assert fresh == list(range(previous.max() + 1, previous.max() + 1 + len(fresh)))


@given(st.lists(st.integers(3, 12), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_a_cluster_that_loses_a_minority_keeps_its_number(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    previous = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    found = previous + 100
    for cluster, size in enumerate(sizes):
        leaves = rng.choice(np.flatnonzero(previous == cluster), rng.integers(0, (size + 1) // 2), replace=False)
        found[leaves] = rng.choice([NO_ID, *range(200, 204)], len(leaves))  # to no cluster, or to others
    kept = keep_ids(previous, found)
    stayed = found >= 100
    stayed &= found < 200
    assert np.array_equal(kept[stayed], previous[stayed])


def test_of_two_clusters_that_became_one_the_larger_gives_its_number_then_the_smaller_number() -> None:
    one = np.zeros(9, np.int64)
    assert set(keep_ids(np.array([4, 4, 4, 4, 2, 2, 2, 1, 1]), one).tolist()) == {4}
    assert set(keep_ids(np.array([4, 4, 4, 4, 2, 2, 2, 2, 1]), one).tolist()) == {2}


def test_halves_of_a_cluster_are_both_new() -> None:
    assert keep_ids(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1])).tolist() == [1, 1, 2, 2]


def test_the_sheet_shows_faces_and_reads_only_those(tmp_path: Path) -> None:
    images = np.zeros((300, 112, 112, 3), np.uint8)
    images[250:] = 255
    rows = np.arange(50, 300)  # the first 50 are not mined
    pseudo_ids = np.where(np.arange(250) < 200, np.arange(250) // 8, NO_ID)
    report = judge(pseudo_ids, np.full(250, NO_ID), None, MiningConfig(), floor=0.5)
    contact_sheet(tmp_path / "a.png", images, rows, pseudo_ids, 0, report)
    with Image.open(tmp_path / "a.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] < 900
    assert (pixels == 0).all(2).sum() == 18 * 8 * 56 * 56  # 18 clusters of 8 dark faces each, none of the bright ones
    contact_sheet(tmp_path / "b.png", images, rows, pseudo_ids, 0, report)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_sheet_begins_with_the_doubtful_clusters_and_frames_other_people(tmp_path: Path) -> None:
    images = np.full((60, 112, 112, 3), 128, np.uint8)
    ids, labels = np.arange(60) // 10, (np.arange(60) // 10).astype(np.int32)
    labels[3] = labels[57] = 9
    report = judge(ids, np.full(60, NO_ID), labels, MiningConfig(), floor=0.5, loose={"5": 0.1}, alike={"1 2": 0.7})
    contact_sheet(tmp_path / "a.png", images, np.arange(60), ids, 0, report, labels=labels)
    with Image.open(tmp_path / "a.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    edge = 56**2 - (56 - 2 * 3) ** 2
    framed = (pixels == (200, 30, 30)).all(2)
    assert framed.sum() == 2 * edge
    assert framed[: 16 + 3 * 18 + 34 + 56].sum() == edge  # one in the first row, the most doubtful cluster
    assert (pixels == 128).all(2).sum() == 60 * 56 * 56 - 2 * edge  # no cluster is shown twice

    refused = judge(ids, np.full(60, NO_ID), labels, MiningConfig(max_largest_share=0.1), floor=0.5)
    contact_sheet(tmp_path / "b.png", images, np.arange(60), ids, 0, refused)
    with Image.open(tmp_path / "b.png") as sheet:
        assert (np.asarray(sheet)[:60] == (200, 30, 30)).all(2).any()  # the reason, in red


def test_a_sheet_without_clusters_says_so(tmp_path: Path) -> None:
    none, labels = np.full(3, NO_ID), np.zeros(3, np.int32)
    report = judge(none, none, labels, MiningConfig(), floor=0.5)
    assert report.purity is None  # of no image
    contact_sheet(
        tmp_path / "b.png", np.zeros((3, 112, 112, 3), np.uint8), np.arange(3), none, 0, report, labels=labels
    )
    with Image.open(tmp_path / "b.png") as sheet:
        pixels = np.asarray(sheet)
    assert (pixels.min(2) < 100)[-34:].any()  # the text below the head
    assert not (pixels.min(2) < 200)[-6:].any()  # is whole


def test_a_collapse_is_refused_and_nan_fails_every_guard() -> None:
    good, config = np.arange(100) // 5, MiningConfig()
    for changes, word in (({"spread": np.nan}, "rank"), ({"spread": 1.0}, "rank"), ({"distinct": np.nan}, "copies")):
        verdict = judge(good, NEW, None, config, floor=0.5, **changes)
        assert not verdict.accepted
        assert word in verdict.why
    empty = judge(NEW[:0], NEW[:0], None, config, floor=0.5)
    assert (empty.accepted, empty.coverage) == (False, 0.0)
    assert judge(good, NEW, None, config, floor=0.5, spread=5.0).accepted


def test_effective_rank_counts_directions() -> None:
    rng = np.random.default_rng(0)
    equal = np.tile(np.float32([0.6, 0.8]), (50, 1))
    assert effective_rank(equal) == 0
    assert effective_rank(equal[:0]) == 0
    line = equal + rng.normal(size=(50, 1)).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(rng.normal(size=(4000, 8)).astype(np.float32)) == pytest.approx(8, rel=0.05)
    assert not effective_rank(equal * np.nan) >= 0


def test_bcubed_and_precision_by_hand() -> None:
    found, labels = np.array([0, 0, 0, NO_ID]), np.array([5, 5, 7, 7], np.int32)
    assert pair_precision(found, labels) == pytest.approx(1 / 3)
    precision, recall = (2 / 3 + 2 / 3 + 1 / 3 + 1) / 4, (1 + 1 + 1 / 2 + 1 / 2) / 4
    assert bcubed_f(found, labels) == pytest.approx(2 * precision * recall / (precision + recall))
    assert bcubed_f(found[:0], labels[:0]) == pair_precision(found[:0], labels[:0]) == 1.0


def test_images_whose_person_is_unknown_are_not_one_person() -> None:
    found = np.array([0, 0, 0, 1, 1, 2, 2, NO_ID])
    labels = np.array([4, 4, -1, 5, 6, -1, -1, -1], np.int32)
    known = labels >= 0
    report = judge(found, found, labels, MiningConfig(max_largest_share=1), floor=0.5)
    assert report.purity == purity(found[known], labels[known]) == pytest.approx(3 / 4)
    assert report.pair_f == pair_f(found[known], labels[known])
    nobody = judge(found, found, np.full(8, -1, np.int32), MiningConfig(max_largest_share=1), floor=0.5)
    assert (nobody.purity, nobody.pair_f) == (None, None)
