"""A direction that images of different people share is found and removed; that of a person stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.gate import Report, pair_f
from app.mining.pseudo_ids import find_pseudo_ids
from app.mining.shared_direction import Facts, is_shared, variance_along, without
from app.runtime.dist import World
from tests.app.support.planted import blurred, planted, unit

Found = tuple[NDArray[np.int64], Report]


def find(bank: NDArray[np.float32], labels: NDArray[np.int32]) -> Found:
    alone = World(0, 1, torch.device("cpu"))
    nothing = np.full(len(bank), NO_ID, np.int64)
    return find_pseudo_ids(torch.from_numpy(bank), nothing, labels, MiningConfig(), alone, seed=0)


@pytest.mark.parametrize(
    ("facts", "shared"),
    [
        (Facts(images=0.15, outside=1.00, others=0.99, variance=0.004), True),  # a cone
        (Facts(images=0.15, outside=0.38, others=0.46, variance=0.004), True),  # a cone; most images have no neighbour
        (Facts(images=0.15, outside=0.07, others=0.99, variance=0.004), False),  # a person
        (Facts(images=0.15, outside=0.20, others=0.46, variance=0.004), False),
        (Facts(images=0.02, outside=0.40, others=0.50, variance=0.070), False),  # people differ along it
        (Facts(images=0.15, outside=float("nan"), others=0.99, variance=0.004), False),
        (Facts(images=0.15, outside=1.00, others=0.99, variance=float("nan")), False),
    ],
)
def test_a_cluster_shows_no_person_if_its_images_resemble_others_without_its_direction(
    facts: Facts, *, shared: bool
) -> None:
    assert is_shared(facts, chance=0.05) == shared


@pytest.mark.parametrize("count", [0, 1, 5, 70_000])
def test_what_is_left_has_length_1_and_no_part_along_the_direction_whatever_the_number_of_rows(count: int) -> None:
    rows = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(count, 16))))
    direction = torch.nn.functional.normalize(torch.arange(1.0, 17.0), dim=0)
    left = without(rows, direction)
    assert left.shape == rows.shape
    assert (left @ direction).abs().sum() <= 1e-5 * count
    torch.testing.assert_close(torch.linalg.vector_norm(left, dim=1), torch.ones(count), atol=1e-5, rtol=0)
    assert torch.equal(left[:3], without(rows[:3], direction))


def test_a_row_along_the_direction_and_a_row_without_one_become_zero() -> None:
    direction = torch.nn.functional.normalize(torch.arange(1.0, 17.0), dim=0)
    left = without(torch.stack([direction, -direction, torch.zeros(16)]), direction)
    assert torch.equal(left, torch.zeros(3, 16))
    assert without(torch.full((1, 16), torch.nan), direction).isnan().all()


def test_variance_along_a_direction_is_that_of_most_images() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(500, 16)))
    first = torch.eye(16)[0]
    assert variance_along(first, torch.from_numpy(rows)) == pytest.approx(1 / 16, rel=0.25)
    rows[:50] = np.eye(16)[0]
    assert variance_along(first, torch.from_numpy(rows)) < 2 / 16
    assert variance_along(first, torch.from_numpy(rows[:50])) == 1.0  # all equal
    assert variance_along(first, torch.empty(0, 16)) == 1.0


def test_blurry_images_join_their_people_in_place_of_each_other() -> None:
    bank, labels = planted([25] * 30, 128, 0.7)
    bank[:120] = blurred(bank[:120])
    found, report = find(bank, labels)
    assert report.shared == 1
    assert report.largest <= 30
    assert pair_f(found, labels) > 0.97
    assert pair_f(found[:120], labels[:120]) > 0.9


@pytest.mark.parametrize(("sizes", "dim"), [([150] * 3 + [10] * 40, 128), ([40] * 25, 12)])
def test_the_direction_of_a_person_stays(sizes: list[int], dim: int) -> None:
    bank, labels = planted(sizes, dim, 0.4)
    found, report = find(bank, labels)
    assert report.shared == 0
    assert pair_f(found, labels) > 0.9
