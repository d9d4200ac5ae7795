"""Without labels: how far apart clusters lie, and that real faces are told apart by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from app.config import NO_ID, MiningConfig
from app.data.sources.source import orl
from app.mining import separation as measured
from app.mining.gate import Report, pair_f, pair_precision
from app.mining.pseudo_ids import find_pseudo_ids, pairs_kept
from app.mining.separation import Separation, separation
from app.runtime.dist import ALONE
from benchmarks._shapes import planted as shapes
from tests.app.support.planted import unit
from tests.app.support.ranks import run_ranks

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]


def planted(scatter: float) -> tuple[Floats, Longs]:
    """Return embeddings of 12 people of 2 to 13 images, and ten strangers who are alone."""
    random = np.random.default_rng(3)
    person = np.concatenate([np.repeat(np.arange(12), np.arange(2, 14)), 12 + np.arange(10)])
    noise = scatter * random.normal(size=(len(person), 32)) / 32**0.5
    return unit(unit(random.normal(size=(22, 32)))[person] + noise).astype(np.float32), person


def apart(bank: Floats, labels: Longs, original: Longs | None = None) -> Separation:
    of = np.arange(len(bank)) if original is None else original
    return separation(labels, torch.from_numpy(bank), of.astype(np.int32), ALONE)


def by_definition(bank: Floats, labels: Longs) -> Separation:
    """Return the same from all pairs of images, as Rousseeuw (1987) defines it, with 1 - cosine as the distance."""
    far = 1 - bank.astype(np.float64) @ bank.T
    silhouette, nearer, count = 0.0, 0, 0
    clusters = [np.flatnonzero(labels == name) for name in np.unique(labels) if (labels == name).sum() > 1]
    for members in clusters:
        for image in members:
            inside = far[image, members].sum() / (len(members) - 1)
            other = min(far[image, others].mean() for others in clusters if others is not members)
            silhouette += (other - inside) / max(other, inside)
            nearer, count = nearer + (inside < other), count + 1
    return Separation(silhouette / len(labels), nearer / count)


@pytest.mark.parametrize("scatter", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("numbers", [2**22, 100])  # of means at once
def test_it_is_the_silhouette_of_all_pairs(scatter: float, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "NUMBERS_AT_ONCE", numbers)
    assert apart(*planted(scatter)) == pytest.approx(by_definition(*planted(scatter)), abs=1e-4)


def test_copies_do_not_count() -> None:
    bank, person = planted(1.0)
    copies = np.repeat(np.arange(5), 40)
    original = np.concatenate([np.arange(len(bank)), copies])
    assert apart(bank[original], person[original], original) == apart(bank, person)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_without_clusters_nothing_is_apart(count: int) -> None:
    assert apart(planted(1.0)[0][:count], np.arange(count)) == Separation(0.0, 0.0)


def test_images_that_are_all_equal_are_not_apart() -> None:
    found = apart(np.repeat(np.eye(1, 8, dtype=np.float32), 6, axis=0), np.array([0, 0, 0, 3, 3, 3]))
    assert found == pytest.approx(Separation(0.0, 0.0), abs=1e-3)


RANKS = """
import pathlib, sys
import numpy as np, torch
from app.mining.separation import separation
from app.runtime import dist
folder = pathlib.Path(sys.argv[1])
with dist.world() as here:
    bank, labels = np.load(folder / "bank.npy"), np.load(folder / "labels.npy")
    shard, original = torch.from_numpy(dist.share(bank, here)), np.arange(len(bank), dtype=np.int32)
    np.save(folder / f"found_{here.rank}.npy", np.array(separation(labels, shard, original, here)))
print("fine")
"""


@pytest.mark.slow
def test_three_processes_measure_the_same(tmp_path: Path) -> None:
    bank, labels = planted(1.5)
    np.save(tmp_path / "bank.npy", bank)
    np.save(tmp_path / "labels.npy", labels)
    run_ranks(RANKS, 3, str(tmp_path))
    for rank in range(3):
        assert tuple(np.load(tmp_path / f"found_{rank}.npy")) == apart(bank, labels)


def photographs(side: int, people: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return the pixels [n, side * side] of the photographs of the first people, less their mean, and who they show."""
    faces = orl()
    assert faces.labels is not None
    count = 10 * people
    images = faces.decode(faces.read(0, count))
    grey = [Image.fromarray(np.asarray(each).mean(axis=2).astype(np.uint8)) for each in images]
    pixels = np.stack([np.asarray(each.resize((side, side), Image.Resampling.BILINEAR)).ravel() for each in grey])
    return pixels - pixels.mean(axis=0), faces.labels[:count].astype(np.int32)


def mined(rows: NDArray[np.float64], people: NDArray[np.int32]) -> tuple[Longs, Report]:
    bank = torch.from_numpy(unit(rows).astype(np.float32))
    return find_pseudo_ids(bank, np.full(len(rows), NO_ID, np.int64), people, MiningConfig(), ALONE, seed=0)


@pytest.mark.parametrize("side", [12, 28])
def test_people_of_few_images_are_told_apart_by_eigenfaces(side: int) -> None:
    """Ten images of each person, lists of 32, and few dimensions (Turk and Pentland 1991): lists reach too far."""
    pixels, people = photographs(side, 40)
    left, scale, _ = np.linalg.svd(pixels, full_matrices=False)
    found, report = mined(left[:, :32] * scale[:32] ** 0.5, people)
    assert report.accepted
    assert pair_precision(found, people) > 0.85  # 0.65 and 0.61 if the lists are not shortened
    assert pair_f(found, people) > 0.7  # 0.67 and 0.64
    assert report.separated > 0.95


def test_pieces_of_one_camera_each_are_no_people_though_they_lie_farther_apart() -> None:
    """Of the directions of four cameras one stays; with all of them each person would be in pieces."""
    bank, people = shapes("four_domains", 2000, "easy", seed=11)
    found, report = mined(bank.astype(np.float64), people)
    assert report.shared > 0
    assert pair_f(found, people) > 0.6  # 0.40 with all directions


def test_pairs_of_images_without_cluster_do_not_count() -> None:
    assert pairs_kept(np.array([0, 0, 0, 3, 3, 5, 6]), np.array([0, 0, 2, 3, 3, 5, 5])) == 1.0
    assert pairs_kept(np.array([0, 0, 0, 0, 4]), np.array([0, 0, 2, 2, 4])) == pytest.approx(1 / 3)


def test_the_widest_directions_stay_if_they_tell_people_apart() -> None:
    """Light changes pixels most, and along the same directions people differ."""
    found, report = mined(*photographs(16, 30))
    assert report.shared == 0
    assert pair_precision(found, photographs(16, 30)[1]) > 0.95  # 0.80 without these directions
