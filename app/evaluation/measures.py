"""What scores of pairs are worth: the numbers that publications give, computed in O(P log P).

Distances are squared and Euclidean between unit embeddings, 0 to 4, as in the published protocol; a score is higher
for pairs that are more alike.

Letters: P pairs, T thresholds, Q points of a curve.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.errors import WrongUse
from app.evaluation.verification import FOLDS

Numbers = NDArray[np.float64]
Answers = NDArray[np.bool_]
Folds = NDArray[np.int64]

ACCURACY_STEP, TAR_STEP = 0.01, 0.001  # between the thresholds that are tried


def folds_of(same: Answers, what: str) -> Folds:
    """The fold of each pair [P]: ten tenths in the file's order, as published sets are made to be cut.

    Where a tenth would lack one kind, as when a list is sorted by its labels, the pairs of each kind are cut into
    tenths. Raises WrongUse, naming `what`, when there are fewer than ten of a kind.
    """
    for kind, name in ((True, "one person"), (False, "two people")):
        count = int((same == kind).sum())
        if count < FOLDS:
            raise WrongUse(f"{what} has {count} pairs of {name}; it needs at least {FOLDS} of each kind to be measured")
    tenths = np.array_split(np.arange(len(same)), FOLDS)
    fold = np.empty(len(same), np.int64)
    if all(0 < same[tenth].sum() < len(tenth) for tenth in tenths):
        for number, tenth in enumerate(tenths):
            fold[tenth] = number
        return fold
    for kind in (True, False):
        places = np.flatnonzero(same == kind)
        fold[places] = np.arange(len(places)) * FOLDS // len(places)
    return fold


def accuracy_10_fold(distance: Numbers, same: Answers, fold: Folds) -> tuple[float, float, float]:
    """Mean and standard deviation over folds of the accuracy at the threshold that is best on the other nine, and the
    mean of these thresholds.

    Thresholds are 0, .01, … below 4, the lowest of the best is taken, and a pair counts as one person below it.
    """
    thresholds = np.arange(0, 4, ACCURACY_STEP)
    accepted, rejected = _counts(distance, same, fold, thresholds)
    right = accepted + rejected  # [FOLDS, T]
    best = np.argmax(right.sum(0) - right, axis=1)
    accuracy = right[np.arange(FOLDS), best] / np.bincount(fold, minlength=FOLDS)
    return float(accuracy.mean()), float(accuracy.std()), float(thresholds[best].mean())


def tar_at_far_10_fold(distance: Numbers, same: Answers, fold: Folds, far: float = 1e-3) -> tuple[float, float, float]:
    """Mean and standard deviation over folds of the true accept rate, and the mean false accept rate that was met.

    The threshold of a fold is where the false accept rate on the other nine reaches `far`, interpolated linearly
    between thresholds .001 apart; 0, which accepts no pair, where it never does.
    """
    thresholds = np.arange(0, 4, TAR_STEP)
    _, rejected = _counts(distance, same, fold, thresholds)
    of_two = np.bincount(fold[~same], minlength=FOLDS)[:, None]  # [FOLDS, 1]
    wrong = of_two - rejected  # [FOLDS, T] pairs of two people that are accepted
    tars, fars = [], []
    for number in range(FOLDS):
        others = np.arange(FOLDS) != number
        threshold = _where_reached(wrong[others].sum(0) / of_two[others].sum(), thresholds, far)
        accepted, test = distance < threshold, fold == number
        tars.append(accepted[test & same].mean())
        fars.append(accepted[test & ~same].mean())
    return float(np.mean(tars)), float(np.std(tars)), float(np.mean(fars))


def _counts(distance: Numbers, same: Answers, fold: Folds, thresholds: Numbers) -> tuple[Folds, Folds]:
    """By fold and threshold [FOLDS, T]: pairs of one person below the threshold, pairs of two people not below it."""
    accepted, rejected = (np.empty((FOLDS, len(thresholds)), np.int64) for _ in range(2))
    for number in range(FOLDS):
        one, two = (np.sort(distance[(fold == number) & (same == kind)]) for kind in (True, False))
        accepted[number] = np.searchsorted(one, thresholds, side="left")
        rejected[number] = len(two) - np.searchsorted(two, thresholds, side="left")
    return accepted, rejected


def _where_reached(rising: Numbers, thresholds: Numbers, wanted: float) -> float:
    """The threshold at which a rising curve reaches `wanted`; 0 where it never does."""
    place = int(np.searchsorted(rising, wanted, side="left"))
    if place == len(rising):
        return 0.0
    if place == 0:
        return float(thresholds[0])
    low, high = rising[place - 1], rising[place]
    return float(thresholds[place - 1] + (wanted - low) / (high - low) * (thresholds[place] - thresholds[place - 1]))


def accuracy_tuned_on_test(score: Numbers, same: Answers) -> tuple[float, float]:
    """The best accuracy of `score >= t` over every score as t, and that t.

    Optimistic: it is measured on the very pairs that it is tuned on.
    """
    thresholds, wrong, right = _accepted(score, same)
    correct = right[1:] + int((~same).sum()) - wrong[1:]
    best = int(np.argmax(correct))
    return float(correct[best] / len(same)), float(thresholds[1 + best])


def threshold_at_far(score: Numbers, same: Answers, far: float) -> float:
    """The lowest score t for which `score >= t` accepts at most this share of the pairs of two people.

    Infinite where even the highest score accepts more.
    """
    thresholds, wrong, _ = _accepted(score, same)
    return float(thresholds[np.flatnonzero(wrong <= far * wrong[-1])[-1]])


def roc(score: Numbers, same: Answers) -> tuple[Numbers, Numbers]:
    """False and true accept rates [Q] at every threshold that separates two scores, from (0, 0) to (1, 1)."""
    _, wrong, right = _accepted(score, same)
    return wrong / wrong[-1], right / right[-1]


def _accepted(score: Numbers, same: Answers) -> tuple[Numbers, Folds, Folds]:
    """Thresholds from high to low, and how many pairs of two people and of one each accepts; first one for none."""
    order = np.argsort(-score, kind="stable")
    ordered, answers = score[order], same[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(score) - 1)  # of equal scores: none lies between
    right = np.cumsum(answers)[last]
    return (
        np.append(np.inf, ordered[last]),
        np.append(0, last + 1 - right),
        np.append(0, right),
    )


def area(far: Numbers, tar: Numbers) -> float:
    """The area under a ROC curve (AUC): the chance that a pair of one person scores above a pair of two."""
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))


def tar_at_far(far: Numbers, tar: Numbers, wanted: float) -> float:
    """The true accept rate at the false accept rate nearest to `wanted` (of two equally near the higher), the largest
    there is at that rate: the protocol of IJB-B and IJB-C."""
    distance = np.abs(far - wanted)
    return float(tar[np.flatnonzero(distance == distance.min())[-1]])
