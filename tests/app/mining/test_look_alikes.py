"""Two people who look alike are separated; one person whose images have halves is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from threadpoolctl import threadpool_info, threadpool_limits

from app.config import NO_ID, MiningConfig
from app.mining.gate import pair_f, pair_precision
from app.mining.halves import Null
from app.mining.look_alikes import ABOVE, FEW, LEAST_ABOVE, SURE, Limit, apart, is_chance, limit_of, rarely_above, split
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime.dist import World
from tests.app.support.planted import unit
from tests.app.support.ranks import run_ranks
from tests.support.ports import free_port

ALONE = World(0, 1, torch.device("cpu"))
DIM = 128
Floats = NDArray[np.float32]
NO_CHANCE = Null([4], mean=[[-9.0], [99.0], [0.0]], spread=[[1.0]] * 3, scatter=0.5, scatter_spread=0.1)


def people(count: int, images: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Return the centres of people [count * images, DIM], the person of each image, and noise of length about 0.8."""
    owner = np.repeat(np.arange(count), images)
    noise = 0.8 * rng.normal(size=(len(owner), DIM)) / DIM**0.5
    return unit(rng.normal(size=(count, DIM)))[owner], owner, noise.astype(np.float32)


def twins(couples: int, others: int, images: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return embeddings and the person of each: couples of people of cosine 0.88, then others."""
    rng = np.random.default_rng(0)
    centre, owner, noise = people(2 * couples + others, images, rng)
    second = (owner % 2 == 1) & (owner < 2 * couples)
    apart_by = 0.55 * unit(rng.normal(size=(couples, DIM)))[owner[second] // 2]
    centre[second] = unit(centre[np.flatnonzero(second) - images] + apart_by)
    return unit(centre + noise), owner


def separated(bank: Floats, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return apart(labels, torch.from_numpy(bank), np.arange(len(bank), dtype=np.int32), ALONE)


@pytest.mark.parametrize("couples", [1, 4])  # the images of one are too few to measure chance again
def test_people_who_look_alike_are_separated_and_the_others_stay_whole(couples: int) -> None:
    bank, owner = twins(couples, 40, 20)
    joined = np.where(owner < 2 * couples, owner // 2 * 2, owner)
    first = np.unique(joined, return_index=True)[1][np.unique(joined, return_inverse=True)[1]]
    found = separated(bank, first)
    assert pair_precision(first, owner.astype(np.int32)) < 0.98
    assert pair_f(found, owner.astype(np.int32)) > 0.99
    assert np.array_equal(found[owner >= 2 * couples], first[owner >= 2 * couples])
    assert (np.mean(owner < 2 * couples) > FEW) == (couples == 4)


def test_matrices_are_computed_on_one_thread_and_the_limit_ends_with_it() -> None:
    bank, owner = twins(1, 8, 8)
    seen = []

    def threads() -> set[int]:
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        apart(
            owner,
            torch.from_numpy(bank),
            np.arange(len(bank), dtype=np.int32),
            ALONE,
            poll=lambda: seen.append(threads()),
        )
        assert threads() == before
    assert seen
    assert all(each == {1} for each in seen)


def test_mining_finds_people_who_look_alike() -> None:
    bank, owner = twins(4, 40, 20)
    nothing = np.full(len(bank), NO_ID, np.int64)
    found, _ = find_pseudo_ids(torch.from_numpy(bank), nothing, None, MiningConfig(), ALONE, seed=0)
    assert pair_f(found, owner.astype(np.int32)) > 0.99


def test_people_stay_whole_where_each_has_two_halves() -> None:
    rng = np.random.default_rng(1)
    centre, owner, noise = people(60, 20, rng)
    sessions = 0.5 * unit(rng.normal(size=(60, DIM)))
    bank = unit(centre + noise + np.where(rng.random((len(owner), 1)) < 0.5, 1, -1) * sessions[owner])
    first = owner * 20
    assert np.array_equal(separated(bank, first), first)


@pytest.mark.parametrize("images", [300, 500])
def test_people_of_more_images_than_chance_is_known_for_stay_whole(images: int) -> None:
    _, owner, noise = people(3, images, np.random.default_rng(2))
    centre = unit(np.random.default_rng(3).normal(size=(3, DIM)))[owner]
    first = owner * images
    assert np.array_equal(separated(unit(centre + noise), first), first)


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_a_few_images_stay_as_they_are(count: int) -> None:
    bank = unit(np.random.default_rng(0).normal(size=(count, 16)))
    labels = np.zeros(count, np.int64)
    assert np.array_equal(separated(bank, labels), labels)


def test_images_that_are_all_equal_and_rows_without_a_direction_stay_as_they_are() -> None:
    bank = np.zeros((40, 16), np.float32)
    bank[:20, 0] = 1
    labels = np.repeat([0, 20], 20)
    assert np.array_equal(separated(bank, labels), labels)


def test_a_near_copy_follows_its_image() -> None:
    bank, owner = twins(4, 40, 20)
    joined = np.where(owner < 8, owner // 2 * 2, owner) * 20
    original = np.arange(len(bank), dtype=np.int32)
    original[[39, 59]] = 20, 41
    found = apart(joined, torch.from_numpy(bank), original, ALONE)
    assert found[39] == found[20] != found[0]
    assert found[59] == found[41]


@pytest.mark.parametrize(("noise", "pieces"), [(0.7, 2), (0.05, 1)])
def test_a_half_that_is_tighter_than_a_person_does_not_count(noise: float, pieces: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(20, 64)) * 0.7 / 8
    images[:, 0] += 1
    images[10:, 1:] *= noise / 0.7
    images[10:, 1] += 2
    only_first = Limit([np.log(10.0), np.log(20.0)], [99.0, 0.0])
    assert len(split(images[None], NO_CHANCE, only_first)[0]) == pieces


def test_the_limit_is_that_of_clusters_of_the_same_size() -> None:
    size = np.repeat([8, 80], 64)
    normal = np.random.default_rng(0).normal(size=128)
    limit = limit_of(np.where(size == 80, 5 + normal, normal), size)
    assert limit.of(8) == pytest.approx(ABOVE)
    assert limit.of(80) == pytest.approx(5 + ABOVE, abs=1)


@pytest.mark.parametrize("mixed", [0, 20, 40])
def test_chance_explains_clusters_of_one_person_beside_some_of_two(mixed: int) -> None:
    deviations = np.random.default_rng(0).normal(size=100)
    deviations[:mixed] += np.linspace(1, 20, mixed)
    assert is_chance(deviations)


@pytest.mark.parametrize(("centre", "spread"), [(1.5, 1), (0, 2)])
def test_chance_does_not_explain_clusters_that_measure_more_or_differ_more(centre: float, spread: float) -> None:
    assert not is_chance(centre + spread * np.random.default_rng(1).normal(size=100))


@pytest.mark.parametrize(
    ("lower", "upper", "is_low"),
    [
        ([(64, 10), (0, 20)], [(0, 10), (64, 20)], True),  # of equal sizes, all clusters of two people are larger
        ([(24, 10), (4, 80)], [(16, 10), (36, 80)], True),  # nearly all of the larger clusters show two people
        ([(14, 10), (2, 80)], [(26, 10), (38, 80)], False),  # people have halves, but for a few
    ],
)
def test_most_clusters_may_show_two_people_if_a_third_show_one(
    lower: list[tuple[int, int]], upper: list[tuple[int, int]], *, is_low: bool
) -> None:
    size = np.concatenate([np.full(count, each) for count, each in lower + upper])
    one, two = (sum(count for count, _ in each) for each in (lower, upper))
    by_chance = np.random.default_rng(0).permutation(ndtri(np.linspace(0.02, 0.98, one)))
    deviations = np.concatenate([by_chance, np.linspace(9, 30, two)])
    found = np.array(limit_of(deviations, size).above)
    assert bool((found <= ABOVE).all()) is is_low


@pytest.mark.parametrize("twins", [0, 3])
def test_the_limit_rises_with_the_size_as_halves_of_everybody_do(twins: int) -> None:
    size = np.repeat([4, 6, 9, 12, 16, 25, 150], [10, 10, 8, 8, 8, 8, 8])
    deviations = 5 + size**0.5 + np.random.default_rng(0).normal(size=60) / 2
    deviations[40 : 40 + twins] += 20
    limit = limit_of(deviations, size)
    assert (limit.of(size[52:]) > deviations[52:]).all()
    assert (limit.of(size[40 : 40 + twins]) < deviations[40 : 40 + twins]).all()


def test_people_whose_halves_differ_more_or_less_leave_no_gap() -> None:
    deviations = np.append(ndtri(np.linspace(0.02, 0.98, 16)), np.linspace(1, 20, 48))
    assert limit_of(deviations, np.full(64, 20)).of(20) > 10


def test_a_single_cluster_and_equal_ones_have_a_limit() -> None:
    assert limit_of(np.array([4.0]), np.array([8])).of(8) == pytest.approx(4 + ABOVE)
    assert limit_of(np.zeros(9), np.full(9, 8)).of(8) == pytest.approx(ABOVE)


def test_the_limit_of_larger_clusters_is_no_lower_where_many_are_above() -> None:
    deviations = np.append(ndtri(np.linspace(0.02, 0.98, 40)), np.linspace(2.1, 9, 20))
    assert limit_of(deviations, np.full(60, SURE)).of(SURE) < 2.5
    assert limit_of(deviations, np.full(60, SURE + 1)).of(SURE + 1) > ABOVE


@pytest.mark.parametrize(
    ("mixed", "images", "least", "most"),
    [(0, 10, ABOVE, ABOVE), (5, 10, ABOVE, ABOVE), (30, 10, LEAST_ABOVE, 2.5), (5, 90, LEAST_ABOVE, 2.5)],
)
def test_less_is_enough_where_many_images_are_above(mixed: int, images: int, least: float, most: float) -> None:
    chance = np.linspace(-2.5, 2.5, 90)
    size = np.append(np.full(90, 10), np.full(mixed, images))
    assert least <= rarely_above(np.append(chance, np.linspace(2.1, 9, mixed)), size) <= most


RANKS = """
import os, pathlib, sys
import numpy as np, torch
from app.mining import look_alikes, whole_clusters
from app.runtime import dist
folder = pathlib.Path(sys.argv[1])
whole_clusters.ROWS_AT_ONCE = 128
with dist.world() as here:
    bank, labels, original = (np.load(folder / f"{name}.npy") for name in ("bank", "labels", "original"))
    found = look_alikes.apart(labels, torch.from_numpy(dist.share(bank, here)), original, here)
    np.save(folder / f"found_{here.rank}.npy", found)
print("fine")
"""


@pytest.mark.slow
def test_three_processes_separate_as_one_does(tmp_path: Path) -> None:
    bank, owner = twins(4, 40, 20)
    mixed = np.random.default_rng(0).permutation(len(bank))
    joined = np.where(owner < 8, owner // 2 * 2, owner)[mixed]
    labels = np.unique(joined, return_index=True)[1][np.unique(joined, return_inverse=True)[1]]
    original = np.arange(len(bank), dtype=np.int32)
    for name, array in (("bank", bank[mixed]), ("labels", labels), ("original", original)):
        np.save(tmp_path / f"{name}.npy", array)
    run_ranks(RANKS, 3, str(tmp_path), str(free_port()))
    found = separated(bank[mixed], labels)
    assert not np.array_equal(found, labels)
    for rank in range(3):
        assert np.array_equal(np.load(tmp_path / f"found_{rank}.npy"), found)
