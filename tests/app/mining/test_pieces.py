"""Pieces of one person in several groups of images are one cluster; people who look alike are not joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.gate import pair_f, pair_precision
from app.mining.lists import NONE, Neighbours
from app.mining.pieces import in_either, in_pieces, pieced, united
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime.dist import World
from tests.app.support.planted import lists_of, unit
from tests.app.support.ranks import run_ranks

ALONE = World(0, 1, torch.device("cpu"))
DIM, FLOOR, WHOLE = 256, 0.2, np.zeros(4, np.bool_)
Floats, Ids = NDArray[np.float64], NDArray[np.int64]


def videos(people: int, groups: int, frames: int) -> tuple[NDArray[np.float32], Ids, Ids]:
    """Return embeddings of people in `groups` videos of `frames` frames each, and each image's person and video."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(people * groups), frames)
    labels = group // groups
    noise = 0.7**0.5 * rng.normal(size=(people * groups, DIM))[group] + 0.3**0.5 * rng.normal(size=(len(group), DIM))
    order = rng.permutation(len(group))
    faces = unit(unit(rng.normal(size=(people, DIM)))[labels] + noise / DIM**0.5)
    return faces[order].astype(np.float32), labels[order], group[order]


def test_a_person_of_many_videos_is_one_cluster() -> None:
    bank, labels, _ = videos(people=12, groups=20, frames=6)
    nothing = np.full(len(bank), NO_ID, np.int64)
    found, _ = find_pseudo_ids(torch.from_numpy(bank), nothing, None, MiningConfig(), ALONE, seed=0)
    assert pair_f(found, labels.astype(np.int32)) > 0.9
    assert pair_precision(found, labels.astype(np.int32)) > 0.99


def first_images(labels: Ids) -> Ids:
    """Return each cluster named after its first image, as the functions of mining name them."""
    _, first, cluster = np.unique(labels, return_index=True, return_inverse=True)
    return first[cluster]


def test_copies_of_frames_do_not_hide_that_clusters_are_pieces() -> None:
    """Each frame is there three times, and only the first one has a list and counts."""
    bank, owner, video = videos(people=4, groups=12, frames=6)
    ids, cosine = lists_of(bank, 32)
    often, everyone = np.repeat(bank, 3, axis=0), np.arange(3 * len(bank), dtype=np.int32)
    listed = Neighbours(np.full((len(often), 32), NONE, np.int32), np.full((len(often), 32), -np.inf, np.float32))
    listed.ids[::3], listed.cosine[::3] = 3 * ids, cosine
    labels = first_images(np.repeat(video, 3))
    found = pieced(labels, torch.from_numpy(often), listed, FLOOR, everyone // 3 * 3, 1000, ALONE)
    assert np.array_equal(found, first_images(np.repeat(owner, 3)))


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


@pytest.mark.parametrize("whole", [0, 1])
def test_a_piece_that_joins_a_whole_cluster_is_no_piece_any_longer(whole: int) -> None:
    """The third cluster has as much in common with the first two as two pieces need, whichever is named first."""
    sums = sums_of(0.6, 3, 20)
    sums[1] = sums[0]
    into = united(np.array([[0, 1], [0, 2], [1, 2]]), sums, np.full(3, 20), np.arange(3) != whole, 100)
    assert into == [0, 0, 2]


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


RANKS = """
import pathlib, sys
import numpy as np, torch
from app.mining import pieces
from app.mining.lists import NONE, Neighbours
from app.runtime import dist
folder = pathlib.Path(sys.argv[1])
with dist.world() as here:
    bank, labels, ids, cosine = (np.load(folder / f"{name}.npy") for name in ("bank", "labels", "ids", "cosine"))
    for count in (len(bank), 2):  # of two images, the last process has none
        own, lists, likes = (dist.share(each[:count], here) for each in (bank, ids % count, cosine))
        everyone, polls = np.arange(count, dtype=np.int32), []
        found = pieces.pieced(np.minimum(labels[:count], everyone), torch.from_numpy(own), Neighbours(lists, likes),
                              0.2, everyone, 1000, here, lambda: polls.append(1))
        assert polls
        np.save(folder / f"found_{count}_{here.rank}.npy", found)
print("fine")
"""


@pytest.mark.slow
def test_three_processes_join_as_one_does(tmp_path: Path) -> None:
    bank, owner, video = videos(people=4, groups=12, frames=6)
    ids, cosine = lists_of(bank, 32)
    labels = first_images(video)
    for name, array in (("bank", bank), ("labels", labels), ("ids", ids), ("cosine", cosine)):
        np.save(tmp_path / f"{name}.npy", array)
    run_ranks(RANKS, 3, str(tmp_path))
    everyone = np.arange(len(bank), dtype=np.int32)
    found = pieced(labels, torch.from_numpy(bank), Neighbours(ids, cosine), FLOOR, everyone, 1000, ALONE)
    assert np.array_equal(found, first_images(owner))
    for rank in range(3):
        assert np.array_equal(np.load(tmp_path / f"found_{len(bank)}_{rank}.npy"), found)
        assert len(np.load(tmp_path / f"found_2_{rank}.npy")) == 2
