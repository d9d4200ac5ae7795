"""The oracle that knows the people finds them where the noise is small, and no more than chance where it is large."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from benchmarks._oracle import AXES_SHARE, PRECISION, limits, log_chances, whitened
from benchmarks._planted import KINDS, make, plant

N, DIM, SEED = 300, 64, 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "low_dim"])
def test_people_in_many_directions_are_known_to_the_oracle(kind: str) -> None:
    found = limits(plant(kind, N, "easy", DIM, SEED))
    assert found.f > 0.97
    assert found.precision > 0.97
    assert found.careful_f >= found.f


def test_the_oracle_fails_in_few_directions_and_leaves_images_out_for_precision() -> None:
    found = limits(plant("low_dim", N, "hard", DIM, SEED))
    assert found.precision < PRECISION
    assert found.careful_f < found.f


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_belongs_to_the_images(kind: str) -> None:
    truth = plant(kind, N, "easy", DIM, SEED)
    images, labels = make(kind, N, "easy", DIM, SEED)
    assert np.array_equal(images, truth.images)
    assert np.array_equal(labels, truth.labels)
    assert np.allclose(truth.visible @ truth.visible.T, images @ images.T, atol=1e-5)
    assert np.array_equal(truth.labels[truth.source], truth.labels)
    sharp = truth.images if truth.blur is None else np.zeros_like(truth.images)
    frames = truth.source != np.arange(N)
    assert ((sharp * sharp[truth.source]).sum(axis=1)[frames & (sharp.any(axis=1))] > 0.9).all()


def test_the_chances_are_those_of_a_normal_distribution_seen_from_its_centre() -> None:
    truth = plant("equal", N, "medium", DIM, SEED)
    image, spread = truth.visible[0].astype(np.float64), float(truth.scale[0, 0]) / DIM**0.5

    def density(centre: np.ndarray) -> float:  # of all lengths of the image
        nearest = float(image @ centre)
        return quad(
            lambda r: r ** (DIM - 1) * np.exp(-((r * image - centre) ** 2).sum() / (2 * spread**2)),
            0,
            nearest + 40 * spread,
            points=[1.5],
        )[0]

    near, far = (truth.centres[which].astype(np.float64) for which in (truth.labels[0], truth.labels[0] - 1))
    expected = np.log(density(near)) - np.log(density(far))
    chances = log_chances(truth)[0]
    sizes = np.log(np.bincount(truth.labels))
    measured = (chances - sizes)[truth.labels[0]] - (chances - sizes)[truth.labels[0] - 1]
    assert measured == pytest.approx(expected, rel=0.01)


def test_the_noise_is_equal_in_all_directions_once_whitened() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(DIM, 12)))[0].astype(np.float32)
    noise = (1 - AXES_SHARE) ** 0.5 * rng.normal(size=(20_000, DIM)) / DIM**0.5
    noise += (AXES_SHARE / 12) ** 0.5 * rng.normal(size=(20_000, 12)) @ axes.T
    assert np.allclose(np.cov(whitened(noise, axes).T), np.eye(DIM), atol=0.06)
