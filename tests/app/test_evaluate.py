"""Verification and identification against versions slow enough to be obviously right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.evaluation.verification import (
    FOLDS,
    all_pairs,
    balanced_accuracy,
    best_threshold,
    enough,
    rank1,
    verification_accuracy,
)

LABELS = np.repeat(np.arange(8, dtype=np.int32), 6)


@given(scores=st.lists(st.integers(-6, 6), min_size=2, max_size=25), seed=st.integers(0, 100))
def test_the_best_threshold_is_the_best_of_all_thresholds(scores: list[int], seed: int) -> None:
    score = np.array(scores, np.float32) / 6
    same = np.random.default_rng(seed).random(len(score)) < 0.5
    same[:2] = True, False  # some of each kind
    best = max(balanced_accuracy(score, same, t) for t in [*score, np.inf, -np.inf])
    assert balanced_accuracy(score, same, best_threshold(score, same)) == pytest.approx(best)


def test_every_pair_comes_once_and_every_fold_has_its_share_of_both_kinds() -> None:
    pairs = all_pairs(LABELS)
    assert len({(a, b) for a, b in zip(pairs.left, pairs.right, strict=True)}) == 48 * 47 // 2
    assert np.array_equal(LABELS[pairs.left] == LABELS[pairs.right], pairs.same)
    for kind, total in ((True, 8 * 15), (False, 48 * 47 // 2 - 8 * 15)):
        sizes = np.bincount(pairs.fold[pairs.same == kind])
        assert len(sizes) == FOLDS
        assert abs(sizes - total / FOLDS).max() < 1
    assert np.array_equal(pairs.fold, all_pairs(LABELS).fold)


def test_the_rarer_kind_weighs_as_much_as_the_other() -> None:
    same = np.array([True] * 2 + [False] * 98)
    assert balanced_accuracy(np.zeros(100, np.float32), same, 1.0) == 0.5
    assert balanced_accuracy(np.array([1, 0] + [0] * 98, np.float32), same, 0.5) == 0.75


def test_perfect_and_meaningless_embeddings_score_as_they_should() -> None:
    pairs = all_pairs(LABELS)
    perfect = np.eye(8, dtype=np.float32)[LABELS]
    assert verification_accuracy(perfect, pairs) == (1.0, 0.0)
    noise = np.random.default_rng(0).normal(size=(len(LABELS), 64)).astype(np.float32)
    assert 0.35 < verification_accuracy(noise, pairs)[0] < 0.65
    assert rank1(perfect, LABELS) == 1.0
    assert rank1(noise, LABELS) < 0.4


def test_the_length_of_an_embedding_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    x = (np.eye(8)[LABELS] + 0.8 * rng.normal(size=(48, 8))).astype(np.float32)
    scaled = x * rng.uniform(0.1, 10, (48, 1)).astype(np.float32)
    pairs = all_pairs(LABELS)
    assert verification_accuracy(x, pairs)[0] == pytest.approx(verification_accuracy(scaled, pairs)[0])


def test_the_threshold_of_a_fold_does_not_see_that_fold() -> None:
    pairs = all_pairs(LABELS)
    rng = np.random.default_rng(5)
    x = (np.eye(8)[LABELS] + 0.9 * rng.normal(size=(48, 8))).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    score = (unit[pairs.left] * unit[pairs.right]).sum(1)
    tuned_on_test = max(balanced_accuracy(score, pairs.same, t) for t in score)
    assert verification_accuracy(x, pairs)[0] <= tuned_on_test


def test_too_few_people_or_images_are_not_measured() -> None:
    assert enough(LABELS)
    assert not enough(np.zeros(30, np.int32))
    assert not enough(np.arange(30, dtype=np.int32))
    assert not enough(np.array([], np.int32))


def test_pairs_of_long_vectors_take_no_memory_of_their_own() -> None:
    """180,000 pairs of vectors as long as an image: laid out pair by pair they would take 27 GB."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(75, dtype=np.int32), 8)
    people = rng.normal(size=(75, 64)).astype(np.float32)
    long = np.tile(people[labels] + rng.normal(size=(600, 64)).astype(np.float32), (1, 588))
    accuracy, _ = verification_accuracy(long, all_pairs(labels))
    assert 0.9 < accuracy <= 1.0
