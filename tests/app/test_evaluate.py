"""Verification and identification against versions slow enough to be obviously right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.evaluate import FOLDS, best_threshold, draw_pairs, enough, rank1, verification_accuracy

LABELS = np.repeat(np.arange(8, dtype=np.int32), 6)


@given(
    scores=st.lists(st.integers(-6, 6), min_size=1, max_size=25),
    seed=st.integers(0, 100),
)
def test_the_best_threshold_is_the_best_of_all_thresholds(scores: list[int], seed: int) -> None:
    score = np.array(scores, np.float32) / 6
    same = np.random.default_rng(seed).random(len(score)) < 0.5

    def accuracy(threshold: float) -> float:
        return float(((score >= threshold) == same).mean())

    best = max(accuracy(t) for t in [*score, np.inf, -np.inf])
    # Equal scores cannot be told apart, so a threshold between them is as good as at them.
    assert accuracy(best_threshold(score, same)) == pytest.approx(best)


def test_pairs_are_balanced_distinct_and_in_equal_folds() -> None:
    pairs = draw_pairs(LABELS)
    assert pairs.same.sum() * 2 == len(pairs.same) == 8 * 15 * 2
    assert np.array_equal(LABELS[pairs.left] == LABELS[pairs.right], pairs.same)
    assert len({(a, b) for a, b in zip(pairs.left, pairs.right, strict=True)}) == len(pairs.left)
    assert (np.bincount(pairs.fold) == len(pairs.fold) // FOLDS).all()
    again = draw_pairs(LABELS)
    assert np.array_equal(pairs.left, again.left)


def test_perfect_and_meaningless_embeddings_score_as_they_should() -> None:
    pairs = draw_pairs(LABELS)
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
    pairs = draw_pairs(LABELS)
    assert verification_accuracy(x, pairs)[0] == pytest.approx(verification_accuracy(scaled, pairs)[0])


def test_the_threshold_of_a_fold_does_not_see_that_fold() -> None:
    pairs = draw_pairs(LABELS)
    rng = np.random.default_rng(5)
    x = (np.eye(8)[LABELS] + 0.9 * rng.normal(size=(48, 8))).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    score = (unit[pairs.left] * unit[pairs.right]).sum(1)
    tuned_on_test = max(float(((score >= t) == pairs.same).mean()) for t in score)
    assert verification_accuracy(x, pairs)[0] <= tuned_on_test


def test_too_few_people_or_images_are_not_measured() -> None:
    assert enough(LABELS)
    assert not enough(np.zeros(30, np.int32))
    assert not enough(np.arange(30, dtype=np.int32))
    assert not enough(np.array([], np.int32))
