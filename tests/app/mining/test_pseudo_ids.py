"""The whole path from embeddings to pseudo-IDs: any number of processes, both methods, unusual embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.cluster import Clusters, with_looser
from app.mining.clustered import originals
from app.mining.doubt import doubts
from app.mining.gate import Report, keep_ids, pair_f, pair_precision
from app.mining.knn import SearchInexact, neighbours
from app.mining.lists import Neighbours
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime.dist import World
from benchmarks._planted import KINDS, make
from tests.app.support.planted import blurred, largest, lists_of, planted, unit
from tests.app.support.ranks import run_ranks
from tests.support.ports import free_port

CONFIG = MiningConfig(neighbours=16, min_overlap=0.2, backend="faiss", max_cluster=50)
Found = tuple[NDArray[np.int64], Report]


def find(bank: NDArray[np.float32], labels: NDArray[np.int32] | None = None, **changes: object) -> Found:
    nothing = np.full(len(bank), NO_ID, np.int64)
    alone = World(0, 1, torch.device("cpu"))
    return find_pseudo_ids(torch.from_numpy(bank), nothing, labels, replace(CONFIG, **changes), alone, seed=0)


def find_default(bank: NDArray[np.float32]) -> Found:
    alone = World(0, 1, torch.device("cpu"))
    return find_pseudo_ids(torch.from_numpy(bank), np.full(len(bank), NO_ID), None, MiningConfig(), alone, seed=0)


@pytest.fixture(scope="module")
def people() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    return planted([72] * 4 + [5] * 60 + [1] * 50, 64, 0.7)


def test_planted_people_are_found_and_the_report_tells(people: tuple[NDArray, NDArray]) -> None:
    bank, labels = people
    found, report = find(bank, labels, max_cluster=100)
    assert report.accepted
    assert report.pair_f == pair_f(found, labels) > 0.97
    assert report.purity is not None
    assert report.purity > 0.97
    assert report.recall == 1.0
    assert 0.5 < report.coverage < 1
    assert report.cosine is not None
    assert report.cosine > report.floor
    assert report.churn is None
    assert find(bank)[1].purity is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("images", "level", "orders"), [(300, "hard", 2), (1200, "medium", 1)])
def test_the_order_of_the_images_changes_no_cluster(kind: str, images: int, level: str, orders: int) -> None:
    """Some images are there twice, or have no direction; the embeddings are as before afterwards."""
    bank = make(kind, images, level, 64, 2)[0]
    bank = np.concatenate([bank, bank[:5], np.zeros((2, 64), np.float32)])
    before = bank.copy()
    found, report = find_default(bank)
    assert np.array_equal(bank, before)
    for seed in range(orders):
        mixed = np.random.default_rng(seed).permutation(len(bank))
        again = np.empty_like(found)
        again[mixed], other = find_default(np.ascontiguousarray(bank[mixed]))
        assert np.array_equal(keep_ids(found, again), found)
        assert (other.count, other.coverage, other.floor, other.cosine) == (
            report.count,
            report.coverage,
            report.floor,
            report.cosine,
        )


def test_rows_without_a_direction_have_no_pseudo_id_and_are_counted(people: tuple[NDArray, NDArray]) -> None:
    bank = people[0].copy()
    bank[5], bank[17], bank[99] = np.nan, 0.0, np.inf
    found, report = find(bank)
    assert (found[[5, 17, 99]] == NO_ID).all()
    assert report.unusable == 3
    assert report.accepted


def test_frames_of_a_video_do_not_keep_a_person_apart() -> None:
    """Three images have 60 near-copies each, which fill their lists of 16; their person still stays whole."""
    bank, labels = planted([30] * 10, 64, 0.7)
    frames = bank[:3].repeat(60, 0) + 0.01 * np.random.default_rng(0).normal(size=(180, 64)).astype(np.float32)
    bank = np.concatenate([bank, frames / np.linalg.norm(frames, axis=1, keepdims=True)])
    labels = np.concatenate([labels, labels[:3].repeat(60)])
    found, _ = find(bank, max_cluster=1000)
    assert pair_f(found, labels) > 0.97
    assert largest(find(bank, max_cluster=50)[0]) <= 50  # copies count towards the limit


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_one_group_whatever_their_order(seed: int) -> None:
    """A list of 8 holds few of the 60 copies of an image, and rarely the first."""
    bank, labels = planted([60] * 3, 32, 0.01, seed)
    alone = World(0, 1, torch.device("cpu"))
    found = originals(Neighbours(*lists_of(bank, 8)), alone, floor=0.5)
    assert np.array_equal(found, np.unique(labels, return_index=True)[1][labels])


def test_a_search_that_misses_neighbours_ends_the_refresh(people: tuple[NDArray, NDArray]) -> None:
    with pytest.raises(SearchInexact, match=r"mining\.backend"):
        find(people[0], min_recall=1.01)  # no search can reach it


@pytest.mark.parametrize("count", [1, 2, 3])
def test_next_to_no_images_are_next_to_no_clusters(count: int) -> None:
    found, report = find(np.eye(count, 8, dtype=np.float32))
    assert (found == NO_ID).all()
    assert not report.accepted


@pytest.mark.parametrize("points", [1, 16])
def test_embeddings_that_collapsed_to_few_points_are_refused(points: int) -> None:
    few = np.random.default_rng(0).normal(size=(points, 32)).astype(np.float32)
    bank = np.tile(few / np.linalg.norm(few, axis=1, keepdims=True), (3000 // points, 1))
    _, report = find(bank, max_cluster=1000)
    assert not report.accepted


@pytest.mark.parametrize("images", [64, 128, 200, 468, 1000])
def test_people_of_any_size_stay_whole_at_the_default_settings(images: int) -> None:
    """Also those with many more images than a list holds, whose lists have little in common."""
    rng = np.random.default_rng(images)
    labels = np.concatenate([np.repeat(np.arange(8), images), 8 + np.arange(300) // 3]).astype(np.int32)
    centres = rng.normal(size=(108, 256))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    bank = (centres[labels] + 0.8 * rng.normal(size=(len(labels), 256)) / 16).astype(np.float32)
    found, report = find_default(bank / np.linalg.norm(bank, axis=1, keepdims=True))
    assert pair_f(found, labels) >= 0.999
    assert pair_precision(found, labels) >= 0.999
    assert report.accepted


def test_people_of_2000_images_stay_whole_beside_small_ones() -> None:
    bank, labels = planted([2000] * 2 + [3] * 100, 256, 0.8)
    found, report = find_default(bank)
    assert pair_f(found, labels) >= 0.999
    assert report.cut == report.left_out == 0


def test_an_image_1500_times_over_does_not_lose_the_clusters() -> None:
    """Pairs of copies must not pass for random pairs, from which the floors are read."""
    bank, labels = planted([30] * 20 + [1] * 50, 64, 0.6)
    found, report = find_default(np.concatenate([bank, np.repeat(bank[:1], 1500, axis=0)]))
    assert report.accepted
    assert pair_f(found[: len(bank)], labels) >= 0.95


@pytest.mark.parametrize("dim", [3, 8, 256])
def test_noise_is_refused(dim: int) -> None:
    _, report = find_default(planted([1] * 3000, dim, 0.0)[0])
    assert not report.accepted, report


def test_embeddings_without_a_number_are_refused() -> None:
    _, report = find_default(np.full((500, 16), np.nan, np.float32))
    assert not report.accepted
    assert report.unusable == 500


def test_clusters_do_not_depend_on_the_seed(people: tuple[NDArray, NDArray]) -> None:
    bank, nothing = torch.from_numpy(people[0]), np.full(len(people[0]), NO_ID, np.int64)
    alone = World(0, 1, torch.device("cpu"))
    one, other = (find_pseudo_ids(bank, nothing, None, CONFIG, alone, seed=seed)[0] for seed in (0, 1))
    assert np.array_equal(one, other)


def test_joined_and_split_people_are_named_as_doubtful() -> None:
    bank, labels = planted([12] * 30, 64, 0.5)
    found = labels.astype(np.int64)
    found[np.flatnonzero(labels == 4)[:5]] = 40  # one person, two pseudo-IDs
    found[labels == 9] = 8  # two people, one pseudo-ID
    alone = World(0, 1, torch.device("cpu"))
    shard = torch.from_numpy(bank)
    doubtful = doubts(found, shard, neighbours(shard, 16, alone, backend="faiss", placement="replicated"), alone)
    assert next(iter(doubtful.loose)) == 8
    assert len(doubtful.loose) == 3
    assert next(iter(doubtful.alike)) in ((4, 40), (40, 4))
    cosine = bank[found == 8] @ bank[found == 8].T
    assert doubtful.loose[8] == pytest.approx(cosine[~np.eye(24, dtype=bool)].mean(), abs=1e-3)
    assert doubts(np.full(360, NO_ID), shard, Neighbours(*lists_of(bank, 4)), alone).loose == {}


def test_the_report_counts_what_the_largest_size_cuts(people: tuple[NDArray, NDArray]) -> None:
    bank, labels = people
    for method in ("overlap", "parity"):
        whole, cut = (find(bank, labels, max_cluster=size, method=method)[1] for size in (100, 30))
        assert whole.cut == 0
        assert cut.cut >= 72
        assert cut.largest <= 30


def test_people_that_differ_in_few_directions_are_found_and_noise_is_not() -> None:
    """Strangers are then as similar as two images of one person, so the first floor leaves most images alone."""
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat(np.arange(100, dtype=np.int32), 12))
    basis = np.linalg.qr(rng.normal(size=(128, 14)))[0]
    centres = unit(rng.normal(size=(100, 14))) @ basis.T
    bank = unit(centres[labels] + 1.15 * unit(rng.normal(size=(1200, 128)))).astype(np.float32)
    found, report = find_default(bank)
    assert report.accepted
    assert pair_f(found, labels) > 0.9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.mining.cluster.EVIDENCE", len(bank))
        assert pair_f(find_default(bank)[0], labels) < 0.5

    for directions in (8, 64):
        noise = unit(rng.normal(size=(1200, directions))).astype(np.float32)
        assert not find_default(noise)[1].accepted


def test_a_looser_cluster_counts_if_it_is_large_and_no_strict_one_holds_most_of_it() -> None:
    def clusters(*sizes: int) -> Clusters:
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return Clusters(np.repeat(first, sizes), np.zeros(sum(sizes), bool))

    strict = clusters(6, 2, 1, 1, 5, 5, 1, 2, 4)
    loose = clusters(10, 10, 7)
    merged = with_looser(strict, loose, 100)
    assert np.bincount(merged.labels)[np.unique(merged.labels)].tolist() == [10, 10, 1, 2, 4]
    assert with_looser(clusters(8, 1, 1), clusters(10), 100).labels.tolist() == [0] * 8 + [8, 9]
    assert np.array_equal(with_looser(strict, loose, 9).labels, strict.labels)  # over the largest size
    nothing = clusters(1)
    assert with_looser(nothing, nothing, 9).labels.tolist() == [0]


def test_people_are_found_in_a_narrow_cone() -> None:
    """All cosines are above 0.9999, and people still differ from each other."""
    bank, labels = planted([20] * 20, 64, 0.5)
    narrow = np.eye(1, 64, dtype=np.float32) * 100 + bank
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    assert (narrow @ narrow.T).min() > 0.9997
    found, report = find_default(narrow)
    assert pair_f(found, labels) > 0.95
    assert report.offset > 0.9997


def test_rows_of_another_length_are_refused(people: tuple[NDArray, NDArray]) -> None:
    with pytest.raises(ValueError, match="length 1"):
        find(3 * people[0])


RANKS = """
import dataclasses, json, os, pathlib, sys
import numpy as np, torch
from app.config import MiningConfig
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime import dist
folder, ports = pathlib.Path(sys.argv[1]), sys.argv[2:]
bank, previous = np.load(folder / "bank.npy"), np.load(folder / "previous.npy")
rank = int(os.environ["RANK"])
for size, port in ((3, ports[0]), (2, ports[1])):
    os.environ.update(WORLD_SIZE=str(size), MASTER_PORT=port)
    if rank < size:
        with dist.world() as here:
            for rows in (len(bank), 2):
                for method in ("overlap", "parity"):
                    config = MiningConfig(neighbours=16, min_overlap=0.2, backend="faiss", max_cluster=50)
                    config.method = method
                    shard = torch.from_numpy(dist.share(bank[:rows], here))
                    found, report = find_pseudo_ids(shard, previous[:rows], None, config, here, seed=0)
                    np.save(folder / f"{method}_{rows}_{size}_{here.rank}.npy", found)
                    (folder / f"{method}_{rows}_{size}_{here.rank}.json").write_text(json.dumps(report.as_dict()))
            mixed = np.load(folder / "mixed.npy")
            shard = torch.from_numpy(dist.share(bank[mixed], here))
            found, _ = find_pseudo_ids(shard, np.full(len(bank), -1), None, config, here, seed=0)
            np.save(folder / f"mixed_{size}_{here.rank}.npy", found)
            config.method = "overlap"
            shard = torch.from_numpy(dist.share(np.load(folder / "raised.npy"), here))
            found, report = find_pseudo_ids(shard, previous, None, config, here, seed=0)
            np.save(folder / f"raised_{size}_{here.rank}.npy", found)
            assert report.offset > 0.8, report
            shard = torch.from_numpy(dist.share(np.load(folder / "posed.npy"), here))
            found, report = find_pseudo_ids(shard, previous, None, config, here, seed=0)
            np.save(folder / f"posed_{size}_{here.rank}.npy", found)
            assert report.shared, report
print("fine")
"""


def test_three_threads_find_what_one_finds() -> None:
    bank, labels = planted([72] * 4 + [5] * 60 + [1] * 50, 64, 0.7)
    previous, before = labels.astype(np.int64), torch.get_num_threads()
    alone, results = World(0, 1, torch.device("cpu")), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(find_pseudo_ids(torch.from_numpy(bank.copy()), previous, None, CONFIG, alone, seed=0))
    finally:
        torch.set_num_threads(before)
    (one, report), (three, other) = results
    assert np.array_equal(one, three)
    assert report == other


@pytest.mark.slow
def test_two_and_three_processes_find_what_one_finds_bit_by_bit(tmp_path: Path) -> None:
    """Also if a process has no rows, if clusters exceed the limit, and, but for the numbers, in another order."""
    bank, labels = planted([72] * 4 + [5] * 60 + [1] * 50, 64, 0.7)
    bank = np.concatenate([bank, bank[:20]])  # copies, so that the search runs twice
    bank[100:200] = blurred(bank[100:200])
    previous = np.concatenate([labels, labels[:20]]).astype(np.int64)
    np.save(tmp_path / "bank.npy", bank)
    np.save(tmp_path / "previous.npy", previous)
    mixed = np.random.default_rng(0).permutation(len(bank))
    np.save(tmp_path / "mixed.npy", mixed)
    raised = unit(bank + 3 * unit(np.ones((1, 64))))
    np.save(tmp_path / "raised.npy", raised)
    posed = planted([6] * 130, 64, 0.7)[0][: len(bank)]
    posed[:, :2] += np.random.default_rng(1).uniform(-1, 1, (len(bank), 2))
    posed = unit(posed)
    np.save(tmp_path / "posed.npy", posed)
    ports = [str(free_port()), str(free_port())]
    run_ranks(RANKS, 3, str(tmp_path), *ports)
    alone = World(0, 1, torch.device("cpu"))
    for method in ("overlap", "parity"):
        config = replace(CONFIG, method=method)
        for rows in (len(bank), 2):
            shard = torch.from_numpy(bank[:rows])
            found, report = find_pseudo_ids(shard, previous[:rows], None, config, alone, seed=0)
            for size, rank in ((3, 0), (3, 1), (3, 2), (2, 0), (2, 1)):
                name = tmp_path / f"{method}_{rows}_{size}_{rank}"
                assert np.array_equal(np.load(f"{name}.npy"), found), name
                assert json.loads(Path(f"{name}.json").read_text()) == report.as_dict(), name
            assert rows == 2 or largest(found) > 30
            assert report.shared == (method == "overlap" and rows > 2)
            if rows > 2 and method == "parity":
                for size, rank in ((3, 0), (3, 1), (3, 2), (2, 0), (2, 1)):
                    again = np.empty_like(found)
                    again[mixed] = np.load(tmp_path / f"mixed_{size}_{rank}.npy")
                    assert np.array_equal(keep_ids(found, again), found)
    for name, rows in (("raised", raised), ("posed", posed)):
        found, _ = find_pseudo_ids(torch.from_numpy(rows), previous, None, CONFIG, alone, seed=0)
        for size, rank in ((3, 0), (3, 1), (3, 2), (2, 0), (2, 1)):
            assert np.array_equal(np.load(tmp_path / f"{name}_{size}_{rank}.npy"), found)
