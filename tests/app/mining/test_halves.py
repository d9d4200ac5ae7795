"""Both ways to divide a group find its two people, and measure no more than chance where there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage

from app.mining.arrays import Doubles
from app.mining.graph import most_alike, settle
from app.mining.halves import (
    GROUPS,
    LARGER,
    LEAST_GROUPS,
    SIZES,
    WAYS,
    Halves,
    Null,
    beside,
    by_chance,
    directions,
    few,
    groups_of,
    halves,
    products_beside,
    scatter,
    widest_direction,
)

DIM = 64


def noise(count: int, seed: int) -> Doubles:
    """Return differences [count, DIM] of length about 1."""
    return np.random.default_rng(seed).normal(size=(count, DIM)) / DIM**0.5


def alike(group: Doubles) -> Doubles:
    return directions((group @ group.T)[None])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("second", [4, 3, 2])
def test_the_two_people_of_a_group_are_found_whatever_the_order(way: Callable[[Doubles], Halves], second: int) -> None:
    group = 0.3 * noise(12, 0)
    group[:second, 0] += 1.5
    order = np.random.default_rng(0).permutation(12)
    truth = np.arange(12) < second
    for rows, expected in ((group, truth), (group[order], truth[order])):
        one = way(alike(rows)).one[0]
        assert np.array_equal(one, expected) or np.array_equal(~one, expected)
    assert way(alike(group)).measure[0] == pytest.approx(way(alike(group[order])).measure[0])


@pytest.mark.parametrize("size", [4, 7, 40])
def test_the_images_most_alike_are_those_of_the_best_node_of_a_tree_of_average_linkage(size: int) -> None:
    groups = np.concatenate([alike(noise(size, seed)) for seed in range(20)])
    measures, parts = most_alike((groups + groups.transpose(0, 2, 1)) / 2, 2)
    for group, measure, part in zip(groups, measures, parts, strict=True):
        nodes = [{image} for image in range(size)]
        for one, other, *_ in linkage(group.max() - group[np.triu_indices(size, 1)], "average"):
            nodes.append(nodes[int(one)] | nodes[int(other)])
        best = {}
        for node in nodes:
            if 2 <= len(node) <= size - 2:
                pairs = group[np.ix_(sorted(node), sorted(node))][np.triu_indices(len(node), 1)]
                best[pairs.mean() * len(pairs) ** 0.5] = node
        assert measure == pytest.approx(max(best))
        assert set(np.flatnonzero(part)) == best[max(best)]


@pytest.mark.parametrize(("size", "least"), [(4, 2), (9, 2), (9, 4), (40, 2)])
def test_images_move_to_the_nearer_mean_as_if_each_were_compared(size: int, least: int) -> None:
    moved = 0
    for seed in range(20):
        group = noise(size, seed)
        group -= group.mean(axis=0)
        found = expected = np.random.default_rng(seed).permutation(size) < size // 2
        for _ in range(3):
            costs = []
            for part in (expected, ~expected):
                others = np.maximum(part.sum() + np.where(part, -1, 1), 1)
                costs.append(((group - group[part].mean(axis=0)) ** 2).sum(axis=1) * part.sum() / others)
            nearer = costs[0] < costs[1]
            expected = nearer if least <= nearer.sum() <= size - least else expected
        parts = found[None].copy()
        settle((group @ group.T)[None], parts, 3, least)
        assert np.array_equal(parts[0], expected)
        moved += not np.array_equal(found, expected)
    assert moved


def test_fewer_groups_of_more_images_say_what_many_say(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = noise(2000, 5)
    few_groups = by_chance(pool, 87)
    monkeypatch.setattr("app.mining.halves.groups_of", lambda sizes: [1000] * len(sizes))
    many_groups = by_chance(pool, 87)
    assert few_groups
    assert many_groups
    for way in (0, 1, LARGER):
        mean, known = np.array(few_groups.mean[way]), np.array(many_groups.mean[way])
        spread = np.array(many_groups.spread[way])
        assert (abs(mean - known) < 0.3 * spread).all()
        assert few_groups.spread[way] == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("largest", [4, 8, 10, 13, 348])
def test_larger_groups_are_fewer_and_small_ones_are_many(largest: int) -> None:
    sizes = [size for size in SIZES if size <= largest]
    groups = groups_of(sizes)
    assert groups == sorted(groups, reverse=True)
    assert groups[0] == GROUPS
    assert groups[-1] >= (GROUPS // 2 if largest <= 13 else LEAST_GROUPS)


def test_few_images_of_a_second_person_are_found_that_the_widest_direction_misses() -> None:
    group = 0.8 * noise(60, 1)
    group[:4, 0] += 0.8
    one, chance = few(alike(group)).one[0], by_chance(0.8 * noise(2000, 2), 60)
    assert chance is not None
    assert one[:4].all() or not one[:4].any()
    assert min(one.sum(), (~one).sum()) <= 6
    above = [float(chance.deviations(way(alike(group)).measure, 60, at)[0]) for at, way in enumerate((halves, few))]
    assert above[1] > 3 > above[0]


@pytest.mark.parametrize("size", [5, 60, 150])
def test_groups_of_one_person_measure_what_chance_gives_at_every_size(size: int) -> None:
    chance = by_chance(noise(2000, 3), size)
    assert chance is not None
    groups = noise(40 * size, 4).reshape(40, size, DIM)
    found = [way(directions(np.matmul(groups, groups.transpose(0, 2, 1)))).measure for way in WAYS]
    above = [chance.deviations(measure, size, at) for at, measure in enumerate(found)]
    for each in (*above, chance.deviations(np.maximum(*above), size, LARGER)):
        assert abs(each.mean()) < 0.6
        assert 0.4 < each.std() < 1.6


def test_chance_is_measured_up_to_the_size_that_is_needed() -> None:
    chance = by_chance(noise(400, 5), 20)
    assert chance is not None
    assert chance.sizes == [size for size in SIZES if size <= 22]
    assert by_chance(noise(7, 5), 20) is None


def test_equal_images_have_parts_that_are_numbers() -> None:
    same = np.ones((1, 6, DIM)) / DIM**0.5
    for way in WAYS:
        found = way(directions(products_beside(same)))
        assert np.isfinite(found.measure).all()
        assert 2 <= found.one.sum() <= 4


def test_the_scatter_of_the_parts_is_that_of_their_images() -> None:
    group = 0.3 * noise(10, 6)
    group[:4, 0] += 2
    for way in WAYS:
        found = way(alike(group))
        parts = [group[found.one[0]], group[~found.one[0]]]
        expected = [((part - part.mean(0)) ** 2).sum() / (len(part) - 1) for part in parts]
        scattered = scatter((group @ group.T)[None], found.one.astype(np.float64))
        assert scattered[0] == pytest.approx(expected)


@pytest.mark.parametrize("size", [4, 20, 120])
def test_the_widest_direction_is_that_of_all_eigenvectors(size: int) -> None:
    groups = alike(noise(size, 7)).repeat(2, axis=0)
    widths, vectors = np.linalg.eigh(groups)
    width, direction = widest_direction(groups)
    assert width == pytest.approx(widths[:, -1])
    assert np.abs((direction * vectors[:, :, -1]).sum(axis=1)) == pytest.approx(1)


def test_products_beside_the_mean_are_those_of_the_images_without_their_part_along_it() -> None:
    groups = (0.5 + noise(30, 8)).reshape(3, 10, DIM)
    rest = beside(groups, groups.mean(axis=1, keepdims=True))
    assert products_beside(groups) == pytest.approx(np.matmul(rest, rest.transpose(0, 2, 1)))


@pytest.mark.parametrize(("share", "images", "tight"), [(0.3, 9, True), (0.6, 9, False), (0.3, 2, False)])
def test_only_a_part_of_half_the_scatter_or_less_is_tight(share: float, images: int, tight: bool) -> None:
    chance = Null([4], mean=[], spread=[], scatter=0.5, scatter_spread=0.2)
    assert chance.is_tight(share * 0.5, images) is tight
