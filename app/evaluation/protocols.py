"""Evaluation protocols: given pairs of images, all pairs of labelled images, pairs of templates.

For given pairs and templates, each pair is scored by one process; the main process computes the measures.

Letters: N images, D embedding size, P pairs, T templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.data.dataset import Rows
from app.evaluation import measures
from app.evaluation.measures import Answers, Folds, Numbers
from app.evaluation.threshold import (
    FARS,
    Threshold,
    Thresholds,
    at_rates,
    impostors_needed,
    rate_name,
    too_small_for,
)
from app.evaluation.verification import (
    FOLDS,
    Embeddings,
    Pairs,
    all_pairs,
    best_threshold,
    fold_thresholds,
    normalise,
    rank_k,
    verification_accuracy,
)
from app.runtime.dist import World, gather_rows, share

IJB_MAIN_FAR = 1e-4
FOLD_FAR = 1e-3
RANKS = (1, 5, 20)
PAIRS_AT_ONCE = 16384


class Axes(NamedTuple):
    """What a curve shows: the prefix of its file's name, and the words on its axes."""

    file: str
    x: str
    y: str


ROC = Axes("roc", "false accept rate", "true accept rate")


@dataclass(frozen=True)
class Outcome:
    """Results: numbers by name (None: too few pairs), the name of the ranking one, a curve, thresholds by purpose."""

    numbers: Mapping[str, float | None]
    headline: str
    far: Numbers
    tar: Numbers
    thresholds: Thresholds = field(default_factory=dict)
    axes: Axes = ROC  # of the curve, which is empty if the set gives none


class SetProtocol(Protocol):
    @property
    def pairs(self) -> int:
        """The number of pairs."""

    @property
    def measure(self) -> str:
        """The name of the ranking number; only numbers of the same name are averaged."""

    def facts(self) -> dict[str, Any]:
        """How many pairs, people and images are compared, for eval.json."""

    def too_few(self) -> dict[str, int]:
        """Numbers that this set is too small for, with the pairs of two people, or probes, that each needs."""

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        """Evaluate finite, unnormalised embeddings [N, D]; returns None on all but the main process."""


@dataclass(frozen=True)
class PairList:
    """P given pairs of images, with the published measures for sets such as LFW."""

    left: Rows
    right: Rows
    same: Answers
    fold: Folds

    @property
    def pairs(self) -> int:
        return len(self.same)

    measure = "10-fold accuracy"

    def facts(self) -> dict[str, Any]:
        return {"pairs": self.pairs}

    def too_few(self) -> dict[str, int]:
        # A fold's threshold is computed from the other nine.
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
    """Labelled images: verification of all pairs, as during training, and identification of each among the others."""

    labels: NDArray[np.int32]  # [N]

    @property
    def pairs(self) -> int:
        return len(self.labels) * (len(self.labels) - 1) // 2

    measure = "balanced 10-fold accuracy"

    def facts(self) -> dict[str, Any]:
        return {"pairs": self.pairs}

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
class Pooled:
    """How the images of IJB-B and IJB-C form templates."""

    template: NDArray[np.int64]  # [N] template of each image
    media: NDArray[np.int64]  # [N] photograph or video of each image
    detector_score: NDArray[np.float32]  # [N]

    @property
    def templates(self) -> NDArray[np.int64]:
        """The numbers of the templates [T], ascending."""
        return np.unique(self.template)

    def features(self, embeddings: Embeddings) -> Embeddings:
        """Pool unnormalised embeddings [N, D], weighted by the detector's score, to the ascending templates [T, D]."""
        return pool(embeddings * self.detector_score[:, None], self.template, self.media)


@dataclass(frozen=True)
class Templates:
    """Pairs of templates, each of several images and video frames: the 1:1 protocol of IJB-B and IJB-C."""

    pooled: Pooled
    left: NDArray[np.int64]  # [P] positions in the ascending templates
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
        """The published TAR at FAR 1e-4; with fewer pairs, at the lowest higher FAR they suffice for, else the AUC."""
        names = [rate_name("tar_at_far", far) for far in FARS if far >= IJB_MAIN_FAR]
        return next((name for name in names if name not in self.too_few()), "auc")

    def facts(self) -> dict[str, Any]:
        return {"pairs": self.pairs}

    def too_few(self) -> dict[str, int]:
        return too_small_for("tar_at_far", FARS, int((~self.same).sum()))

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        score = -squared_distances(self.pooled.features(embeddings), self.left, self.right, here)
        if not here.is_main:
            return None
        far, tar = measures.roc(score, self.same)
        rates = {rate_name("tar_at_far", wanted): measures.tar_at_far(far, tar, wanted) for wanted in FARS}
        shown = {name: None if name in self.too_few() else rate for name, rate in rates.items()}
        numbers = {**shown, "auc": measures.area(far, tar)}
        return Outcome(numbers, self.headline, far, tar, at_rates(1 + score / 2, self.same))


def squared_distances(embeddings: Embeddings, left: Rows, right: Rows, here: World) -> Numbers:
    """Squared Euclidean distances [P], 0 to 4, between normalised rows of embeddings [N, D], split among processes."""
    unit = normalise(embeddings.astype(np.float64))
    own = share(np.arange(len(left)), here)
    distance = np.empty(len(own))
    for start in range(0, len(own), PAIRS_AT_ONCE):
        pairs = own[start : start + PAIRS_AT_ONCE]
        distance[start : start + len(pairs)] = np.square(unit[left[pairs]] - unit[right[pairs]]).sum(1)
    return gather_rows(torch.from_numpy(distance), here).numpy()


def pool(features: Embeddings, template: NDArray[np.int64], media: NDArray[np.int64]) -> Embeddings:
    """Pool features [N, D] to ascending templates [T, D]: mean over the frames of a medium, sum over media."""
    order = np.lexsort((media, template))
    t, m = template[order], media[order]
    first = np.append(0, np.flatnonzero((t[1:] != t[:-1]) | (m[1:] != m[:-1])) + 1)  # of each medium of a template
    frames = np.diff(np.append(first, len(t)))
    means = np.add.reduceat(features[order], first, axis=0) / frames[:, None].astype(np.float32)
    of_medium = t[first]
    return np.add.reduceat(means, np.append(0, np.flatnonzero(of_medium[1:] != of_medium[:-1]) + 1), axis=0)
