"""Mining: neighbours against brute force, clusters against planted people, the judge."""

from __future__ import annotations

import numpy as np
import pytest

from app.config import NO_ID, MiningConfig
from app.mining.cluster import cluster, similarity_floor
from app.mining.knn import NONE, nearest
from app.mining.pseudo_ids import judge, purity


def planted(sizes: list[int], dim: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around a random centre for each person, shuffled, and whose they are."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    centres = rng.normal(size=(len(sizes), dim))
    x = centres[labels] / np.sqrt(dim) + spread * rng.normal(size=(len(labels), dim)) / np.sqrt(dim)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def find(bank: np.ndarray, k: int = 20, **changes: object) -> np.ndarray:
    ids, cosine = nearest(bank, np.arange(len(bank)), min(k, len(bank) - 1), threads=1)
    options = {"floor": similarity_floor(bank, 0.05, 0), "min_overlap": 0.2, "min_size": 2, "max_size": 1000, "seed": 0}
    return cluster(ids, cosine, **{**options, **changes})


def largest(found: np.ndarray) -> int:
    return int(np.bincount(found[found != NO_ID]).max())


def pair_f(found: np.ndarray, labels: np.ndarray) -> float:
    """F of "these two show one person" over all pairs; images without an ID are alone."""
    alone = np.where(found == NO_ID, found.max() + 1 + np.arange(len(found)), found)

    def pairs(*keys: np.ndarray) -> float:
        counts = np.unique(np.stack(keys), axis=1, return_counts=True)[1].astype(float)
        return float((counts * (counts - 1) / 2).sum())

    return 2 * pairs(alone, labels) / (pairs(alone) + pairs(labels))


def test_neighbours_are_those_of_brute_force_without_the_image_itself() -> None:
    bank, _ = planted([5] * 30, 16, 1.0)
    queries = np.arange(20, 90)
    ids, cosine = nearest(bank, queries, 7, threads=1)
    exact = bank[queries].astype(np.float64) @ bank.T.astype(np.float64)
    exact[np.arange(len(queries)), queries] = -np.inf
    assert np.array_equal(ids, np.argsort(-exact, axis=1)[:, :7])
    assert np.allclose(cosine, -np.sort(-exact, axis=1)[:, :7], atol=1e-5)


def test_duplicates_do_not_hide_the_image_itself() -> None:
    bank = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    ids, _ = nearest(bank, np.arange(20), 3, threads=1)
    assert all(row not in found for row, found in enumerate(ids))
    assert all(found // 5 == row // 5 for row, line in enumerate(ids) for found in line)


def test_fewer_images_than_neighbours_is_said_with_none() -> None:
    bank = np.eye(3, dtype=np.float32)
    ids, cosine = nearest(bank, np.arange(3), 5, threads=1)
    assert np.array_equal((ids == NONE).sum(1), [3, 3, 3])
    assert np.isneginf(cosine[:, 2:]).all()
    assert nearest(bank, np.array([], np.int64), 5, threads=1)[0].shape == (0, 5)


def test_sharing_the_queries_does_not_change_the_answer() -> None:
    bank, _ = planted([6] * 40, 24, 0.8)
    whole, _ = nearest(bank, np.arange(240), 10, threads=1)
    parts = [nearest(bank, part, 10, threads=1)[0] for part in np.array_split(np.arange(240), 7)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_planted_people_are_found() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 40, 150).tolist()
    bank, labels = planted(sizes, 64, 0.9)
    found = find(bank)
    assert pair_f(found, labels) > 0.97
    assert largest(found) <= 1.2 * max(sizes)


def test_a_chain_of_in_between_images_does_not_join_two_people() -> None:
    bank, labels = planted([30, 30, 30, 30], 64, 0.5)
    a, b = bank[labels == 0].mean(0), bank[labels == 1].mean(0)
    steps = np.linspace(0.2, 0.8, 5)[:, None]
    bridge = (1 - steps) * a + steps * b
    bank = np.concatenate([bank, (bridge / np.linalg.norm(bridge, axis=1, keepdims=True)).astype(np.float32)])
    found = find(bank)
    assert not set(found[:120][labels == 0]) & set(found[:120][labels == 1])


def test_a_cone_of_blurry_images_does_not_become_one_person() -> None:
    bank, labels = planted([10] * 100, 64, 0.8)
    rng = np.random.default_rng(3)
    direction = rng.normal(size=64)
    blurry = 0.5 * bank[:100] + 0.5 * direction / np.linalg.norm(direction)
    bank = np.concatenate([bank, (blurry / np.linalg.norm(blurry, axis=1, keepdims=True)).astype(np.float32)])
    assert pair_f(find(bank)[:1000], labels) > 0.95


def test_a_cluster_over_the_limit_is_split_or_left_out_never_kept() -> None:
    bank, labels = planted([60, *[8] * 60], 32, 0.4)
    assert largest(find(bank)) > 20
    found = find(bank, max_size=20)
    assert largest(found) <= 20
    assert (found[labels != 0] >= 0).mean() > 0.95


def test_the_same_seed_gives_the_same_ids_numbered_by_first_appearance() -> None:
    bank, _ = planted([7] * 50, 32, 0.8)
    found = find(bank)
    assert np.array_equal(found, find(bank))
    first_seen = list(dict.fromkeys(found[found >= 0].tolist()))
    assert first_seen == list(range(len(first_seen)))


def test_random_vectors_form_next_to_no_clusters() -> None:
    bank, _ = planted([1] * 1000, 32, 0.0)
    assert (find(bank) >= 0).mean() < 0.1


def test_no_edges_at_all_is_no_clusters() -> None:
    assert (find(np.eye(5, dtype=np.float32)) == NO_ID).all()


def test_the_floor_lets_through_about_as_many_chance_neighbours_as_asked() -> None:
    bank, _ = planted([1] * 3000, 32, 0.0)
    floor = similarity_floor(bank, 1.0, 0)
    cosine = bank @ bank.T
    np.fill_diagonal(cosine, -1)
    assert (cosine >= floor).sum(1).mean() == pytest.approx(1.0, rel=0.5)


def test_purity_counts_the_commonest_label() -> None:
    assert purity(np.array([0, 0, 0, 1, 1]), np.array([5, 5, 6, 7, 7])) == pytest.approx(4 / 5)
    assert purity(np.array([], np.int64), np.array([], np.int32)) == 1.0


def test_the_judge_refuses_too_little_and_too_large_and_says_why() -> None:
    config = MiningConfig(min_coverage=0.1, max_largest_share=0.3)
    few = judge(np.array([0, 0, *[NO_ID] * 98]), None, config, 0.5)
    assert not few.accepted
    assert "2.0%" in few.why
    one = judge(np.zeros(100, np.int64), np.zeros(100, np.int32), config, 0.5)
    assert not one.accepted
    assert "100 of 100" in one.why
    good = judge(np.arange(100) // 5, np.arange(100, dtype=np.int32) // 5, config, 0.5)
    assert good.accepted
    assert (good.count, good.coverage, good.purity) == (20, 1.0, 1.0)
