"""The published measures of verification, from the scores of pairs, in O(P log P).

Distances are squared Euclidean between unit embeddings, 0 to 4, as in the published protocol. A score is higher for
more similar pairs.

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

ACCURACY_STEP, TAR_STEP = 0.01, 0.001  # steps between the tested thresholds


def folds_of(same: Answers, what: str) -> Folds:
    """The fold of each pair [P]: ten equal parts in file order, for which published sets are laid out.

    If a part would have only one kind of pair, as in a list sorted by label, the pairs of each kind are split
    separately. Raises WrongUse, naming `what`, for fewer than ten pairs of a kind.
    """
    for kind, name in ((True, "one person"), (False, "two people")):
        count = int((same == kind).sum())
        if count < FOLDS:
            raise WrongUse(f"{what} has too few pairs of {name}: {count}; give at least {FOLDS} of each kind")
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
    """Mean and standard deviation of the accuracy over folds, and the mean threshold.

    Each fold uses the threshold that is best on the other nine. Thresholds are 0, .01, … below 4; of equally good ones
    the lowest is used. A pair with a distance below the threshold counts as one person.
    """
    thresholds = np.arange(0, 4, ACCURACY_STEP)
    accepted, rejected = _counts(distance, same, fold, thresholds)
    right = accepted + rejected  # [FOLDS, T]
    best = np.argmax(right.sum(0) - right, axis=1)
    accuracy = right[np.arange(FOLDS), best] / np.bincount(fold, minlength=FOLDS)
    return float(accuracy.mean()), float(accuracy.std()), float(thresholds[best].mean())


def tar_at_far_10_fold(distance: Numbers, same: Answers, fold: Folds, far: float) -> tuple[float, float, float]:
    """Mean and standard deviation of the true accept rate over folds, and the mean of the false accept rates.

    A fold's threshold is the point where the false accept rate on the other nine reaches `far`, interpolated linearly
    between thresholds .001 apart. If it never does, the threshold is 0, which accepts no pair.
    """
    thresholds = np.arange(0, 4, TAR_STEP)
    _, rejected = _counts(distance, same, fold, thresholds)
    of_two = np.bincount(fold[~same], minlength=FOLDS)[:, None]  # [FOLDS, 1]
    wrong = of_two - rejected  # [FOLDS, T] accepted pairs of two people
    tars, fars = [], []
    for number in range(FOLDS):
        others = np.arange(FOLDS) != number
        threshold = _where_reached(wrong[others].sum(0) / of_two[others].sum(), thresholds, far)
        accepted, test = distance < threshold, fold == number
        tars.append(accepted[test & same].mean())
        fars.append(accepted[test & ~same].mean())
    return float(np.mean(tars)), float(np.std(tars)), float(np.mean(fars))


def _counts(distance: Numbers, same: Answers, fold: Folds, thresholds: Numbers) -> tuple[Folds, Folds]:
    """Count correct pairs [FOLDS, T]: of one person below the threshold, of two people at or above it."""
    accepted, rejected = (np.empty((FOLDS, len(thresholds)), np.int64) for _ in range(2))
    for number in range(FOLDS):
        one, two = (np.sort(distance[(fold == number) & (same == kind)]) for kind in (True, False))
        accepted[number] = np.searchsorted(one, thresholds, side="left")
        rejected[number] = len(two) - np.searchsorted(two, thresholds, side="left")
    return accepted, rejected


def _where_reached(rising: Numbers, thresholds: Numbers, wanted: float) -> float:
    """The threshold at which a rising curve reaches `wanted`; 0 if it never does."""
    place = int(np.searchsorted(rising, wanted, side="left"))
    if place == len(rising):
        return 0.0
    if place == 0:
        return float(thresholds[0])
    low, high = rising[place - 1], rising[place]
    return float(thresholds[place - 1] + (wanted - low) / (high - low) * (thresholds[place] - thresholds[place - 1]))


def accuracy_tuned_on_test(score: Numbers, same: Answers) -> tuple[float, float]:
    """The best accuracy of `score >= t` over all scores as t, and that t.

    It is optimistic, because it is measured on the pairs it is tuned on.
    """
    thresholds, wrong, right = _accepted(score, same)
    correct = right[1:] + int((~same).sum()) - wrong[1:]
    best = int(np.argmax(correct))
    return float(correct[best] / len(same)), float(thresholds[1 + best])


def threshold_at_far(score: Numbers, same: Answers, far: float) -> float:
    """The lowest score t for which `score >= t` accepts at most a share `far` of the pairs of two people.

    Infinite if even the highest score accepts more.
    """
    thresholds, wrong, _ = _accepted(score, same)
    return float(thresholds[np.flatnonzero(wrong <= far * wrong[-1])[-1]])


def roc(score: Numbers, same: Answers) -> tuple[Numbers, Numbers]:
    """False and true accept rates [Q] at every distinct score as threshold, from (0, 0) to (1, 1)."""
    _, wrong, right = _accepted(score, same)
    return wrong / wrong[-1], right / right[-1]


def _accepted(score: Numbers, same: Answers) -> tuple[Numbers, Folds, Folds]:
    """Descending thresholds, and the accepted pairs of two people and of one person; the first accepts none."""
    order = np.argsort(-score, kind="stable")
    ordered, answers = score[order], same[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(score) - 1)  # equal scores share one threshold
    right = np.cumsum(answers)[last]
    return (
        np.append(np.inf, ordered[last]),
        np.append(0, last + 1 - right),
        np.append(0, right),
    )


def area(far: Numbers, tar: Numbers) -> float:
    """The area under a ROC curve (AUC): the probability that a pair of one person scores above a pair of two people."""
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))


def highest_tar(far: Numbers, tar: Numbers, rates: Numbers) -> Numbers:
    """Read a ROC curve as a step function: at each of `rates`, the highest true accept rate at this FAR or below."""
    return tar[np.maximum(np.searchsorted(far, rates * (1 + 1e-9), side="right") - 1, 0)]


def tar_at_far(far: Numbers, tar: Numbers, wanted: float) -> float:
    """The highest true accept rate at the false accept rate nearest to `wanted`, as in the protocol of IJB-B and IJB-C.

    Of two equally near rates the higher one counts.
    """
    distance = np.abs(far - wanted)
    return float(tar[np.flatnonzero(distance == distance.min())[-1]])
