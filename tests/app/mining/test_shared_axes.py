"""Axes that most clusters share are found and shrunk; what one cluster has alone stays."""

from __future__ import annotations

import numpy as np
import pytest

from app.mining.arrays import Doubles
from app.mining.shared_axes import shared_axes

DIM, CLUSTERS, IMAGES = 48, 60, 12
OWNER = np.repeat(np.arange(CLUSTERS), IMAGES)


def pool(shared: int, wide: float, seed: int = 0) -> Doubles:
    """Return differences with standard deviation 1 along each coordinate, and `wide` along the first `shared` ones."""
    rows = np.random.default_rng(seed).normal(size=(len(OWNER), DIM))
    rows[:, :shared] *= wide
    groups = rows.reshape(CLUSTERS, IMAGES, DIM)
    return (groups - groups.mean(axis=1, keepdims=True)).reshape(-1, DIM) * (IMAGES / (IMAGES - 1)) ** 0.5


def test_shared_axes_become_as_narrow_as_other_directions() -> None:
    rows = pool(3, 4.0)
    axes = shared_axes(rows, OWNER)
    assert len(axes.kept) == 3
    assert axes.kept == pytest.approx(1 / 4, rel=0.15)
    spread = axes.shrunk(rows).std(axis=0)
    assert spread[:3].min() > 0.8
    assert spread.max() < 1.25
    assert np.allclose(spread[3:], rows.std(axis=0)[3:], atol=0.05)


def test_noise_alone_is_hardly_shrunk() -> None:
    for seed in range(5):
        axes = shared_axes(pool(0, 1.0, seed), OWNER)
        assert len(axes.kept) <= 1
        assert (axes.kept > 0.7).all()


def test_the_direction_of_a_single_cluster_of_two_people_stays() -> None:
    rows = pool(0, 1.0)
    rows[:IMAGES, 0] = np.where(np.arange(IMAGES) % 2, 30.0, -30.0)
    assert np.abs(shared_axes(rows, OWNER).shrunk(rows)[:IMAGES, 0]).min() > 27


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_few_or_equal_differences_have_no_axes(count: int) -> None:
    rows = np.zeros((count, DIM))
    axes = shared_axes(rows, np.zeros(count, np.int64))
    assert np.array_equal(axes.shrunk(rows), rows)


def test_differences_that_lie_in_few_directions_keep_the_noise_of_those() -> None:
    few = pool(3, 4.0)[:, :12]
    turned = few @ np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, 12)))[0].T
    axes = shared_axes(turned, OWNER)
    assert len(axes.kept) == 3
    spread = np.linalg.svd(axes.shrunk(turned), compute_uv=False)[:12] / len(OWNER) ** 0.5
    assert spread.min() > 0.8
    assert spread.max() < 1.25
