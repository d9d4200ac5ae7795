"""The published measures agree with slow reference versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor
from scipy.interpolate import interp1d

from app.errors import WrongUse
from app.evaluation import measures
from app.evaluation.curve import COLOURS, TOGETHER, _groups, draw
from app.evaluation.protocols import PairList, Pooled, Templates, pool, rank_k, squared_distances
from app.evaluation.verification import rank1
from app.runtime.dist import World


def pairs(seed: int, count: int = 200, coarse: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distances of overlapping classes, answers and folds. `coarse` distances are often equal."""
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.5
    distance = np.clip(np.where(same, 1.2, 2.0) + rng.normal(0, 0.5, count), 0, 4)
    return np.round(distance, 1) if coarse else distance, same, measures.folds_of(same, "set")


def reference_accuracy(distance: np.ndarray, same: np.ndarray) -> tuple[float, float, float]:
    """The published loop: folds in file order, each judged at the best threshold of the other nine."""
    folds, thresholds, found, chosen = np.array_split(np.arange(len(same)), 10), np.arange(0, 4, 0.01), [], []
    for test in folds:
        train = np.setdiff1d(np.arange(len(same)), test)
        accuracies = np.mean((distance[train][None] < thresholds[:, None]) == same[train][None], axis=1)
        best = thresholds[np.argmax(accuracies)]
        chosen.append(best)
        found.append(np.mean((distance[test] < best) == same[test]))
    return float(np.mean(found)), float(np.std(found)), float(np.mean(chosen))


def reference_tar(distance: np.ndarray, same: np.ndarray, wanted: float) -> tuple[float, float, float]:
    folds, thresholds, tars, fars = np.array_split(np.arange(len(same)), 10), np.arange(0, 4, 0.001), [], []
    for test in folds:
        train = np.setdiff1d(np.arange(len(same)), test)
        met = np.mean(distance[train][~same[train]][None] < thresholds[:, None], axis=1)
        threshold = float(interp1d(met, thresholds)(wanted)) if met.max() >= wanted else 0.0
        tars.append(np.mean(distance[test][same[test]] < threshold))
        fars.append(np.mean(distance[test][~same[test]] < threshold))
    return float(np.mean(tars)), float(np.std(tars)), float(np.mean(fars))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_folds_say_what_the_published_loop_says(seed: int, coarse: bool) -> None:
    distance, same, fold = pairs(seed, 203, coarse)
    assert measures.accuracy_10_fold(distance, same, fold) == pytest.approx(reference_accuracy(distance, same))
    for wanted in (0.013, 0.1):
        found = measures.tar_at_far_10_fold(distance, same, fold, wanted)
        assert found == pytest.approx(reference_tar(distance, same, wanted))


def test_a_false_accept_rate_that_is_never_reached_accepts_nothing() -> None:
    _, same, fold = pairs(0)
    assert measures.tar_at_far_10_fold(np.where(same, 0.0, 4.0), same, fold, 1e-3) == (0.0, 0.0, 0.0)


@given(scores=st.lists(st.integers(-5, 5), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_the_sweep_finds_what_trying_every_score_finds(scores: list[int], seed: int) -> None:
    score = np.array(scores, np.float64)
    same = np.random.default_rng(seed).random(len(score)) < 0.5
    tried = max(float(np.mean((score >= t) == same)) for t in score)
    accuracy, threshold = measures.accuracy_tuned_on_test(score, same)
    assert (accuracy, np.mean((score >= threshold) == same)) == (pytest.approx(tried), pytest.approx(tried))


@given(scores=st.lists(st.integers(-5, 5), min_size=4, max_size=40), far=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_the_threshold_at_a_rate_is_the_lowest_score_that_keeps_it(scores: list[int], far: float) -> None:
    score = np.array(scores, np.float64)
    same = np.arange(len(score)) % 3 == 0
    keep = [t for t in (*score, np.inf) if np.mean(score[~same] >= t) <= far]
    assert measures.threshold_at_far(score, same, far) == min(keep)


@given(scores=st.lists(st.integers(-5, 5), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_the_curve_and_its_area_and_the_rates_on_it(scores: list[int], seed: int) -> None:
    score = np.array(scores, np.float64)
    same = np.random.default_rng(seed).random(len(score)) < 0.5
    same[:2] = True, False
    far, tar = measures.roc(score, same)
    points = [(0.0, 0.0), *((np.mean(score[~same] >= t), np.mean(score[same] >= t)) for t in np.unique(score)[::-1])]
    assert np.allclose(np.column_stack([far, tar]), points)
    above = score[same][:, None] - score[~same][None, :]
    assert measures.area(far, tar) == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)))
    for wanted in (1e-6, 0.1, 0.34, 0.5, 1.0):
        gap = min(abs(f - wanted) for f, _ in points)
        nearest = max(f for f, _ in points if abs(f - wanted) == gap)
        assert measures.tar_at_far(far, tar, wanted) == max(t for f, t in points if f == nearest)


def test_folds_keep_the_files_order_where_every_tenth_has_both_kinds() -> None:
    same = np.tile([True] * 5 + [False] * 5, 10)
    assert np.array_equal(measures.folds_of(same, "set"), np.repeat(np.arange(10), 10))
    of_sorted = measures.folds_of(np.sort(same), "set")
    for kind in (True, False):
        assert (np.bincount(of_sorted[np.sort(same) == kind]) == 5).all()


@pytest.mark.parametrize(
    ("same", "who"), [([True] * 50, "too few pairs of two people: 0"), ([False] * 50, "too few pairs of one")]
)
def test_one_class_only_is_refused(same: list[bool], who: str) -> None:
    with pytest.raises(WrongUse, match=f"pairs.csv has {who}"):
        measures.folds_of(np.array(same), "pairs.csv")


def test_pairs_are_scored_by_distance_between_unit_vectors(alone: World) -> None:
    rng = np.random.default_rng(0)
    x, (left, right) = rng.normal(size=(30, 8)).astype(np.float32), rng.integers(0, 30, (2, 40_000))
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    assert np.allclose(squared_distances(x, left, right, alone), 2 - 2 * (unit[left] * unit[right]).sum(1), atol=1e-12)


def test_a_list_of_pairs_tells_the_honest_and_the_tuned_accuracy(alone: World) -> None:
    rng = np.random.default_rng(3)
    people = np.repeat(rng.normal(size=(40, 6)), 2, axis=0)
    x = (people + 0.9 * rng.normal(size=people.shape)).astype(np.float32)
    left = np.concatenate([np.arange(0, 80, 2), np.arange(0, 80, 2)])
    right = np.concatenate([np.arange(1, 80, 2), (np.arange(0, 80, 2) + 7) % 80])
    same = np.arange(80) < 40
    outcome = PairList(left, right, same, measures.folds_of(same, "set")).judge(x, alone)
    assert outcome is not None
    assert 0.6 < outcome.numbers["accuracy"] <= outcome.numbers["accuracy_tuned_on_test"] < 1
    assert outcome.numbers[outcome.headline] == outcome.numbers["accuracy"]


def reference_templates(x: np.ndarray, template: np.ndarray, media: np.ndarray) -> np.ndarray:
    """The published loop over templates and their media."""
    rows = []
    for t in np.unique(template):
        of_t = x[template == t].astype(np.float64)
        of_media = media[template == t]
        rows.append(sum(of_t[of_media == m].mean(0) for m in np.unique(of_media)))
    return np.stack(rows)


@given(count=st.integers(1, 40), seed=st.integers(0, 99))
def test_templates_are_sums_over_media_of_means_over_frames(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    template, media = rng.integers(5, 12, count), rng.integers(0, 4, count)
    x = rng.normal(size=(count, 5)).astype(np.float32)
    assert np.allclose(pool(x, template, media), reference_templates(x, template, media), atol=1e-5)


def test_template_pairs_weigh_images_by_the_detectors_score(alone: World) -> None:
    rng = np.random.default_rng(1)
    template = np.repeat(np.arange(100, 130), 4)
    media, weight = rng.integers(0, 3, 120), rng.random(120).astype(np.float32)
    x = (np.repeat(rng.normal(size=(15, 6)), 8, axis=0) + rng.normal(size=(120, 6))).astype(np.float32)
    left, right = rng.integers(0, 30, (2, 300))
    same = left // 2 == right // 2
    outcome = Templates(Pooled(template, media, weight), left, right, same).judge(x, alone)
    assert outcome is not None
    pooled = reference_templates(x * weight[:, None], template, media)
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    far, tar = measures.roc((unit[left] * unit[right]).sum(1), same)
    assert outcome.numbers["tar_at_far_1e-1"] == pytest.approx(measures.tar_at_far(far, tar, 0.1))
    assert set(outcome.numbers) == {"auc", *(f"tar_at_far_1e-{n}" for n in range(1, 7))}
    assert outcome.numbers["auc"] == pytest.approx(measures.area(far, tar), abs=1e-3)


def test_a_rate_that_the_pairs_cannot_show_is_not_measured(alone: World) -> None:
    """A false accept rate is not measured if it allows less than one pair of two people, because none could pass."""
    rng = np.random.default_rng(1)
    x, image = rng.normal(size=(40, 6)).astype(np.float32), np.arange(40)
    for impostors, headline, shown in ((9, "auc", []), (100, "tar_at_far_1e-2", [1, 2]), (10_000, None, [1, 2, 3, 4])):
        left, right = rng.integers(0, 40, (2, impostors + 30))
        same = np.arange(impostors + 30) < 30
        protocol = Templates(Pooled(image, image, np.ones(40, np.float32)), left, right, same)
        outcome = protocol.judge(x, alone)
        assert outcome is not None
        assert [n for n in range(1, 7) if outcome.numbers[f"tar_at_far_1e-{n}"] is not None] == shown
        assert outcome.headline == (headline or "tar_at_far_1e-4")  # the published rate, if the pairs suffice
        assert outcome.numbers[outcome.headline] is not None
        assert protocol.too_few() == {f"tar_at_far_1e-{n}": 10**n for n in range(6, 0, -1) if n not in shown}
    for impostors, needed in ((1111, {"tar_at_far_1e-3": 1112}), (1112, {})):
        left, right = rng.integers(0, 40, (2, 2 * impostors))
        same = np.arange(2 * impostors) % 2 == 0
        pair_list = PairList(left, right, same, measures.folds_of(same, "set"))
        outcome = pair_list.judge(x, alone)
        assert outcome is not None
        assert pair_list.too_few() == needed
        assert (outcome.numbers["tar_at_far_1e-3"] is None) == bool(needed)


def test_a_chain_of_curves_is_one_group() -> None:
    """Each curve is close to the next one only, but all share the dashes: each dash shows one of them."""
    pieces = [np.full(2, 0.67 * TOGETHER * number) for number in (0, 2, 3, 1, 9)]
    assert sorted(_groups(pieces)) == [[0, 1, 2, 3], [4]]


def test_curves_that_coincide_are_all_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    same = rng.random(2000) < 0.5
    curves = [measures.roc(np.where(same, d, 0.0) + rng.normal(size=2000), same) for d in (3, 1)]
    draw(tmp_path / "roc.png", "set", {"a": curves[0], "b": curves[0], "c": curves[0], "alone": curves[1]})
    with Image.open(tmp_path / "roc.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[64:400, 70:600]  # left of the legend
    seen = [int((np.abs(pixels - colour).sum(2) < 30).sum()) for colour in map(ImageColor.getrgb, COLOURS[:5])]
    assert min(seen[:4]) > 50
    assert max(seen[:3]) < 2 * min(seen[:3])
    assert seen[3] > max(seen[:3])  # a curve that coincides with no other is solid
    assert seen[4] == 0


def test_no_curve_has_a_hole_where_curves_nearly_coincide(tmp_path: Path) -> None:
    """Each column has the colour of some curve, from the rate of one false accept to 1."""
    far = np.geomspace(1e-4, 1, 400)
    near = {str(number): (far, 0.9 * far**0.08 + 0.004 * number) for number in range(6)}
    draw(tmp_path / "roc.png", "set", near)
    with Image.open(tmp_path / "roc.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[66:370, 72:735]  # above the legend
    empty = np.flatnonzero(~(pixels.min(axis=2) < 180).any(axis=0))
    assert len(empty) == 0, empty


def test_a_curve_begins_at_the_rate_of_one_false_accept(tmp_path: Path) -> None:
    """Below it nothing is measured, and a curve of rounded rates has no place there."""
    draw(tmp_path / "roc.png", "set", {"a": (np.array([0.0, 0.0051, 1.0]), np.array([0.5, 0.6, 1.0]))})
    with Image.open(tmp_path / "roc.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[60:480, 70:738]
    (drawn,) = np.nonzero((np.abs(pixels - ImageColor.getrgb(COLOURS[0])).sum(2) < 90).any(axis=0))
    assert drawn.min() > 100


def test_identification_among_the_first_k() -> None:
    rng = np.random.default_rng(2)
    labels = np.append(np.repeat(np.arange(9, dtype=np.int32), 4), np.int32(9))  # the last person has one image
    x = rng.normal(size=(37, 5)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found = rank_k(x @ x.T, labels, (1, 5, 20))
    expected = []
    for k in (1, 5, 20):
        hits = []
        for i in range(36):
            others = [j for j in np.argsort(-(x @ x[i])) if j != i][:k]
            hits.append(any(labels[j] == labels[i] for j in others))
        expected.append(np.mean(hits))
    assert found == pytest.approx(expected)
    assert found[0] == pytest.approx(rank1(x, labels))
    assert rank1(np.ones_like(x), labels) == 0, "equal embeddings tell nobody apart"


@pytest.mark.filterwarnings("ignore:Glyph")  # the font lacks them, and draws a box for each
@pytest.mark.parametrize("wide", ["n", "W", "\N{CJK UNIFIED IDEOGRAPH-4E00}", "\u202e"])
def test_a_long_name_hides_no_other_in_the_legend(tmp_path: Path, wide: str) -> None:
    """Legend and title stay between the margins, whatever the names are."""
    one = np.array([0.0, 0.01, 1.0]), np.array([0.0, 0.5, 1.0])
    name = "runs/" + "a-very-long-name-" * 8 + "/checkpoints/epoch_014.pt"
    draw(tmp_path / "roc.png", "lfw " + wide * 60, {"short": one, name: one, wide * 64: one, "a" + wide * 300: one})
    with Image.open(tmp_path / "roc.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels[:, :4].min() == pixels[:, -4:].min() == 255
