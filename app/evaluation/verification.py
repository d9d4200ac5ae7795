"""How well embeddings tell people apart: 10-fold verification and rank-1 identification.

Letters: N images, D embedding size, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLDS = 10
FOLDS_SEED = 0  # folds belong to the data set, not to a run: every run is measured on the same ones

Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """P pairs of images, each dealt into one of `FOLDS` folds; every fold has its share of both kinds."""

    left: NDArray[np.int64]  # [P]
    right: NDArray[np.int64]  # [P]
    same: NDArray[np.bool_]  # [P]
    fold: NDArray[np.int64]  # [P]


def all_pairs(labels: NDArray[np.int32], seed: int = FOLDS_SEED) -> Pairs:
    """Every pair of images once, P = N (N - 1) / 2: nothing hangs on which pairs were drawn."""
    left, right = np.triu_indices(len(labels), k=1)
    same = labels[left] == labels[right]
    rng = np.random.default_rng(seed)
    fold = np.empty(len(left), np.int64)
    for kind in (True, False):
        places = rng.permutation(np.flatnonzero(same == kind))
        fold[places] = np.arange(len(places)) * FOLDS // len(places)
    return Pairs(left, right, same, fold)


def verification_accuracy(embeddings: Embeddings, pairs: Pairs) -> tuple[float, float]:
    """Mean and standard deviation over folds of the accuracy at the threshold that is best on the other folds.

    The protocol of LFW (Huang et al. 2007): embeddings [N, D] are compared by cosine. Pairs of one person and pairs of
    two weigh the same however many there are, so 50 % is chance; in LFW's own list there are as many of each.
    """
    unit = normalise(embeddings)
    score = (unit @ unit.T)[pairs.left, pairs.right]  # N x N: pairs laid out by themselves would be N x N x D
    accuracies = []
    for fold, threshold in enumerate(fold_thresholds(score, pairs)):
        test = pairs.fold == fold
        accuracies.append(balanced_accuracy(score[test], pairs.same[test], threshold))
    return float(np.mean(accuracies)), float(np.std(accuracies))


def fold_thresholds(score: NDArray[np.float32], pairs: Pairs) -> list[float]:
    """For each fold, the threshold on scores [P] that is best on the other folds."""
    return [best_threshold(score[pairs.fold != fold], pairs.same[pairs.fold != fold]) for fold in range(FOLDS)]


def balanced_accuracy(score: NDArray[np.float32], same: NDArray[np.bool_], threshold: float) -> float:
    """Mean of the shares judged rightly among pairs of one person and among pairs of two."""
    right = (score >= threshold) == same
    return float((right[same].mean() + right[~same].mean()) / 2)


def best_threshold(score: NDArray[np.float32], same: NDArray[np.bool_]) -> float:
    """The threshold t for which `score >= t` has the best balanced accuracy; midway between two scores."""
    order = np.argsort(-score, kind="stable")
    sorted_score, sorted_same = score[order], same[order]
    # gain[i]: what calling the i highest scores the same person wins in both shares together.
    gain = np.concatenate([[0.0], np.cumsum(np.where(sorted_same, 1 / same.sum(), -1 / (~same).sum()))])
    gain[1:-1][sorted_score[1:] == sorted_score[:-1]] = -np.inf  # no threshold lies between equal scores
    edges = np.concatenate([[np.inf], (sorted_score[:-1] + sorted_score[1:]) / 2, [-np.inf]])
    return float(edges[np.argmax(gain)])


def rank1(embeddings: Embeddings, labels: NDArray[np.int32]) -> float:
    """Share of images whose nearest other image shows the same person (people with one image are left out)."""
    unit = normalise(embeddings)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    nearest = labels[np.argmax(cosine, axis=1)]
    answerable = np.bincount(labels)[labels] > 1
    return float((nearest == labels)[answerable].mean())


def normalise(embeddings: Embeddings) -> Embeddings:
    """Rows [N, D] to unit length; a zero row stays zero."""
    norm = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(norm, 1e-12)


def enough(labels: NDArray[np.int32]) -> bool:
    """Whether the labels give at least a pair of each kind for every fold."""
    sizes = np.bincount(labels, minlength=1)
    same = int((sizes * (sizes - 1) // 2).sum())
    return same >= FOLDS and len(labels) * (len(labels) - 1) // 2 - same >= FOLDS
