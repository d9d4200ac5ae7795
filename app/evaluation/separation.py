"""Summarise how well embeddings separate held-out people: ROC, scores, hardest pairs, and intervals over people.

The result is plain numbers for verification.json, from which a report is made without the data.

Letters: N images, P pairs, K people, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.shards import Images
from app.data.sources.photograph import jpeg_of
from app.evaluation import measures
from app.evaluation.measures import Numbers
from app.evaluation.verification import Pairs

RESAMPLES = 1000
LEAST_PEOPLE = 5  # fewer resample to too few different people for an interval
SEED = 0  # fixed, so that all embeddings are measured on the same resampled people
CURVE_POINTS, BINS, HARDEST = 160, 64, 8
CANDIDATES = 4000  # pairs among which the hardest are chosen, so that each image is shown once


@dataclass(frozen=True)
class Scored:
    """One embedding's cosines of P pairs, with its 10-fold accuracy and the mean of the ten thresholds."""

    score: NDArray[np.float32]  # [P]
    accuracy: float
    threshold: float


def summary(of: Mapping[str, Scored], pairs: Pairs, labels: NDArray[np.int32]) -> dict[str, dict[str, Any]]:
    """Summarise each embedding. `trained` also gets its gain over each of the others, with an interval.

    Intervals are 95 % percentiles over resampled people. Photographs of the same people are not independent, so the
    spread of the ten folds would be too narrow.
    """
    draws = {what: _resampled(scored, pairs, labels) for what, scored in of.items()}
    found = {what: _of_one(scored, pairs, *draws[what]) for what, scored in of.items()}
    for what in of.keys() - {"trained"} if "trained" in of else ():
        gain = of["trained"].accuracy - of[what].accuracy
        whole, drawn = (ours - other for ours, other in zip(draws["trained"], draws[what], strict=True))
        low, high = _interval(gain, whole, drawn)
        found["trained"].setdefault("gain", {})[what] = {"accuracy": gain, "low": low, "high": high}
    return found


def _of_one(scored: Scored, pairs: Pairs, whole: Numbers, drawn: Numbers) -> dict[str, Any]:
    score = scored.score.astype(np.float64)
    far, tar = measures.roc(score, pairs.same)
    rates = np.geomspace(1 / max(int((~pairs.same).sum()), 1), 1, CURVE_POINTS)
    edges = np.linspace(score.min(), max(score.max(), score.min() + 1e-6), BINS + 1)
    low, high = _interval(scored.accuracy, whole, drawn)
    return {
        "accuracy": scored.accuracy,
        "low": low,
        "high": high,
        "auc": measures.area(far, tar),
        "eer": equal_error_rate(far, tar),
        "threshold": scored.threshold if np.isfinite(scored.threshold) else None,
        "curve": {"far": _short(rates), "tar": _short(measures.highest_tar(far, tar, rates))},
        "scores": {
            "least": float(edges[0]),
            "most": float(edges[-1]),
            "same": np.histogram(score[pairs.same], edges)[0].tolist(),
            "different": np.histogram(score[~pairs.same], edges)[0].tolist(),
        },
    }


def _short(numbers: Numbers) -> list[float]:
    return [float(f"{number:.5g}") for number in numbers]


def equal_error_rate(far: Numbers, tar: Numbers) -> float:
    """The rate at which a ROC curve has as many false accepts as false rejects, interpolated linearly."""
    gap = far - (1 - tar)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(far[before] + share * (far[after] - far[before]))


def _resampled(scored: Scored, pairs: Pairs, labels: NDArray[np.int32]) -> tuple[Numbers, Numbers]:
    """Balanced accuracy at the threshold: of all people [1], and of R resamples of the people [R].

    NaN for a resample without pairs of a kind, and for too few people.
    """
    _, person = np.unique(labels, return_inverse=True)
    people = int(person.max()) + 1
    right = ((scored.score >= scored.threshold) == pairs.same).astype(np.float64)
    place = person[pairs.left] * people + person[pairs.right]
    if people < LEAST_PEOPLE:
        return np.full(1, np.nan), np.full(RESAMPLES, np.nan)
    # Counts [K, K] by the people of a pair; pairs of one person are on the diagonal.
    hits, count = (np.bincount(place, weights, people**2).reshape(people, people) for weights in (right, None))
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(people, np.full(people, 1 / people), RESAMPLES).astype(np.float64)  # [R, K]

    def accuracy(chosen: Numbers) -> Numbers:
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have no pairs of a kind: NaN
            same = chosen @ np.diag(hits) / (chosen @ np.diag(count))
            two = [((chosen @ (of - np.diag(np.diag(of)))) * chosen).sum(1) for of in (hits, count)]
            return (same + two[0] / two[1]) / 2

    return accuracy(np.ones((1, people))), accuracy(times)


def _interval(value: float, whole: Numbers, drawn: Numbers) -> tuple[float | None, float | None]:
    """The 95 % interval around `value` that the deviations of the resamples [R] from the whole [1] give."""
    spread = drawn[np.isfinite(drawn)] - whole[0]
    if len(spread) < RESAMPLES / 2:  # NaN: too few people
        return None, None
    low, high = np.percentile(spread, [2.5, 97.5])
    return value + float(low), value + float(high)


def hardest(scored: Scored, pairs: Pairs, images: Images, rows: NDArray[np.int64]) -> dict[str, Any]:
    """The most similar pairs of two people and the least similar pairs of one, with pictures; each image at most once.

    images [M, 112, 112, 3]; rows: the images that `pairs` number.
    """
    of = {"two_people": (~pairs.same, -scored.score), "one_person": (pairs.same, scored.score)}
    return {
        kind: [
            {
                "cosine": float(scored.score[pair]),
                "wrong": bool((scored.score[pair] >= scored.threshold) != pairs.same[pair]),
                "left": jpeg_of(images[rows[pairs.left[pair]]]),
                "right": jpeg_of(images[rows[pairs.right[pair]]]),
            }
            for pair in _first_unlike(np.flatnonzero(among), rank[among], pairs)
        ]
        for kind, (among, rank) in of.items()
    }


def _first_unlike(places: NDArray[np.int64], rank: NDArray[np.float32], pairs: Pairs) -> list[int]:
    """The first HARDEST pairs in ascending rank that share no image."""
    few = np.argpartition(rank, CANDIDATES)[:CANDIDATES] if len(rank) > CANDIDATES else np.arange(len(rank))
    shown: set[int] = set()
    found: list[int] = []
    for pair in places[few[np.argsort(rank[few], kind="stable")]].tolist():
        both = {int(pairs.left[pair]), int(pairs.right[pair])}
        if not both & shown:
            shown |= both
            found.append(pair)
        if len(found) == HARDEST:
            break
    return found


def document(
    of: Mapping[str, Scored],
    pairs: Pairs,
    labels: NDArray[np.int32],
    images: Images,
    rows: NDArray[np.int64],
    *,
    epoch: int,
    step: int,
) -> dict[str, Any]:
    """The content of verification.json. `of` must contain `trained`; labels and rows [N]."""
    return {
        "epoch": epoch,
        "step": step,
        "images": len(labels),
        "people": len(np.unique(labels)),
        "pairs_of_one_person": int(pairs.same.sum()),
        "pairs_of_two_people": int((~pairs.same).sum()),
        "resamples": RESAMPLES,
        "of": summary(of, pairs, labels),
        "hardest": hardest(of["trained"], pairs, images, rows),
    }
