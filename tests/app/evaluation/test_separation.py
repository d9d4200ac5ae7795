"""The summary of held-out people: rates, intervals by resampling, and the hardest pairs."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from app.evaluation import separation
from app.evaluation.measures import roc
from app.evaluation.separation import Scored, equal_error_rate, hardest, summary
from app.evaluation.verification import Pairs, all_pairs, balanced_accuracy, fold_thresholds, pair_scores


def people(spread: float, count: int = 12, each: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and labels: a direction per person, with noise of size `spread`."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count, dtype=np.int32), each)
    centres = rng.normal(size=(count, 16))
    return (centres[labels] + spread * rng.normal(size=(len(labels), 16))).astype(np.float32), labels


def scored(embeddings: np.ndarray, pairs: Pairs) -> Scored:
    score = pair_scores(embeddings, pairs)
    threshold = float(np.mean(fold_thresholds(score, pairs)))
    return Scored(score, balanced_accuracy(score, pairs.same, threshold), threshold)


@pytest.mark.parametrize("seed", range(5))
def test_the_equal_error_rate_is_where_both_errors_meet(seed: int) -> None:
    """Count both errors at every threshold: the rate lies between the highest lower and the lowest higher error."""
    rng = np.random.default_rng(seed)
    same = rng.random(400) < 0.3
    score = np.round(rng.normal(size=400) + 1.5 * same, 2)
    found = equal_error_rate(*roc(score, same))
    errors = [((score[~same] >= at).mean(), (score[same] < at).mean()) for at in np.unique(score)]
    above = min(max(pair) for pair in errors)
    below = max(min(pair) for pair in errors)
    assert below - 1e-9 <= found <= above + 1e-9


def test_perfect_and_inverted_scores_are_the_two_ends() -> None:
    same = np.arange(20) < 10
    assert equal_error_rate(*roc(same.astype(float), same)) == 0
    assert equal_error_rate(*roc(-same.astype(float), same)) == 1


def test_resampled_people_count_as_often_as_they_are_drawn() -> None:
    """The reference weights each pair by how often its people were drawn."""
    embeddings, labels = people(1.2, count=6, each=4)
    pairs = all_pairs(labels)
    own = scored(embeddings, pairs)
    whole, drawn = separation._resampled(own, pairs, labels)
    assert whole[0] == pytest.approx(balanced_accuracy(own.score, pairs.same, own.threshold))
    times = np.random.default_rng(separation.SEED).multinomial(6, np.full(6, 1 / 6), separation.RESAMPLES)
    right = (own.score >= own.threshold) == pairs.same
    for number in range(10):
        t = times[number]
        weight = np.where(pairs.same, t[labels[pairs.left]], t[labels[pairs.left]] * t[labels[pairs.right]])
        kinds = [(right * weight)[kind].sum() / weight[kind].sum() for kind in (pairs.same, ~pairs.same)]
        assert drawn[number] == pytest.approx(np.mean(kinds))


def test_a_gain_is_sure_only_where_it_is_large() -> None:
    good, labels = people(0.6)
    bad, _ = people(2.5, seed=1)
    pairs = all_pairs(labels)
    of = {"pixels": scored(good, pairs), "untrained": scored(bad, pairs), "trained": scored(good, pairs)}
    found = summary(of, pairs, labels)
    gain = found["trained"]["gain"]
    assert gain["untrained"]["low"] > 0.05
    assert gain["pixels"] == {"accuracy": 0, "low": 0, "high": 0}
    for each in found.values():
        assert each["low"] <= each["accuracy"] <= each["high"]
        assert sum(each["scores"]["same"]) == pairs.same.sum()
        assert sum(each["scores"]["different"]) == (~pairs.same).sum()
    assert found["trained"]["auc"] > found["untrained"]["auc"]
    assert found["trained"]["eer"] < found["untrained"]["eer"]


def test_the_curve_is_the_roc_at_its_false_accept_rates() -> None:
    embeddings, labels = people(1.5)
    pairs = all_pairs(labels)
    own = scored(embeddings, pairs)
    curve = summary({"trained": own}, pairs, labels)["trained"]["curve"]
    assert len(curve["far"]) == separation.CURVE_POINTS
    for far, tar in list(zip(curve["far"], curve["tar"], strict=True))[::20]:
        at = [t for t in np.unique(own.score) if (own.score[~pairs.same] >= t).mean() <= far * 1.0001]
        best = max([(own.score[pairs.same] >= t).mean() for t in at], default=0)
        assert tar == pytest.approx(best, abs=1e-4)


def test_the_hardest_pairs_show_each_image_once() -> None:
    embeddings, labels = people(1.5)
    pairs = all_pairs(labels)
    own = scored(embeddings, pairs)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (100, 112, 112, 3), dtype=np.uint8)
    found = hardest(own, pairs, images, rows=np.arange(60) + 40)
    assert found["two_people"][0]["cosine"] == pytest.approx(own.score[~pairs.same].max())
    assert found["one_person"][0]["cosine"] == pytest.approx(own.score[pairs.same].min())
    for kind, listed in found.items():
        assert len(listed) == separation.HARDEST
        shown = [each[side] for each in listed for side in ("left", "right")]
        assert len(set(shown)) == len(shown)
        for each in listed:
            assert each["wrong"] == ((each["cosine"] >= own.threshold) == (kind == "two_people"))
    picture = Image.open(io.BytesIO(base64.b64decode(found["two_people"][0]["left"])))
    assert (picture.format, picture.size) == ("JPEG", (112, 112))


def test_few_people_give_no_interval() -> None:
    embeddings, labels = people(1.0, count=separation.LEAST_PEOPLE - 1, each=8)
    pairs = all_pairs(labels)
    own = scored(embeddings, pairs)
    found = summary({"trained": own, "pixels": own}, pairs, labels)["trained"]
    assert (found["low"], found["high"]) == (None, None)
    assert found["gain"]["pixels"] == {"accuracy": 0, "low": None, "high": None}
    assert np.isfinite([found["accuracy"], found["auc"], found["eer"]]).all()
