"""Small clusters that resemble each other by chance are found among those of people."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from app.mining.small_clusters import BINS, LOWEST, Likeness, counted, likeness, parts, resemble_by_chance
from tests.app.support.planted import unit

DIM = 64
Rows = NDArray[np.float64]


def cosines(people: int, images: int, seed: int) -> Rows:
    """Return the cosines [people, images, images] of the images of people; those of two images are about 0.55."""
    rng = np.random.default_rng(seed)
    faces = rng.normal(size=(people, 1, DIM)) + 0.9 * rng.normal(size=(people, images, DIM))
    faces = unit(faces.reshape(-1, DIM)).reshape(people, images, DIM)
    return np.asarray(np.matmul(faces, faces.transpose(0, 2, 1)), np.float64)


def chains(count: int) -> Rows:
    """Return the cosines [count, 3, 3] of triples of which the first resembles both others, which are strangers."""
    cosine = np.tile(np.array([[1, 0.5, 0.5], [0.5, 1, 0], [0.5, 0, 1]]), (count, 1, 1))
    cosine[:, 1, 2] = cosine[:, 2, 1] = np.linspace(-0.1, 0.1, count)
    return cosine


def test_likeness_is_the_mean_cosine_and_the_least_of_the_nearest() -> None:
    found = likeness(np.array([[[1, 0.5, 0.25], [0.5, 1, 0], [0.25, 0, 1]]]))
    assert found.mean.tolist() == [BINS // 4]
    assert found.nearest.tolist() == [BINS // 4]


def test_parts_are_an_image_and_those_after_it() -> None:
    cosine = cosines(2, 8, 0)
    found = parts(cosine, 3)
    assert found.shape == (16, 3, 3)
    assert np.array_equal(found[0], cosine[0, :3, :3])
    assert np.array_equal(found[15], cosine[1][np.ix_([7, 0, 1], [7, 0, 1])])


def test_each_part_counts_once_at_its_likeness() -> None:
    table = counted(Likeness(np.array([3, 3, 9]), np.array([4, 4, BINS - 1])))
    assert table.sum() == 3
    assert table[3, 4] == 2
    assert table[9, BINS - 1] == 1


def judged(clusters: Rows) -> NDArray[np.bool_]:
    of_parts = counted(likeness(parts(cosines(60, 10, 1), clusters.shape[1])))
    return resemble_by_chance(likeness(clusters), of_parts)


def test_triples_of_strangers_are_found_and_those_of_people_are_not() -> None:
    found = judged(np.concatenate([chains(20), cosines(200, 3, 2)]))
    assert found[:20].all()
    assert found[20:].mean() < LOWEST


@pytest.mark.parametrize("images", [3, 4, 5])
def test_small_clusters_of_people_stay(images: int) -> None:
    assert judged(cosines(200, images, 3)).mean() < 0.1


def test_a_few_low_clusters_stay() -> None:
    assert not judged(chains(2)).any()


def test_nothing_is_left_out_without_clusters_to_judge_or_to_compare_with() -> None:
    nobody = np.zeros((BINS, BINS), np.int64)
    assert not resemble_by_chance(likeness(chains(20)), nobody).any()
    assert not len(judged(chains(0)))


@pytest.mark.parametrize("cosine", [-1.0, 0.0, 1.0])
def test_equal_cosines_have_a_bin(cosine: float) -> None:
    found = likeness(np.full((2, 3, 3), cosine))
    assert ((found.mean >= 0) & (found.mean < BINS)).all()
    assert ((found.nearest >= 0) & (found.nearest < BINS)).all()
