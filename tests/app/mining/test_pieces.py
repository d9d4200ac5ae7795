"""Pieces of one person in several groups of images are one cluster; people who look alike are not joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.gate import pair_f, pair_precision
from app.mining.pieces import in_either, in_pieces, united
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime.dist import World
from tests.app.support.planted import unit

ALONE = World(0, 1, torch.device("cpu"))
DIM, WHOLE = 256, np.zeros(4, np.bool_)
Floats = NDArray[np.float64]


def videos(people: int, groups: int, frames: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return embeddings of people in `groups` videos of `frames` frames each, and the person of each image."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(people * groups), frames)
    labels = group // groups
    noise = 0.7**0.5 * rng.normal(size=(people * groups, DIM))[group] + 0.3**0.5 * rng.normal(size=(len(group), DIM))
    order = rng.permutation(len(group))
    faces = unit(unit(rng.normal(size=(people, DIM)))[labels] + noise / DIM**0.5)
    return faces[order].astype(np.float32), labels[order].astype(np.int32)


def test_a_person_of_many_videos_is_one_cluster() -> None:
    bank, labels = videos(people=12, groups=20, frames=6)
    nothing = np.full(len(bank), NO_ID, np.int64)
    found, _ = find_pseudo_ids(torch.from_numpy(bank), nothing, labels, MiningConfig(), ALONE, seed=0)
    assert pair_f(found, labels) > 0.9
    assert pair_precision(found, labels) > 0.99


def sums_of(alike: float, groups: int, images: int) -> Floats:
    """Return sums of clusters of `images` images around centres of which each has the cosine `alike` with the first."""
    rng = np.random.default_rng(1)
    centres = np.linalg.qr(rng.normal(size=(DIM, groups)))[0].T
    centres[1:] = alike * centres[0] + (1 - alike**2) ** 0.5 * centres[1:]
    faces = unit(np.repeat(centres, images, axis=0) + rng.normal(size=(groups * images, DIM)) / DIM**0.5)
    return np.asarray(faces.reshape(groups, images, DIM).sum(axis=1), np.float64)


@pytest.mark.parametrize(("alike", "joined"), [(0.85, True), (0.55, False), (0.0, False)])
def test_clusters_are_joined_if_their_centres_have_more_in_common_than_not(alike: float, joined: bool) -> None:
    into = united(np.array([[0, 1]]), sums_of(alike, 2, 20), np.array([20, 20]), np.zeros(2, np.bool_), 100)
    assert into == ([0, 0] if joined else [0, 1])


@pytest.mark.parametrize(("pieces", "alike", "joined"), [(2, 0.6, True), (1, 0.6, False), (2, 0.35, False)])
def test_less_in_common_is_enough_for_two_pieces(pieces: int, alike: float, joined: bool) -> None:
    piece = np.arange(2) < pieces
    into = united(np.array([[0, 1]]), sums_of(alike, 2, 20), np.array([20, 20]), piece, 100)
    assert into == ([0, 0] if joined else [0, 1])


def test_joined_clusters_count_as_one_and_stay_below_the_limit() -> None:
    pairs = np.array([[0, 1], [0, 2], [1, 2], [2, 3]])
    sums = sums_of(0.95, 4, 20)
    assert united(pairs, sums, np.full(4, 20), WHOLE, 100) == [0, 0, 0, 0]
    assert max(np.unique(united(pairs, sums, np.full(4, 20), WHOLE, 60), return_counts=True)[1]) == 3
    assert united(pairs, sums, np.full(4, 20), WHOLE, 30) == [0, 1, 2, 3]
    assert united(pairs, -np.abs(sums) * 0, np.full(4, 20), WHOLE, 100) == [0, 1, 2, 3]  # images that cancel each other


def test_clusters_are_cut_into_pieces_and_joined_again() -> None:
    labels, pieces = np.array([0, 0, 0, 3, 3, 5]), np.array([0, 1, 1, 1, 4, 4])
    assert in_pieces(labels, pieces).tolist() == [0, 1, 1, 3, 4, 5]
    assert in_either(labels, np.array([0, 1, 1, 3, 4, 3]), 6).tolist() == [0, 0, 0, 3, 3, 3]
    assert in_either(labels, np.array([0, 1, 1, 3, 4, 3]), 2).tolist() == [0, 0, 0, 3, 3, 5]
