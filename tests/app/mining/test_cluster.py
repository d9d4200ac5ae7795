"""Clusters: compiled loops equal naive ones; planted people, difficult images, the size limit and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.cluster import (
    NONE_KNOWN,
    by_components,
    by_overlap,
    list_lengths,
    number,
    propagate,
    similarity_floors,
    with_pieces,
)
from app.mining.gate import pair_f
from app.mining.graph import FULL, join, sweep, weigh
from app.runtime.dist import World
from tests.app.support.planted import Lists, largest, lists_of, planted, unit

ALONE = World(0, 1, torch.device("cpu"))
MANY = 2**63


def overlap_ids(lists: Lists, floor: float | NDArray[np.float32], max_size: int = 1000) -> NDArray[np.int64]:
    labels = by_overlap(*lists, ALONE, MiningConfig(max_cluster=max_size), floor).labels
    return number(labels, 2, max_size)


def component_ids(lists: Lists, similarity: float, max_size: int = 1000) -> NDArray[np.int64]:
    labels = by_components(*lists, ALONE, MiningConfig(similarity=similarity, max_cluster=max_size)).labels
    return number(labels, 2, max_size)


def find(bank: NDArray[np.float32], k: int = 20, max_size: int = 1000) -> NDArray[np.int64]:
    return overlap_ids(lists_of(bank, k), similarity_floors(bank[:2048], len(bank), k, 0.05), max_size)


# Compiled loops.


def naive_weights(
    lists: Lists, degree: np.ndarray, large: np.ndarray, group: np.ndarray, min_overlap: float, min_common: int = 0
) -> np.ndarray:
    ids, cosine = lists
    near = [set(ids[i, : degree[i]].tolist()) | {i} for i in range(len(ids))]
    weight = np.zeros(ids.shape, np.uint16)
    for i in range(len(ids)):
        for s in range(degree[i]):
            j = ids[i, s]
            overlap = len(near[i] & near[j]) / len(near[i] | near[j])
            shared = len(near[i] & near[j])
            enough = overlap >= min_overlap and (not min_common or (i in near[j] and shared >= min_common))
            enough |= large[i] and large[j] and i in near[j]
            if group[i] >= 0 and group[i] == group[j] and enough:
                scale = FULL if i in near[j] else FULL // 2
                weight[i, s] = min(int(scale * overlap * cosine[i, s]), FULL)
    return weight


def held(lists: Lists) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the lists as a process holds them that has all, in another order than that of the images."""
    place = np.random.default_rng(0).permutation(len(lists[0])).astype(np.int32)
    return lists[0][np.argsort(place)], place


def naive_sweep(
    ids: np.ndarray, degree: np.ndarray, weight: np.ndarray, labels: np.ndarray, seed: int, number: int
) -> np.ndarray:
    new = labels.copy()
    for i in range(len(ids)):
        x = (seed + number * 0x94D049BB133111EB + i * 0x9E3779B97F4A7C15) % 2**64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        votes: dict[int, int] = {}
        for s in range(degree[i]):
            if weight[i, s]:
                label = int(labels[ids[i, s]])
                votes[label] = votes.get(label, 0) + int(weight[i, s])
        if votes and x < MANY:
            new[i] = min(votes, key=lambda label: (-votes[label], label))
    return new


@pytest.fixture(scope="module")
def lists() -> Lists:
    bank, _ = planted([1, 2, 3, 5, 9, 30, 40], 24, 0.9)
    bank[3] = bank[4]  # two copies
    return lists_of(bank, 12)


@pytest.fixture(scope="module")
def degree(lists: Lists) -> NDArray[np.int32]:
    return (lists[1] >= 0.3).sum(1).astype(np.int32)


def test_weights_are_those_of_naive_sets(lists: Lists, degree: NDArray[np.int32]) -> None:
    n = len(degree)
    for group in (np.zeros(n, np.int32), (np.arange(n) % 3 - 1).astype(np.int32)):
        for large in (np.zeros(n, np.bool_), np.arange(n) % 4 > 0):
            for common in (0, 6):
                weight = np.zeros(lists[0].shape, np.uint16)
                weigh(*lists, 0, *held(lists), degree, large, group, 0.2, common, weight, NONE_KNOWN)
                same = np.zeros_like(weight)
                weigh(*lists, 0, lists[0], np.empty(0, np.int32), degree, large, group, 0.2, common, same, NONE_KNOWN)
                assert np.array_equal(same, weight)
                assert np.array_equal(weight, naive_weights(lists, degree, large, group, 0.2, common))
                assert weight.any()
                assert common == 0 or not np.array_equal(weight, naive_weights(lists, degree, large, group, 0.2))


def test_weights_of_longer_lists_only_raise_weights(lists: Lists, degree: NDArray[np.int32]) -> None:
    group, large = np.zeros(len(degree), np.int32), np.zeros(len(degree), np.bool_)
    weight = np.zeros(lists[0].shape, np.uint16)
    shorter = degree // 2
    for length in (shorter, degree):
        weigh(*lists, 0, *held(lists), length, large, group, 0.2, 0, weight, NONE_KNOWN)
    each = [naive_weights(lists, length, large, group, 0.2) for length in (shorter, degree)]
    assert np.array_equal(weight, np.maximum(*each))
    assert (each[0] > each[1]).any()


def test_pairs_of_lists_that_are_no_longer_keep_their_weights(lists: Lists, degree: NDArray[np.int32]) -> None:
    group, large = np.zeros(len(degree), np.int32), np.arange(len(degree)) % 4 > 0
    shorter = np.where(np.arange(len(degree)) % 3 > 0, degree, degree // 2).astype(np.int32)
    found = []
    for before in (NONE_KNOWN, shorter):
        found.append(np.zeros(lists[0].shape, np.uint16))
        weigh(*lists, 0, *held(lists), shorter, large, group, 0.2, 0, found[-1], NONE_KNOWN)
        once = found[-1].copy()
        weigh(*lists, 0, *held(lists), degree, large, group, 0.2, 6, found[-1], before)
        assert (found[-1] > once).any()
    assert np.array_equal(found[0], found[1])


def test_lists_of_any_ids_are_told_apart() -> None:
    """Ids that differ in one bit only, or in the highest ones, would share a place of a careless table."""
    named = np.unique(np.concatenate([2 ** np.arange(15), 2 ** np.arange(14) + 2**14, np.arange(3)])).astype(np.int32)
    ids = np.zeros((2**15 + 1, len(named)), np.int32)
    ids[named] = named
    degree, group = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.int32)
    degree[named] = len(named)
    cosine, weight = np.ones(ids.shape, np.float32), np.zeros(ids.shape, np.uint16)
    weigh(ids, cosine, 0, ids, np.empty(0, np.int32), degree, group > 0, group, 1.0, 0, weight, NONE_KNOWN)
    assert (weight[named] > 0).all()


def test_a_share_of_the_rows_gets_the_same_weights(lists: Lists, degree: NDArray[np.int32]) -> None:
    group, large = np.zeros(len(degree), np.int32), np.arange(len(degree)) % 2 > 0
    part = np.zeros((30, 12), np.uint16)
    weigh(lists[0][50:80], lists[1][50:80], 50, *held(lists), degree, large, group, 0.2, 0, part, NONE_KNOWN)
    assert np.array_equal(part, naive_weights(lists, degree, large, group, 0.2)[50:80])


@pytest.mark.parametrize("size", [60, 200, 300])
def test_a_person_with_many_more_images_than_a_list_holds_stays_whole(size: int) -> None:
    """Lists cut at k share about k / size of their entries, far below any fixed overlap."""
    bank, labels = planted([size] * 4 + [3] * 100, 256, 0.8, seed=3)
    found = find(bank, k=32)
    assert pair_f(found, labels) > 0.95


def test_propagation_is_that_of_naive_sweeps(lists: Lists, degree: NDArray[np.int32]) -> None:
    """Propagation skips rows without changed neighbours, and gives the same labels as without skipping."""
    nothing = np.zeros(len(degree), np.int32)
    ids, weight = lists[0], naive_weights(lists, degree, nothing > 0, nothing, 0.2)
    labels = np.arange(len(ids), dtype=np.int32)
    for sweep_number in range(50):
        labels = naive_sweep(ids, degree, weight, labels, 5, sweep_number)
    assert np.array_equal(propagate(ids, degree, weight, 5, ALONE), labels)
    assert len(np.unique(labels)) < 40


def test_equal_votes_go_to_the_smallest_label() -> None:
    ids = np.array([[2, 1], [0, 2], [0, 1]], np.int32)
    new = np.empty(3, np.int32)
    for attempt in range(8):  # so that each coin shows both sides
        args = (np.full(3, 2, np.int32), np.full((3, 2), 9, np.uint16), 0, np.arange(3, dtype=np.int32))
        sweep(ids, *args, np.zeros(3, np.bool_), np.ones(3, np.bool_), attempt, 0, new)
        assert new.tolist() in [[a, b, c] for a in (0, 1) for b in (1, 0) for c in (2, 0)]


def test_joining_never_passes_the_limit() -> None:
    edges = np.random.default_rng(0).integers(0, 60, (400, 2)).astype(np.int32)
    group = {i: {i} for i in range(60)}
    for a, b in edges.tolist():
        if group[a] is not group[b] and len(group[a] | group[b]) <= 7:
            both = group[a] | group[b]
            group.update(dict.fromkeys(both, both))
    assert join(edges, 60, 7).tolist() == [min(group[i]) for i in range(60)]


# Planted people and difficult images.


def test_planted_people_of_1_to_100_images_are_found() -> None:
    sizes = np.random.default_rng(1).integers(1, 101, 40).tolist()
    bank, labels = planted(sizes, 128, 0.9)
    found = find(bank, k=32)
    assert pair_f(found, labels) > 0.97
    assert largest(found) <= 1.2 * max(sizes)


def test_people_with_fewer_images_than_a_list_is_long_are_found() -> None:
    bank, labels = planted([5] * 200, 128, 0.9)
    assert pair_f(find(bank, k=32), labels) > 0.97


def test_a_chain_of_in_between_images_does_not_join_two_people() -> None:
    bank, labels = planted([30, 30, 30, 30], 64, 0.5)
    a, b = bank[labels == 0].mean(0), bank[labels == 1].mean(0)
    steps = np.linspace(0.2, 0.8, 5)[:, None]
    found = find(np.concatenate([bank, unit((1 - steps) * a + steps * b)]))[:120]
    assert not set(found[labels == 0]) & set(found[labels == 1])


def test_a_cone_of_blurry_images_does_not_become_one_person() -> None:
    """Connected components do worse on these images, at any threshold."""
    bank, labels = planted([10] * 100, 64, 0.8)
    direction = unit(np.random.default_rng(3).normal(size=(1, 64)))
    lists = lists_of(np.concatenate([bank, unit(0.5 * bank[:100] + 0.5 * direction)]))
    f = pair_f(overlap_ids(lists, similarity_floors(bank, len(bank), 20, 0.05))[:1000], labels)
    assert f > 0.95
    assert f > max(pair_f(component_ids(lists, similarity)[:1000], labels) for similarity in np.arange(0.3, 0.9, 0.05))


def test_more_copies_than_a_list_is_long_are_one_cluster() -> None:
    bank, _ = planted([20] * 10, 32, 0.6)
    bank = np.concatenate([bank, np.repeat(bank[:1], 40, axis=0)])
    assert len(set(find(bank, k=10)[200:].tolist()) - {NO_ID}) == 1


def test_a_person_in_many_pieces_is_one_cluster_above_a_strict_floor() -> None:
    """No piece of ten images has most of the entries of another. Above a low floor they may be of strangers."""
    random, count, k = np.random.default_rng(0), 2000, 16
    person = np.arange(count) // 1000
    ids = np.stack([random.choice(np.flatnonzero(person == each), k, replace=False) for each in person]).astype(
        np.int32
    )
    pieces, full = (np.arange(count) // 10 * 10).astype(np.int32), np.ones(count, np.bool_)
    assert np.array_equal(with_pieces(pieces, ids, full, ALONE) // 1000, person)
    assert len(np.unique(with_pieces(pieces, ids, full, ALONE))) == 2
    assert np.array_equal(with_pieces(pieces, ids, full, ALONE, strict=False), pieces)


def test_people_whose_lists_name_their_own_images_first_do_not_join_those_who_look_alike() -> None:
    """Each has 10 images, whose lists name the other 9, and 23 of three people who look alike."""
    random, person = np.random.default_rng(0), np.arange(40) // 10
    own = [np.flatnonzero((person == each) & (np.arange(40) != image)) for image, each in enumerate(person)]
    others = [random.choice(np.flatnonzero(person != each), 23, replace=False) for each in person]
    ids = np.concatenate([np.array(own), np.array(others)], axis=1).astype(np.int32)
    labels = (person * 10).astype(np.int32)
    assert np.array_equal(with_pieces(labels, ids, np.ones(40, np.bool_), ALONE), labels)


def test_random_vectors_form_next_to_no_clusters() -> None:
    bank, _ = planted([1] * 1000, 32, 0.0)
    assert (find(bank) != NO_ID).mean() < 0.1


@pytest.mark.parametrize("every", [True, False])
def test_a_piece_joins_the_cluster_that_its_full_lists_name(every: bool) -> None:
    """Images 6 and 7 are a piece of 0 to 5, 8 is alone, and 9 to 12 are another person with one entry outside."""
    labels = np.array([0] * 6 + [6, 6, 8] + [9] * 4, np.int32)
    ids = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [5, 0, 1], [4, 0, 1], [7, 0, 1], [0, 1, 2], [6, 7, 0]])
    ids = np.concatenate([ids, [[10, 11, 0], [9, 11, 12], [9, 10, 12], [9, 10, 11]]]).astype(np.int32)
    full = np.ones(13, np.bool_)
    full[7] = every
    found = with_pieces(labels, ids, full, ALONE)
    assert (found[9:] == 9).all()
    assert (found[:9] == 0).all() if every else found[:9].tolist() == [0] * 6 + [6, 6, 6]


def test_two_clusters_that_name_each_other_become_one() -> None:
    labels = np.array([0, 1, 0, 1], np.int32)
    ids = np.array([[1, 3, 2], [0, 2, 3], [1, 3, 0], [0, 2, 1]], np.int32)
    assert with_pieces(labels, ids, np.ones(4, np.bool_), ALONE).tolist() == [0] * 4


# The size limit.


@pytest.mark.parametrize("method", [overlap_ids, component_ids])
def test_people_over_the_limit_are_split_not_lost(method: type[overlap_ids]) -> None:
    """The previous system lost 59 % of a perfect clustering: people of 72 images over a limit of 50."""
    bank, labels = planted([72] * 6 + [5] * 60, 64, 0.5)
    lists = lists_of(bank, 20)
    whole, found = method(lists, 0.5), method(lists, 0.5, max_size=50)
    assert largest(whole) > 50 >= largest(found)
    assert (found != NO_ID).sum() > 0.97 * (whole != NO_ID).sum()
    together = [np.unique(labels[found == i]) for i in range(found.max() + 1)]
    assert all(len(people) == 1 for people in together)


def test_a_cluster_many_times_over_the_limit_is_left_out() -> None:
    bank, labels = planted([*[8] * 20, 1], 64, 0.3)
    bank = np.concatenate([bank, np.repeat(bank[labels == 20], 150, axis=0)])
    found = find(bank, max_size=20)
    assert (found[161:] == NO_ID).all()
    assert (found[:161][labels != 20] != NO_ID).all()


# Edge cases.


def test_ids_are_numbered_by_first_image_and_the_same_for_the_same_seed() -> None:
    bank, _ = planted([7] * 50, 32, 0.8)
    found = find(bank)
    assert np.array_equal(found, find(bank))
    assert list(dict.fromkeys(found[found != NO_ID].tolist())) == list(range(found.max() + 1))


@pytest.mark.parametrize("method", [overlap_ids, component_ids])
def test_rows_without_neighbours_have_no_pseudo_id(method: type[overlap_ids]) -> None:
    ids, cosine = lists_of(unit(np.repeat(np.eye(8), 3, axis=0)), 4)
    ids[[0, 1, 2]], cosine[[0, 1, 2]] = -1, -np.inf
    assert np.array_equal(method((ids, cosine), 0.5), np.repeat(np.arange(8), 3) - 1)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_fewer_images_than_neighbours_are_clustered_too(count: int) -> None:
    lists = lists_of(np.ones((count, 1), np.float32), 5)
    for method in (overlap_ids, component_ids):
        assert method(lists, 0.5).tolist() == ([0] * count if count > 1 else [NO_ID] * count)


@pytest.mark.parametrize("dim", [4, 8, 32, 256])
def test_the_floors_let_through_about_as_many_chance_neighbours_as_asked(dim: int) -> None:
    """Later floors let more through, as long lists by chance are rarer; in few dimensions, too."""
    expected = [0.05, 0.05, 0.0518, 0.0937]
    bank, _ = planted([1] * 3000, dim, 0.0)
    cosine = bank @ bank.T
    np.fill_diagonal(cosine, -1)
    passed = [(cosine >= floor).sum(1).mean() for floor in similarity_floors(bank[:2048], 3000, 4, 0.05)]
    assert passed == pytest.approx(expected, rel=0.35)


def test_floors_fall_from_rank_to_rank_and_stay_cosines() -> None:
    for bank in (planted([5] * 100, 32, 0.8)[0], np.tile(np.eye(1, 8, dtype=np.float32), (9, 1))):
        floors = similarity_floors(bank, len(bank), 32, 0.05)
        assert (np.diff(floors) <= 0).all()
        assert (floors >= 0).all()
        assert (floors <= 1).all()


def test_without_a_pair_to_measure_nothing_is_alike() -> None:
    assert similarity_floors(np.empty((0, 8), np.float32), 10, 3, 0.05).tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("cosines", "length"),
    [
        ([0.9, 0.2, 0.1], 1),
        ([0.7, 0.65, 0.1], 2),
        ([0.7, 0.5, 0.1], 0),
        ([0.7, 0.5, 0.45], 3),
        ([-np.inf] * 3, 0),
    ],
)
def test_a_list_counts_as_far_as_the_last_entry_that_reaches_the_floor_of_its_rank(
    cosines: list[float], length: int
) -> None:
    floors = np.float32([0.8, 0.6, 0.4])
    assert list_lengths(np.float32([cosines]), floors).tolist() == [length]
