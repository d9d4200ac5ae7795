"""What is asked of the embeddings of a set: pairs of images, all pairs of some people's images, pairs of templates.

Each pair is scored once, by one of the processes; the numbers are computed on the main one.

Letters: N images, D embedding size, P pairs, T templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.data.dataset import Rows
from app.evaluation import measures
from app.evaluation.measures import Answers, Folds, Numbers
from app.evaluation.threshold import FARS, Threshold, Thresholds, at_rates, impostors_needed
from app.evaluation.verification import (
    FOLDS,
    Embeddings,
    Pairs,
    all_pairs,
    best_threshold,
    fold_thresholds,
    normalise,
    verification_accuracy,
)
from app.runtime.dist import World, gather_rows, share

IJB_MAIN_FAR = 1e-4
FOLD_FAR = 1e-3
RANKS = (1, 5, 20)
PAIRS_AT_ONCE = 16384


@dataclass(frozen=True)
class Outcome:
    """The numbers by name (None: too few pairs to measure it), the name of the one that ranks, the ROC curve, and the
    thresholds by what they were chosen for.
    """

    numbers: Mapping[str, float | None]
    headline: str
    far: Numbers
    tar: Numbers
    thresholds: Thresholds = field(default_factory=dict)


class SetProtocol(Protocol):
    @property
    def pairs(self) -> int:
        """How many pairs are judged."""

    @property
    def measure(self) -> str:
        """What the number that ranks is called: only numbers of one name can be averaged."""

    def too_few(self) -> dict[str, int]:
        """Numbers that these pairs cannot show, and how many pairs of two people each needs."""

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        """The outcome for embeddings [N, D] that are finite and not normalised; None on all but the main process."""


@dataclass(frozen=True)
class PairList:
    """P given pairs of images, with the published measures of LFW and its like."""

    left: Rows
    right: Rows
    same: Answers
    fold: Folds

    @property
    def pairs(self) -> int:
        return len(self.same)

    @property
    def measure(self) -> str:
        return "10-fold accuracy"

    def too_few(self) -> dict[str, int]:
        # The threshold of a fold is found on the other nine.
        needed = -(-impostors_needed(FOLD_FAR) * FOLDS // (FOLDS - 1))
        return {"tar_at_far_1e-3": needed} if (~self.same).sum() < needed else {}

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        distance = squared_distances(embeddings, self.left, self.right, here)
        if not here.is_main:
            return None
        far, tar = measures.roc(-distance, self.same)
        accuracy, accuracy_std, of_folds = measures.accuracy_10_fold(distance, self.same, self.fold)
        tuned, of_test = measures.accuracy_tuned_on_test(-distance, self.same)
        tar_mean, tar_std, far_met = measures.tar_at_far_10_fold(distance, self.same, self.fold, FOLD_FAR)
        measured = not self.too_few()
        numbers = {
            "accuracy": accuracy,
            "accuracy_std": accuracy_std,
            "accuracy_tuned_on_test": tuned,
            "tar_at_far_1e-3": tar_mean if measured else None,
            "tar_at_far_1e-3_std": tar_std if measured else None,
            "tar_at_far_1e-3_far_met": far_met if measured else None,
            "auc": measures.area(far, tar),
        }
        thresholds = {
            "ten_folds": Threshold.of_distance(of_folds),
            "tuned_on_test": Threshold.of_distance(-of_test),
            **at_rates(1 - distance / 2, self.same),
        }
        return Outcome(numbers, "accuracy", far, tar, thresholds)


@dataclass(frozen=True)
class People:
    """Images of labelled people: all their pairs, as while training, and identification of each among the others."""

    labels: NDArray[np.int32]  # [N]

    @property
    def pairs(self) -> int:
        return len(self.labels) * (len(self.labels) - 1) // 2

    @property
    def measure(self) -> str:
        return "balanced 10-fold accuracy"

    def too_few(self) -> dict[str, int]:
        return {}

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        if not here.is_main:
            return None
        pairs: Pairs = all_pairs(self.labels)
        accuracy, accuracy_std = verification_accuracy(embeddings, pairs)
        unit = normalise(embeddings)
        cosine = unit @ unit.T
        score = cosine[pairs.left, pairs.right]
        far, tar = measures.roc(score.astype(np.float64), pairs.same)
        numbers = {
            "accuracy": accuracy,
            "accuracy_std": accuracy_std,
            **{f"rank{k}": value for k, value in zip(RANKS, rank_k(cosine, self.labels, RANKS), strict=True)},
            "auc": measures.area(far, tar),
        }
        chosen = {
            "ten_folds": float(np.mean(fold_thresholds(score, pairs))),
            "tuned_on_test": best_threshold(score, pairs.same),
        }
        thresholds = {name: Threshold(value) for name, value in chosen.items() if np.isfinite(value)}
        return Outcome(numbers, "accuracy", far, tar, {**thresholds, **at_rates(score.astype(np.float64), pairs.same)})


@dataclass(frozen=True)
class Templates:
    """Pairs of templates, each several images and video frames of one person: the 1:1 protocol of IJB-B and IJB-C."""

    template: NDArray[np.int64]  # [N] which template an image belongs to
    media: NDArray[np.int64]  # [N] which photograph or video it is of
    detector_score: NDArray[np.float32]  # [N]
    left: NDArray[np.int64]  # [P] positions among the templates in ascending order
    right: NDArray[np.int64]  # [P]
    same: Answers  # [P]

    @property
    def pairs(self) -> int:
        return len(self.same)

    @property
    def measure(self) -> str:
        return self.headline.replace("tar_at_far_", "TAR at FAR ")

    @property
    def headline(self) -> str:
        """The published one, TAR at FAR 1e-4; of fewer pairs, at the lowest rate above that they can show."""
        names = [rate_name(far) for far in FARS if far >= IJB_MAIN_FAR]
        return next((name for name in names if name not in self.too_few()), "auc")

    def too_few(self) -> dict[str, int]:
        impostors = int((~self.same).sum())
        needed = {rate_name(far): impostors_needed(far) for far in FARS}
        return {name: count for name, count in needed.items() if impostors < count}

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        weighted = embeddings * self.detector_score[:, None]
        score = -squared_distances(pool(weighted, self.template, self.media), self.left, self.right, here)
        if not here.is_main:
            return None
        far, tar = measures.roc(score, self.same)
        rates = {rate_name(wanted): measures.tar_at_far(far, tar, wanted) for wanted in FARS}
        shown = {name: None if name in self.too_few() else rate for name, rate in rates.items()}
        numbers = {**shown, "auc": measures.area(far, tar)}
        return Outcome(numbers, self.headline, far, tar, at_rates(1 + score / 2, self.same))


def rate_name(far: float) -> str:
    """tar_at_far_1e-4 for 0.0001."""
    return f"tar_at_far_1e{round(np.log10(far))}"


def squared_distances(embeddings: Embeddings, left: Rows, right: Rows, here: World) -> Numbers:
    """Squared Euclidean distances [P], 0 to 4, between normalised rows of embeddings [N, D]; each on one process."""
    unit = embeddings.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    own = share(np.arange(len(left)), here)
    distance = np.empty(len(own))
    for start in range(0, len(own), PAIRS_AT_ONCE):
        pairs = own[start : start + PAIRS_AT_ONCE]
        distance[start : start + len(pairs)] = np.square(unit[left[pairs]] - unit[right[pairs]]).sum(1)
    return gather_rows(torch.from_numpy(distance), here).numpy()


def pool(features: Embeddings, template: NDArray[np.int64], media: NDArray[np.int64]) -> Embeddings:
    """Templates [T, D] in ascending order from features [N, D]: mean over the frames of a medium, sum over media."""
    order = np.lexsort((media, template))
    t, m = template[order], media[order]
    first = np.append(0, np.flatnonzero((t[1:] != t[:-1]) | (m[1:] != m[:-1])) + 1)  # of each medium of a template
    frames = np.diff(np.append(first, len(t)))
    means = np.add.reduceat(features[order], first, axis=0) / frames[:, None].astype(np.float32)
    of_medium = t[first]
    return np.add.reduceat(means, np.append(0, np.flatnonzero(of_medium[1:] != of_medium[:-1]) + 1), axis=0)


def rank_k(cosine: Embeddings, labels: NDArray[np.int32], ranks: Sequence[int]) -> list[float]:
    """For each k, the share of images [N] with another of the same person among the k most alike of the others.

    cosine [N, N]. People with one image are left out of the questions, not of the answers.
    """
    same = labels[:, None] == labels[None, :]
    np.fill_diagonal(same, False)
    best = np.where(same, cosine, -np.inf).max(axis=1)
    before = ((cosine > best[:, None]) & (labels[:, None] != labels[None, :])).sum(axis=1)
    before = before[same.any(axis=1)]
    return [float((before < k).mean()) for k in ranks]
