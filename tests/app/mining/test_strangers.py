"""Images that resemble one image of a cluster only by chance are alone; the images of a person stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.mining.strangers import BINS, are_lower, between_strangers, scatters, with_others, without_strangers
from app.runtime.dist import World
from tests.app.support.planted import unit
from tests.app.support.ranks import free_port, run_ranks

ALONE = World(0, 1, torch.device("cpu"))
DIM, PEOPLE, IMAGES = 128, 30, 10
Floats = NDArray[np.float32]


def joined(strangers: int) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return embeddings, clusters in which each of the last images, a stranger, has joined a person, and the truth."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(PEOPLE), IMAGES)
    faces = unit(rng.normal(size=(PEOPLE, DIM)))[person] + 0.9 * rng.normal(size=(len(person), DIM)) / DIM**0.5
    bank = np.concatenate([unit(faces), unit(rng.normal(size=(strangers, DIM)))]).astype(np.float32)
    clusters = np.concatenate([person, np.arange(strangers)]) * IMAGES
    truth = np.concatenate([person * IMAGES, len(person) + np.arange(strangers)])
    return bank, clusters, truth


def kept(bank: Floats, clusters: NDArray[np.int64], original: NDArray[np.int32] | None = None) -> NDArray[np.int64]:
    original = np.arange(len(bank), dtype=np.int32) if original is None else original
    return without_strangers(clusters, torch.from_numpy(bank), original, bank, 1000, ALONE)


def test_strangers_are_alone_and_people_stay() -> None:
    bank, clusters, truth = joined(6)
    assert np.array_equal(kept(bank, clusters), truth)


def clouds(sizes: list[int], scatter: list[float]) -> tuple[Floats, NDArray[np.int64]]:
    """Return embeddings of people of `sizes` images that `scatter` around their centres, and the person of each."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.array(scatter)[person, None] * rng.normal(size=(len(person), DIM)) / DIM**0.5
    return unit(unit(rng.normal(size=(len(sizes), DIM)))[person] + noise), person


def by_first(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(labels, return_index=True)[1][np.unique(labels, return_inverse=True)[1]]


def test_a_person_whose_images_scatter_more_than_usual_stays() -> None:
    bank, person = clouds([40] * 12, [0.8] * 11 + [1.6])
    found = kept(bank, by_first(person))
    assert np.array_equal(found[person < 11], by_first(person)[person < 11])
    assert np.unique(found[person == 11], return_counts=True)[1].max() >= 38


def test_of_several_people_in_one_cluster_most_are_alone() -> None:
    bank, person = clouds([20] * 16, [0.8] * 16)
    clusters = by_first(np.maximum(person, 5))  # the first six are one
    found = kept(bank, np.where(person < 6, 0, clusters))
    assert len(np.unique(found[person < 6])) > 100
    assert np.array_equal(found[person >= 6], by_first(person)[person >= 6])


@pytest.mark.parametrize(
    ("nearest", "size", "expected"),
    [
        ([0.6, 0.6, 0.3, 0.6], [50, 50, 50, 9], [1, 1, 0.5, 1]),
        ([0.6, 0.9, -0.1], [50, 30, 30], [1, 1, 0]),
        ([0.6, 0.3], [9, 9], [1, 1]),  # few images do not tell
        ([0.0, 0.0], [50, 50], [0, 0]),
        ([], [], []),
    ],
)
def test_people_scatter_as_much_as_their_nearest_images_tell(
    nearest: list[float], size: list[int], expected: list[float]
) -> None:
    assert scatters(np.array(nearest), np.array(size, np.int64), 0.0) == pytest.approx(expected)


def test_a_stranger_that_is_the_first_image_leaves_the_others_together() -> None:
    bank, clusters, truth = joined(1)
    found = kept(bank[::-1].copy(), clusters[::-1].copy())
    assert found[0] == 0
    assert len(np.unique(found)) == len(np.unique(truth))
    assert np.unique(found, return_counts=True)[1].max() == IMAGES


def test_copies_follow_a_stranger() -> None:
    bank, clusters, _ = joined(2)
    bank, clusters = np.concatenate([bank, bank[-1:]]), np.append(clusters, clusters[-1])
    original = np.arange(len(bank), dtype=np.int32)
    original[-1] -= 1
    found = kept(bank, clusters, original)
    assert found[-1] == found[-2] == len(bank) - 2


def test_clusters_over_the_limit_and_images_without_a_direction_stay() -> None:
    bank, clusters, _ = joined(2)
    assert np.array_equal(
        without_strangers(clusters, torch.from_numpy(bank), np.arange(len(bank)), bank, 5, ALONE), clusters
    )
    assert np.array_equal(kept(np.zeros_like(bank), clusters), clusters)
    assert not len(kept(bank[:0], clusters[:0]))


def with_pairs(apart: float) -> tuple[Floats, NDArray[np.int64], int]:
    """Return embeddings, clusters, and the first image of 80 pairs whose people are `apart`; after larger clusters."""
    rng = np.random.default_rng(2)
    larger, person = PEOPLE * IMAGES, np.repeat(np.arange(PEOPLE + 80), [IMAGES] * PEOPLE + [2] * 80)
    centre = unit(rng.normal(size=(PEOPLE + 80, DIM)))[person]
    centre[larger::2] = unit(centre[larger::2] + apart * rng.normal(size=(80, DIM)) / DIM**0.5)
    bank = unit(centre + 0.9 * rng.normal(size=(len(person), DIM)) / DIM**0.5).astype(np.float32)
    return bank, np.unique(person, return_index=True)[1][person], larger


def test_pairs_of_people_who_look_alike_are_alone() -> None:
    bank, clusters, larger = with_pairs(0.55)
    found = kept(bank, clusters)
    assert np.array_equal(found[:larger], clusters[:larger])
    assert np.array_equal(found[larger:], np.arange(larger, len(bank)))


def test_pairs_that_resemble_as_images_of_larger_clusters_stay() -> None:
    bank, clusters, larger = with_pairs(0.0)
    found = kept(bank, clusters)
    assert np.mean(found[larger:] == clusters[larger:]) > 0.97
    assert np.array_equal(kept(bank[larger:], clusters[larger:] - larger), clusters[larger:] - larger)


def test_a_copy_stays_with_an_image_of_a_pair_that_is_split() -> None:
    bank, clusters, larger = with_pairs(0.55)
    bank, clusters = np.concatenate([bank, bank[larger:]]), np.append(clusters, clusters[larger:])
    original = np.append(np.arange(len(clusters) - 160), np.arange(larger, larger + 160)).astype(np.int32)
    found = kept(bank, clusters, original)
    assert np.array_equal(found[-160:], np.arange(larger, larger + 160))


def with_chains() -> tuple[Floats, NDArray[np.int64], int]:
    """Return embeddings, clusters, and the first image of 20 triples of strangers; after people of 10 and of 3 images.

    The second image of a triple is between the two others, who resemble each other no more than strangers do.
    """
    rng = np.random.default_rng(4)
    sizes = [IMAGES] * PEOPLE + [3] * 40
    people = sum(sizes)
    bank = unit(rng.normal(size=(len(sizes), DIM)))[np.repeat(np.arange(len(sizes)), sizes)]
    bank = unit(bank + 0.9 * rng.normal(size=(people, DIM)) / DIM**0.5)
    ends = unit(rng.normal(size=(40, DIM))).reshape(20, 2, DIM)
    triples = np.stack([ends[:, 0], unit(ends.sum(axis=1)), ends[:, 1]], axis=1).reshape(60, DIM)
    cluster = np.repeat(np.arange(len(sizes) + 20), [*sizes, *[3] * 20])
    first = np.unique(cluster, return_index=True)[1][cluster]
    return np.concatenate([bank, triples]).astype(np.float32), first, people


def test_triples_of_which_two_are_strangers_are_alone() -> None:
    bank, clusters, people = with_chains()
    found = kept(bank, clusters)
    assert np.array_equal(found[: PEOPLE * IMAGES], clusters[: PEOPLE * IMAGES])
    assert np.mean(found[PEOPLE * IMAGES : people] == clusters[PEOPLE * IMAGES : people]) > 0.7
    assert np.mean(found[people:] == np.arange(people, len(bank))) > 0.9


@pytest.mark.parametrize(
    ("pairs", "lower", "expected"), [(400, 0.0, False), (400, 0.1, False), (400, 0.5, True), (5, 0.5, False)]
)
def test_pairs_count_as_lower_if_many_are_clearly_lower(pairs: int, lower: float, expected: bool) -> None:
    rng = np.random.default_rng(3)
    assert are_lower(binned(rng.normal(size=pairs) - lower), binned(rng.normal(size=5000)), 500) is expected


def test_few_cosines_of_larger_clusters_do_not_tell_that_pairs_are_lower() -> None:
    pairs = np.random.default_rng(3).normal(size=1000)
    assert not are_lower(binned(pairs), binned(np.array([1.5, 1.6])), 4)
    assert are_lower(binned(pairs), binned(np.full(40, 1.5)), 40)


def test_people_of_two_images_stay_if_strangers_join_two_pairs() -> None:
    """Two cosines of the one larger cluster happen to be high; they must not cost all other people."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(200, 256)))
    bank = unit(np.repeat(centres, 2, axis=0) + rng.normal(size=(400, 256)) / 16).astype(np.float32)
    cosine = (bank[::2] * bank[1::2]).sum(axis=1)
    one, other = np.argsort(cosine)[-2:]
    clusters = np.arange(400) // 2 * 2
    clusters[[2 * one, 2 * one + 1, 2 * other, 2 * other + 1]] = 2 * min(one, other)
    found = kept(bank, clusters)
    assert np.unique(found, return_counts=True)[1].max() >= 2
    assert (np.bincount(found)[found] > 1).mean() > 0.9


def test_equal_cosines_are_not_lower() -> None:
    assert not are_lower(binned(np.ones(400)), binned(np.ones(5000)), 500)
    assert not are_lower(binned(np.zeros(0)), binned(np.ones(5)), 5)
    assert not are_lower(binned(np.ones(5)), binned(np.zeros(0)), 0)


def binned(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many of the values / 10 are in each bin of the cosines."""
    return np.bincount(np.rint((values / 10 + 1) * BINS).astype(np.int64), minlength=2 * BINS + 1)


def test_cosines_are_those_of_the_other_images() -> None:
    bank = unit(np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float32)).astype(np.float64)
    pairs = bank @ bank.T
    assert with_others(bank[None])[0] == pytest.approx((pairs.sum(axis=1) - 1) / 4, abs=1e-6)
    assert between_strangers(bank.astype(np.float32)) == pytest.approx((pairs.sum() - 5) / 20, abs=1e-6)
    assert between_strangers(bank[:1].astype(np.float32)) == pytest.approx(0, abs=1e-6)


RANKS = """
import pathlib, sys
import numpy as np, torch
from app.mining import strangers, whole_clusters
from app.runtime import dist
folder = pathlib.Path(sys.argv[1])
whole_clusters.ROWS_AT_ONCE = 64
with dist.world() as here:
    bank, clusters = np.load(folder / "bank.npy"), np.load(folder / "clusters.npy")
    shard, original = torch.from_numpy(dist.share(bank, here)), np.arange(len(bank), dtype=np.int32)
    found = strangers.without_strangers(clusters, shard, original, bank, 1000, here)
    np.save(folder / f"found_{here.rank}.npy", found)
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "planted", [joined(6)[:2], with_pairs(0.55)[:2], with_chains()[:2]], ids=["strangers", "pairs", "chains"]
)
def test_three_processes_find_the_same_strangers(planted: tuple[Floats, NDArray[np.int64]], tmp_path: Path) -> None:
    bank, clusters = planted
    np.save(tmp_path / "bank.npy", bank)
    np.save(tmp_path / "clusters.npy", clusters)
    run_ranks(RANKS, 3, str(tmp_path), free_port())
    found = kept(bank, clusters)
    assert not np.array_equal(found, clusters)
    for rank in range(3):
        assert np.array_equal(np.load(tmp_path / f"found_{rank}.npy"), found)
