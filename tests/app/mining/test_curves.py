"""Pieces of a person whose images lie along a curve become one cluster; people who touch stay apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.curves import DRAWN_FROM, LEAST, TOUCHING, Line, fills, joined, measured, touching, with_strangers
from app.mining.gate import pair_f, pair_precision
from app.mining.lists import Neighbours
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime.dist import World
from benchmarks._planted import make
from tests.app.support.planted import lists_of, unit
from tests.app.support.ranks import run_ranks
from tests.support.ports import free_port

ALONE = World(0, 1, torch.device("cpu"))
FLOOR = 0.3
Ids = NDArray[np.int64]


def curves(
    people: int, images: int, seed: int = 0, *, turn: float = 1.0, private: bool = True
) -> tuple[NDArray[np.float32], Ids, Ids]:
    """Return embeddings of people who turn their heads by up to `turn` rad to each side, the person, and a half of it.

    They turn in a `private` direction each, or all in the same.
    """
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(people), images)
    centre, side = unit(rng.normal(size=(people, 256))), unit(rng.normal(size=(people if private else 1, 256)))
    angle = rng.uniform(-turn, turn, len(owner))
    side = side[owner if private else 0 * owner]
    bank = np.cos(angle)[:, None] * centre[owner] + np.sin(angle)[:, None] * side
    half = 2 * owner + (angle > 0)
    return unit(bank + 0.8 * rng.normal(size=bank.shape) / 16), owner, half


def first_images(labels: Ids) -> Ids:
    """Return each cluster named after its first image, as the functions of mining name them."""
    _, first, cluster = np.unique(labels, return_index=True, return_inverse=True)
    return first[cluster]


def join(bank: NDArray[np.float32], labels: Ids, largest: int = 1000) -> Ids:
    everyone = np.arange(len(bank), dtype=np.int32)
    listed = Neighbours(*lists_of(bank, 32))
    return joined(first_images(labels), torch.from_numpy(bank), listed, FLOOR, everyone, largest, ALONE)


@pytest.mark.parametrize(
    ("squared", "confirmed", "variance", "one_curve"),
    [
        (1.0, 0.9, 1 / 12, True),  # images spread evenly
        (0.1, 0.09, 1 / 120, True),
        (1.0, 0.9, 0.03, False),  # a gap
        (1.0, 0.3, 1 / 12, False),  # the halves of the images do not show the same line
        (0.0, 0.0, 0.0, False),
        (1.0, float("nan"), 1 / 12, False),
        (1.0, 0.9, float("nan"), False),
        (float("nan"), 0.9, 1 / 12, False),
    ],
)
def test_images_fill_a_line_if_they_vary_along_it_and_their_halves_confirm_it(
    squared: float, confirmed: float, variance: float, *, one_curve: bool
) -> None:
    line = Line(np.array([squared]), np.array([confirmed]), np.array([variance]))
    assert fills(line).tolist() == [one_curve]


def test_the_halves_of_a_turn_are_joined_and_two_people_are_not() -> None:
    bank, owner, half = curves(10, 60)
    assert np.array_equal(join(bank, half), first_images(owner))
    assert np.array_equal(join(bank, owner), first_images(owner))


def test_people_who_look_alike_stay_apart_though_they_touch() -> None:
    bank, labels = make("twins", 1200, "medium", 256, 2)
    labels = labels.astype(np.int64)
    everyone = first_images(labels)
    listed = Neighbours(*lists_of(bank, 32))
    assert len(touching(everyone, np.bincount(everyone, minlength=len(bank)), listed, FLOOR, ALONE))
    assert np.array_equal(join(bank, labels), everyone)


@pytest.mark.parametrize("dim", [8, 16, 24])
def test_people_stay_apart_where_strangers_fill_lines_too(dim: int) -> None:
    """In few dimensions, as in those that a weak network uses, the images of each person scatter along every line."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(20), 40)
    centre = unit(rng.normal(size=(20, dim)))
    centre[1::2] = unit(centre[::2] + 0.8 * unit(rng.normal(size=(10, dim))))  # look-alikes
    bank = unit(centre[owner] + 0.8 * rng.normal(size=(len(owner), dim)) / dim**0.5)
    assert len(np.unique(join(bank.astype(np.float32), owner))) >= 19


@pytest.mark.parametrize("images_at_once", [7, 1024])
def test_lines_are_measured_by_the_images_that_count(images_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.mining.curves.IMAGES_AT_ONCE", images_at_once)
    bank, _, half = curves(4, 60)
    counted = np.where(np.arange(len(half)) % 5 > 0, half, -1)
    images = np.bincount(counted[counted >= 0], minlength=len(bank))
    pairs = np.array([[0, 1], [0, 2], [2, 7]])
    line = measured(pairs, counted, images, torch.from_numpy(bank), ALONE)
    for at, pair in enumerate(pairs):
        one, other = (bank[counted == name].astype(np.float64) for name in pair)
        between = one.mean(axis=0) - other.mean(axis=0)
        assert line.squared[at] == pytest.approx(between @ between, rel=1e-4)
        along = [part @ between / np.linalg.norm(between) for part in (one, other)]
        assert line.variance[at] == pytest.approx(np.mean([part.var(ddof=1) for part in along]), rel=1e-4)


def test_pairs_are_compared_with_others_of_a_limited_number_of_clusters() -> None:
    images = np.append(np.full(5000, LEAST), [0, LEAST - 1])
    pairs = np.array([[0, 1], [2, 3]] * 200)
    lines, are_others = with_strangers(pairs, images)
    drawn = lines[..., 1]
    assert 900 < len(np.unique(drawn)) <= DRAWN_FROM
    assert (images[drawn] >= LEAST).all()
    assert np.array_equal(are_others, (drawn != pairs[:, :1]) & (drawn != pairs[:, 1:]))
    assert not with_strangers(pairs, np.where(np.arange(len(images)) < 2, LEAST, 0))[1][
        ::2
    ].any()  # there are no others


def test_a_person_above_the_largest_size_stays_in_pieces() -> None:
    bank, owner, half = curves(4, 60)
    assert np.array_equal(join(bank, half, largest=60), first_images(owner))
    assert np.array_equal(join(bank, half, largest=59), first_images(half))


def test_clusters_touch_if_enough_images_of_both_list_the_other() -> None:
    labels = first_images(np.repeat(np.arange(3), LEAST))
    images = np.bincount(labels, minlength=len(labels))
    ids = np.full((len(labels), 2), -1, np.int32)
    for at in range(TOUCHING):
        ids[at, 0], ids[LEAST + at, 0] = LEAST + at, at  # the first two clusters list each other
        ids[at, 1] = 2 * LEAST + at  # the third is only listed
    listed = Neighbours(ids, np.where(ids < 0, -np.inf, 0.5).astype(np.float32))
    assert touching(labels, images, listed, FLOOR, ALONE).tolist() == [[0, LEAST]]
    assert not len(touching(labels, images, listed, 0.6, ALONE))
    assert not len(touching(labels, images - 1, listed, FLOOR, ALONE))
    assert not len(touching(labels, images * 4, listed, FLOOR, ALONE))  # three of sixteen are no border
    ids[0, 0] = -1
    assert not len(touching(labels, images, listed, FLOOR, ALONE))


@pytest.mark.parametrize("private", [True, False])
def test_mining_finds_people_who_turn_their_heads(*, private: bool) -> None:
    """Each has 120 images and a list 32, so no list reaches from one end to the other."""
    bank, owner, _ = curves(8, 120, private=private)
    nothing = np.full(len(bank), NO_ID, np.int64)
    found, report = find_pseudo_ids(torch.from_numpy(bank), nothing, None, MiningConfig(), ALONE, seed=0)
    assert report.accepted
    assert pair_precision(found, owner.astype(np.int32)) > 0.99
    assert pair_f(found, owner.astype(np.int32)) > 0.9


RANKS = """
import pathlib, sys
import numpy as np, torch
from app.mining import curves
from app.mining.lists import Neighbours
from app.runtime import dist
folder = pathlib.Path(sys.argv[1])
curves.ROWS_AT_ONCE, curves.PAIRS_AT_ONCE, curves.IMAGES_AT_ONCE = 16, 3, 2
with dist.world() as here:
    bank, labels, ids, cosine = (np.load(folder / f"{name}.npy") for name in ("bank", "labels", "ids", "cosine"))
    listed = Neighbours(dist.share(ids, here), dist.share(cosine, here))
    everyone = np.arange(len(bank), dtype=np.int32)
    found = curves.joined(labels, torch.from_numpy(dist.share(bank, here)), listed, 0.3, everyone, 100, here)
    np.save(folder / f"found_{here.rank}.npy", found)
print("fine")
"""


@pytest.mark.slow
def test_three_processes_join_as_one_does(tmp_path: Path) -> None:
    bank, owner, half = curves(10, 60)
    mixed = np.random.default_rng(0).permutation(len(bank))
    bank, owner, labels = bank[mixed], owner[mixed], first_images(half[mixed])
    ids, cosine = lists_of(bank, 32)
    for name, array in (("bank", bank), ("labels", labels), ("ids", ids), ("cosine", cosine)):
        np.save(tmp_path / f"{name}.npy", array)
    run_ranks(RANKS, 3, str(tmp_path), str(free_port()))
    found = join(bank, labels)
    assert np.array_equal(found, first_images(owner))
    for rank in range(3):
        assert np.array_equal(np.load(tmp_path / f"found_{rank}.npy"), found)
