"""The search within cells: exact inside them, for any number of processes, refused where it misses too many."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from app.config import NO_ID, MiningConfig
from app.mining import ivf, search
from app.mining.gate import keep_ids
from app.mining.ivf import cells_of, cells_to_read, make_cells, neighbours_in_cells
from app.mining.knn import SearchInexact, neighbours
from app.mining.lists import NONE, Neighbours
from app.mining.pseudo_ids import find_pseudo_ids
from app.mining.sample import counted, recall
from app.mining.search import choose_search, reachable, searched
from app.runtime.dist import ALONE
from tests.app.runtime.test_memory_estimate import peak_bytes
from tests.app.support.planted import planted
from tests.app.support.ranks import run_ranks

IVF = MiningConfig(neighbours=16, min_overlap=0.2, search="ivf", max_cluster=100, min_recall=0.98)


def within(bank: np.ndarray, k: int, read: int) -> Neighbours:
    shard = torch.from_numpy(bank)
    return neighbours_in_cells(shard, k, make_cells(shard, ALONE), read, ALONE, placement="auto")


def test_all_cells_together_find_what_the_exact_search_finds_bit_for_bit() -> None:
    bank = planted([12] * 40 + [1] * 60, 32, 0.8)[0]
    bank[:50] = bank[50]  # more copies than a list has places
    bank[[3, 70]] = np.nan
    exact = neighbours(torch.from_numpy(bank), 16, ALONE, backend="faiss", placement="auto")
    cells = make_cells(torch.from_numpy(bank), ALONE)
    found = within(bank, 16, len(cells.centres))
    assert len(cells.centres) == cells.near.shape[1] == 22
    assert np.array_equal(found.ids, exact.ids)
    assert np.array_equal(found.cosine, exact.cosine)
    assert found.unusable == exact.unusable == 2


def test_few_cells_find_a_subset_whose_recall_was_known_before_the_search() -> None:
    bank = planted([40] * 100, 64, 0.9)[0]
    shard = torch.from_numpy(bank)
    cells = make_cells(shard, ALONE)
    shares = []
    for wanted in (0.5, 0.9, 0.98):
        read, share = cells_to_read(cells, shard, 16, None, ALONE, wanted)
        assert read is not None
        found = neighbours_in_cells(shard, 16, cells, read, ALONE, placement="auto")
        assert recall(found, shard, ALONE, sample=512, seed=0) == pytest.approx(share, abs=1e-3)
        assert share >= 1 - (1 - wanted) / 2
        shares.append((read, share))
    assert shares == sorted(shares)
    assert cells_to_read(cells, shard, 16, None, ALONE, float("nan"))[0] is None


def test_a_list_counts_up_to_the_last_entry_that_reaches_its_floor() -> None:
    cosine = torch.tensor([[0.9, 0.5, 0.4, 0.1], [0.7, 0.6, 0.2, 0.1], [0.9, -torch.inf, -torch.inf, -torch.inf]])
    floors = np.array([0.8, 0.6, 0.4, 0.3], np.float32)
    assert counted(cosine, floors).tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2, [True] + [False] * 3]
    assert counted(cosine, None).sum() == 9
    bank = torch.eye(3)
    found = neighbours(bank, 2, ALONE, backend="faiss", placement="auto")
    assert np.isnan(recall(found, bank, ALONE, sample=3, seed=0, floors=np.full(2, np.nan, np.float32)))


@pytest.mark.parametrize(
    ("name", "images", "faiss", "how"),
    [
        ("auto", 1_200_000, True, "exact"),
        ("auto", 5_000_000, True, "exact"),
        ("auto", 5_000_001, True, "ivf"),
        ("auto", 42_500_000, False, "exact"),
        ("ivf", 10, True, "ivf"),
        ("exact", 42_500_000, True, "exact"),
    ],
)
def test_auto_searches_exactly_up_to_five_million(name: str, images: int, faiss: bool, how: str) -> None:
    assert choose_search(name, images, faiss=faiss) == how


@pytest.mark.parametrize(("images", "cells"), [(1, 1), (47, 1), (240, 10), (3072, 128), (1_000_000, 41600)])
def test_number_of_cells(images: int, cells: int) -> None:
    assert cells_of(images) == cells


def test_cells_take_the_memory_of_a_few_tables_of_their_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 42 million images a table of centres has 3.6 GB, and a GPU also holds embeddings and the training."""
    for name, value in {"ROWS_A_CELL": 2, "ROWS_AT_ONCE": 256, "tile_rows": lambda *_: 64}.items():
        monkeypatch.setattr(ivf, name, value)
    rows = normalize(torch.randn(8192, 256, generator=torch.Generator().manual_seed(0)), dim=1)
    table = cells_of(len(rows)) * rows.shape[1] * 4
    # The centres, the sums in float64, the centres once more in 16 bits, and the nearest cells of all images.
    assert peak_bytes(lambda: make_cells(rows, ALONE)) < 4.5 * table


def test_pseudo_ids_of_planted_people_are_those_of_the_exact_search() -> None:
    bank, labels = planted([40] * 60 + [5] * 100, 64, 0.6)
    nothing = np.full(len(bank), NO_ID, np.int64)
    both = [
        find_pseudo_ids(torch.from_numpy(bank), nothing, labels, replace(IVF, search=how), ALONE, seed=seed)
        for how, seed in (("exact", 0), ("ivf", 0), ("ivf", 1))
    ]
    assert np.array_equal(both[1][0], both[2][0])
    assert (keep_ids(both[0][0], both[1][0]) != both[0][0]).mean() < 0.02
    assert both[0][1].search == "exact"
    assert both[1][1].search.startswith("ivf, ")
    assert both[1][1].recall >= 0.98


def test_too_low_a_recall_is_refused_with_a_value_that_works_and_auto_searches_exactly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = planted([1] * 3000, 64, 1.0)[0]  # strangers: a neighbour may lie in any cell
    shard = torch.from_numpy(bank)
    with pytest.raises(SearchInexact, match=r"give mining\.search=exact, or mining\.min_recall=0\.\d+$") as refused:
        searched(shard, IVF, None, ALONE)
    works = float(str(refused.value).rpartition("=")[2])
    assert searched(shard, replace(IVF, min_recall=works), None, ALONE)[1].startswith("ivf")
    monkeypatch.setattr(search, "EXACT_UP_TO", 100)
    found, how = searched(shard, replace(IVF, search="auto"), None, ALONE)
    assert how == "exact"
    assert "search: exact, because mining.search=ivf finds" in capsys.readouterr().err
    assert recall(found, shard, ALONE, sample=100, seed=0) == 1.0


def test_auto_compares_all_pairs_where_another_sample_shows_that_the_cells_miss_too_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few neighbours of noise in 8 dimensions are above the floor, so a sample says little of the recall."""
    rows = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(3).normal(size=(3000, 8))).float())
    nothing = np.full(len(rows), NO_ID, np.int64)
    strict = replace(IVF, min_recall=0.999)
    with pytest.raises(SearchInexact, match=r"the search found .* give mining\.search=exact"):
        find_pseudo_ids(rows.clone(), nothing, None, strict, ALONE, seed=0)
    monkeypatch.setattr(search, "EXACT_UP_TO", 100)
    found = find_pseudo_ids(rows.clone(), nothing, None, replace(strict, search="auto"), ALONE, seed=0)
    exact = find_pseudo_ids(rows.clone(), nothing, None, replace(strict, search="exact"), ALONE, seed=0)
    assert np.array_equal(found[0], exact[0])
    assert found[1].search == "exact"
    assert "search: exact, because cells have" in capsys.readouterr().err


def test_a_refused_recall_is_below_the_one_that_the_message_asks_for() -> None:
    shard = torch.from_numpy(planted([20] * 150, 64, 0.6)[0])
    with pytest.raises(SearchInexact) as refused:
        searched(shard, replace(IVF, min_recall=0.999), None, ALONE)
    reached, needed = (float(share) for share in re.findall(r"[\d.]+(?=%)", str(refused.value)))
    assert reached < needed == 99.95


def test_no_usable_image_and_the_reachable_recall() -> None:
    found, how = searched(torch.zeros(5, 8), IVF, None, ALONE)
    assert how == "exact"
    assert (found.ids == NONE).all()
    assert reachable(0.99) == pytest.approx(0.98)
    assert reachable(0.3) == 0


RANK = """
import sys
import numpy as np, torch
from app.mining.gate import keep_ids
from app.mining.ivf import make_cells, neighbours_in_cells
from app.runtime import dist
torch.set_num_threads(1)
folder = sys.argv[1]
bank = np.load(f"{folder}/bank.npy")
with dist.world() as here:
    shard = torch.from_numpy(dist.share(bank, here)) if here.size < 3 else torch.from_numpy(
        bank[[0, 0, 900, len(bank)][here.rank] : [0, 900, len(bank)][here.rank]])
    cells = make_cells(shard, here)
    for placement in ("replicated", "ring"):
        found = neighbours_in_cells(shard, 16, cells, 3, here, placement=placement)
        ids, cosine = (dist.gather_rows(torch.from_numpy(x), here).numpy() for x in (found.ids, found.cosine))
        np.savez(f"{folder}/{placement}-{here.size}-{here.rank}.npz", ids=ids, cosine=cosine, unusable=found.unusable)
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_find_what_one_finds_wherever_embeddings_lie(size: int, tmp_path: Path) -> None:
    bank = planted([40] * 50, 48, 0.8)[0]
    bank[:60], bank[[70, 1500]] = bank[60], np.nan
    bank[1200:1230] = bank[60]
    np.save(tmp_path / "bank.npy", bank)
    alone = within(bank, 16, 3)
    run_ranks(RANK, size, str(tmp_path))
    results = [np.load(file) for file in tmp_path.glob("*.npz")]
    assert len(results) == 2 * size
    for result in results:
        assert np.array_equal(result["ids"], alone.ids)
        assert np.array_equal(result["cosine"], alone.cosine)
        assert result["unusable"] == alone.unusable
