"""Directions along which everybody's images differ are removed; those that tell people apart stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.gate import pair_f
from app.mining.pseudo_ids import find_pseudo_ids
from app.mining.wide_directions import EVERYBODY, chosen, gain, widest, without_wide_directions
from app.runtime.dist import World
from app.runtime.stop import undisturbed
from benchmarks._planted import make
from benchmarks._shapes import planted as shaped
from tests.app.support.planted import planted, unit

ALONE = World(0, 1, torch.device("cpu"))
Rows = NDArray[np.float32]


def removed(bank: Rows) -> int:
    return without_wide_directions(torch.from_numpy(bank), bank, len(bank), 0.05, ALONE, undisturbed)[1]


def moved(bank: Rows, directions: int, width: float, seed: int = 3) -> Rows:
    """Return unit `bank` [*, D], each row moved at random along the first `directions`."""
    place = np.zeros(bank.shape)
    place[:, :directions] = np.random.default_rng(seed).uniform(-width, width, (len(bank), directions))
    return unit(bank + place)


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_directions_along_which_everybody_is_moved_are_removed(directions: int) -> None:
    bank = moved(planted([6] * 250, 96, 0.8)[0], directions, 1.0)
    rows, count = without_wide_directions(torch.from_numpy(bank), bank, len(bank), 0.05, ALONE, undisturbed)
    assert count == directions
    assert rows[:, :directions].abs().mean() < 0.1 * np.abs(bank[:, :directions]).mean()
    assert torch.linalg.vector_norm(rows, dim=1).numpy() == pytest.approx(np.ones(len(bank)), abs=1e-6)


@pytest.mark.parametrize(
    "bank",
    [
        planted([6] * 250, 96, 0.8)[0],
        planted([1] * 1000, 96, 0.8)[0],
        planted([150] * 4 + [5] * 120, 96, 0.8)[0],  # few people have most images
        planted([20] * 60, 12, 0.4)[0],  # each direction tells people apart
        make("low_rank", 3000, "medium", 128, 2)[0],
        make("giants", 2000, "medium", 128, 2)[0],
        make("equal", 2000, "medium", 128, 2)[0],
        shaped("young", 2000, "medium", 2)[0],
        shaped("offset", 2000, "medium", 12)[0],  # the line between two people of 200 images is wide
        planted([3] * 20, 96, 0.8)[0],
        np.eye(1, 8, dtype=np.float32).repeat(100, 0),
        np.eye(100, 2, dtype=np.float32),
        planted([1] * 3000, 3, 0.0)[0],  # in so few directions, chance gives more neighbours without one
        np.zeros((0, 8), np.float32),
    ],
)
def test_directions_that_tell_people_apart_stay(bank: Rows) -> None:
    rows = torch.from_numpy(bank)
    assert without_wide_directions(rows, bank, len(bank), 0.05, ALONE, undisturbed) == (rows, 0)


def test_rows_without_a_direction_and_copies_change_nothing() -> None:
    bank = moved(planted([6] * 250, 96, 0.8)[0], 2, 1.0)
    more = np.concatenate([bank, np.zeros((5, 96), np.float32), np.full((1, 96), np.nan, np.float32), bank[:300]])
    rows, count = without_wide_directions(torch.from_numpy(more), bank, len(more), 0.05, ALONE, undisturbed)
    alone = without_wide_directions(torch.from_numpy(bank), bank, len(bank), 0.05, ALONE, undisturbed)[0]
    assert count == 2
    assert torch.equal(rows[: len(bank)], alone)
    assert not rows[len(bank) : len(bank) + 5].any()


def test_the_widest_directions_are_those_of_most_images() -> None:
    random = np.random.default_rng(0)
    rows = 0.1 * random.normal(size=(500, 16))
    rows[:, 4] *= 5
    rows[:50, 1] += 5  # a tenth of the images make this one the widest
    found = widest(rows.astype(np.float32))
    assert np.abs(found[0]).argmax() == 4
    assert (np.abs(found[:, 1]) < EVERYBODY).all()
    assert len(widest(rows[:, :3].astype(np.float32))) == 0


def test_the_number_that_helps_most_without_a_loss_is_chosen() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 3, 200)
    more, much = base + random.integers(0, 2, 200), base + random.integers(1, 3, 200)
    hides = np.where(np.arange(200) % 4, 5, 0)  # a quarter of the images lose all
    none = np.zeros((3, 200), np.int64)
    assert chosen(base, np.stack([base, base, base]), none, 4) == 0
    assert chosen(base, np.stack([base, more, much]), none, 4) == 2
    assert chosen(base, np.stack([base, much, much]), none, 4) == 1
    assert chosen(base, np.stack([base, more, hides]), none, 4) == 1
    assert chosen(base, np.stack([base, hides, much]), none, 4) == 2  # two offsets hide people until both are removed
    assert chosen(base, np.stack([base, base[::-1]]), none[:2], 4) == 0
    strangers = np.stack([none[0], np.where(np.arange(200) % 4, 2, 0), none[0]])
    assert chosen(base, np.stack([base, much, more]), strangers, 4) == 2  # strangers, who are no help
    best = much + (np.arange(200) % 50 == 0)
    assert (
        chosen(base, np.stack([base, much + strangers[1], best]), strangers, 4) == 2
    )  # one is as good but for strangers
    few = np.full(200, 5)  # images of few people
    assert chosen(few, np.stack([0 * base, base]), none[:2], 4) == 0
    assert chosen(few, np.stack([base, much]), none[:2], 4) == 1
    assert gain(base, base + 1) == np.inf


def test_strangers_along_a_direction_that_is_left_are_no_help() -> None:
    """Many images of people with one image each: without the first direction, strangers fill the lists most."""
    random = np.random.default_rng(2)
    owner = np.concatenate([np.repeat(np.arange(67), 6), np.arange(67, 1665)])
    bank = random.normal(size=(1665, 128))[owner] + 0.7 * random.normal(size=(2000, 128))
    assert removed(moved(unit(bank), 3, 0.8)) >= 3


@pytest.mark.parametrize(("kind", "least"), [("domains", 0.95), ("pose", 0.98), ("wide", 0.9)])
def test_people_are_found_in_spite_of_wide_directions(kind: str, least: float) -> None:
    bank, labels = shaped(kind, 2000, "medium", 2)
    nothing = np.full(len(bank), NO_ID, np.int64)
    found, report = find_pseudo_ids(torch.from_numpy(bank), nothing, labels, MiningConfig(), ALONE, seed=0)
    assert report.shared
    assert pair_f(found, labels) > least
