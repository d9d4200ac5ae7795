"""10-fold verification accuracy and rank-1 identification from embeddings.

Letters: N images, D embedding size, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 10
FOLDS_SEED = 0  # fixed, so that every run is measured on the same folds

Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """P pairs of images in `FOLDS` folds; every fold has its share of both kinds."""

    left: NDArray[np.int64]  # [P]
    right: NDArray[np.int64]  # [P]
    same: NDArray[np.bool_]  # [P]
    fold: NDArray[np.int64]  # [P]


def all_pairs(labels: NDArray[np.int32]) -> Pairs:
    """Every pair of images once, P = N (N - 1) / 2, so that results do not depend on a choice of pairs."""
    left, right = np.triu_indices(len(labels), k=1)
    same = labels[left] == labels[right]
    rng = np.random.default_rng(FOLDS_SEED)
    fold = np.empty(len(left), np.int64)
    for kind in (True, False):
        places = rng.permutation(np.flatnonzero(same == kind))
        fold[places] = np.arange(len(places)) * FOLDS // len(places)
    return Pairs(left, right, same, fold)


def verification_accuracy(embeddings: Embeddings, pairs: Pairs) -> tuple[float, float]:
    """Mean and standard deviation over folds of the accuracy at the threshold that is best on the other folds.

    The protocol of LFW (Huang et al. 2007): embeddings [N, D] are compared by cosine. Pairs of one person and pairs of
    two people have the same total weight, whatever their numbers, so 50 % is chance. LFW's own list has equal numbers.
    """
    score = pair_scores(embeddings, pairs)
    return accuracy_over_folds(score, pairs, fold_thresholds(score, pairs))


def pair_scores(embeddings: Embeddings, pairs: Pairs) -> NDArray[np.float32]:
    """Cosines [P] of the pairs of embeddings [N, D]."""
    unit = normalise(embeddings)
    return (unit @ unit.T)[pairs.left, pairs.right]  # needs N x N; the embeddings of all pairs would need N x N x D


def accuracy_over_folds(score: NDArray[np.float32], pairs: Pairs, thresholds: list[float]) -> tuple[float, float]:
    """Mean and standard deviation of the balanced accuracy of scores [P] on each fold at its threshold."""
    accuracies = []
    for fold, threshold in enumerate(thresholds):
        test = pairs.fold == fold
        accuracies.append(balanced_accuracy(score[test], pairs.same[test], threshold))
    return float(np.mean(accuracies)), float(np.std(accuracies))


def fold_thresholds(score: NDArray[np.float32], pairs: Pairs) -> list[float]:
    """For each fold, the threshold on scores [P] that is best on the other folds."""
    return [best_threshold(score[pairs.fold != fold], pairs.same[pairs.fold != fold]) for fold in range(FOLDS)]


def balanced_accuracy(score: NDArray[np.float32], same: NDArray[np.bool_], threshold: float) -> float:
    """Mean of the accuracies on pairs of one person and on pairs of two people."""
    right = (score >= threshold) == same
    return float((right[same].mean() + right[~same].mean()) / 2)


def best_threshold(score: NDArray[np.float32], same: NDArray[np.bool_]) -> float:
    """The threshold t with the best balanced accuracy of `score >= t`; midway between two scores, or infinite."""
    order = np.argsort(-score, kind="stable")
    sorted_score, sorted_same = score[order], same[order]
    # gain[i]: the change of the summed accuracies if the i highest scores count as one person.
    gain = np.concatenate([[0.0], np.cumsum(np.where(sorted_same, 1 / same.sum(), -1 / (~same).sum()))])
    gain[1:-1][sorted_score[1:] == sorted_score[:-1]] = -np.inf  # no threshold separates equal scores
    edges = np.concatenate([[np.inf], (sorted_score[:-1] + sorted_score[1:]) / 2, [-np.inf]])
    return float(edges[np.argmax(gain)])


def rank1(embeddings: Embeddings, labels: NDArray[np.int32]) -> float:
    """Share of images whose nearest other image shows the same person; see `rank_k`."""
    unit = normalise(embeddings)
    return rank_k(unit @ unit.T, labels, (1,))[0]


def rank_k(cosine: Embeddings, labels: NDArray[np.int32], ranks: Sequence[int]) -> list[float]:
    """For each k, the share of images [N] with an image of the same person among the k most similar other images.

    cosine [N, N]. People with one image are no queries, but they stay in the gallery. Equal scores count against the
    network, so that one with equal embeddings finds nobody.
    """
    same = labels[:, None] == labels[None, :]
    np.fill_diagonal(same, False)
    best = np.where(same, cosine, -np.inf).max(axis=1)
    before = ((cosine >= best[:, None]) & (labels[:, None] != labels[None, :])).sum(axis=1)
    before = before[same.any(axis=1)]
    return [float((before < k).mean()) for k in ranks]


def normalise(embeddings: NDArray[Any]) -> NDArray[Any]:
    """Scale rows [N, D] to unit length; a zero row stays zero."""
    norm = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(norm, 1e-12)


def enough(labels: NDArray[np.int32]) -> bool:
    """Whether the labels give at least one pair of each kind per fold."""
    _, sizes = np.unique(labels, return_counts=True)
    same = int((sizes * (sizes - 1) // 2).sum())
    return same >= FOLDS and len(labels) * (len(labels) - 1) // 2 - same >= FOLDS
