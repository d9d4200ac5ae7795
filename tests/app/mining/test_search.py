"""Neighbours equal those of brute force in float64, with one process or several, for each placement of embeddings."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from app.mining import ring
from app.mining.candidates import REDUCED_SUMS, FullPrecision, full_precision, greatest, members_of_buckets
from app.mining.knn import (
    BACKENDS,
    MOST_BY_FAISS_ON_GPU,
    NO_FAISS,
    NONE,
    Faiss,
    Neighbours,
    Settled,
    choose_backend,
    faiss_module,
    knn_of_faiss,
    methods,
    neighbours,
)
from app.mining.sample import recall, sample_rows
from app.runtime.dist import World
from tests.app.support.nearest import nearest
from tests.app.support.ranks import PROJECT, run_ranks

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
Floats = NDArray[np.float32]


def people(sizes: list[int], dim: int, spread: float = 0.7, seed: int = 0) -> Floats:
    """Unit vectors [N, D] around a random centre for each person, one person after the other."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), dim)).repeat(sizes, axis=0)
    return unit(centres + spread * rng.normal(size=centres.shape))


def unit(x: NDArray[np.float64]) -> Floats:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def find(bank: Floats, k: int, backend: str) -> Neighbours:
    return neighbours(torch.from_numpy(bank), k, ALONE, backend=backend, placement="auto")


def brute_force(bank: Floats, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and cosines [N, k] in float64, ties ordered by id; -1 and -inf pad shorter lists."""
    x = bank.astype(np.float64)
    usable = np.isfinite(x).all(1) & x.any(1)
    x[~usable] = 0
    cosine = np.where(usable[:, None] & usable, x @ x.T, -np.inf)
    np.fill_diagonal(cosine, -np.inf)
    ids = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(cosine, ids, 1)
    wide = ((0, 0), (0, k - ids.shape[1]))
    return np.pad(np.where(np.isfinite(best), ids, NONE), wide, constant_values=NONE), np.pad(
        best, wide, constant_values=-np.inf
    )


def check(found: Neighbours, bank: Floats, k: int) -> None:
    """Ids and cosines are those of brute force; entries whose cosines differ only in float64 may be swapped."""
    ids, cosine = brute_force(bank, k)
    assert found.ids.shape == ids.shape
    assert np.array_equal(found.ids == NONE, ids == NONE)
    assert np.allclose(found.cosine, cosine, atol=1e-6)
    different = found.ids != ids
    x = bank.astype(np.float64)
    rows = np.broadcast_to(np.arange(len(bank))[:, None], ids.shape)
    assert np.allclose((x[rows[different]] * x[found.ids[different]]).sum(1), cosine[different], atol=1e-6)
    assert np.count_nonzero(different) <= ids.size // 50
    assert not (found.ids == rows).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_are_those_of_brute_force_without_the_image_itself(backend: str) -> None:
    bank = people([5] * 300, 64, 1.0)
    check(find(bank, 12, backend), bank, 12)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 60), dim=st.integers(1, 24), k=st.integers(1, 40), copies=st.integers(1, 30), seed=st.integers()
)
def test_any_size_and_any_number_of_copies(backend: str, n: int, dim: int, k: int, copies: int, seed: int) -> None:
    rng = np.random.default_rng(abs(seed))
    # Whole numbers: products are exact, so ties are ties for every way of computing them.
    bank = rng.integers(-2, 3, (n, dim)).astype(np.float32)
    bank = np.concatenate([bank, bank[:1].repeat(copies, 0)])
    found = find(bank, k, backend)
    ids, cosine = brute_force(bank, k)
    assert np.array_equal(found.ids, ids)
    assert np.array_equal(found.cosine, cosine)


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_images_name_each_other_by_id_and_never_themselves(backend: str) -> None:
    bank = people([1] * 50, 32)[np.repeat(np.arange(50), 30)]
    found = find(bank, 7, backend)
    first = np.arange(1500) // 30 * 30
    for row in (0, 3, 7, 29, 30, 1499):
        others = np.delete(np.arange(first[row], first[row] + 30), row - first[row])
        assert np.array_equal(found.ids[row], others[:7])
    assert np.allclose(found.cosine, 1, atol=1e-6)


def test_people_one_after_the_other_are_found_with_buckets_that_are_strided() -> None:
    """All neighbours are in adjacent columns: a bucket of consecutive columns would keep only the best of them."""
    bank = people([40] * 60, 32, 0.4)
    found = find(bank, 32, "torch")
    check(found, bank, 32)
    members = members_of_buckets(len(bank), 80)
    assert members > 1
    scores = torch.from_numpy(bank[:200] @ bank.T)[:, : len(bank) // members * members]
    true = scores.topk(33, dim=1).indices.sort(dim=1).values
    ours = greatest(scores, 33, members)[1].sort(dim=1).values
    assert torch.equal(ours, true)
    consecutive = scores.view(200, -1, members).argmax(2) + members * torch.arange(scores.shape[1] // members)
    kept = [np.isin(t, c).mean() for t, c in zip(true.numpy(), consecutive.numpy(), strict=True)]
    assert np.mean(kept) < 0.5


def test_a_young_network_that_maps_all_images_nearly_alike_is_searched_as_exactly() -> None:
    rng = np.random.default_rng(2)
    bank = unit(rng.normal(size=64) + 0.02 * rng.normal(size=(2000, 64)))
    assert (bank @ bank.T).min() > 0.99
    check(find(bank, 10, "torch"), bank, 10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_without_a_direction_have_no_neighbours_and_are_nobodys(backend: str) -> None:
    bank = people([6] * 40, 16)
    bank[3], bank[50], bank[51] = np.nan, 0, np.inf
    found = find(bank, 9, backend)
    check(found, bank, 9)
    assert found.unusable == 3
    assert (found.ids[[3, 50, 51]] == NONE).all()
    assert not np.isin(found.ids, [3, 50, 51]).any()
    nothing = find(np.zeros((4, 8), np.float32), 2, backend)
    assert (nothing.ids == NONE).all()
    assert nothing.unusable == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_images_than_neighbours_is_said_with_none(backend: str) -> None:
    for count in range(4):
        check(find(np.eye(4, dtype=np.float32)[:count], 5, backend), np.eye(4, dtype=np.float32)[:count], 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sharing_the_queries_changes_no_bit_of_the_answer(backend: str) -> None:
    bank = people([6] * 40, 24, 0.8)
    whole = nearest(bank, np.arange(240), 10, threads=1, backend=backend)
    parts = [nearest(bank, part, 10, threads=1, backend=backend) for part in np.array_split(np.arange(240), 7)]
    for number in range(2):
        assert np.array_equal(whole[number], np.concatenate([part[number] for part in parts]))
    assert nearest(bank, np.array([], np.int64), 5, threads=1)[0].shape == (0, 5)


def test_a_product_in_bf16_or_tf32_that_training_allowed_itself_does_not_reach_the_search() -> None:
    bank = people([5] * 60, 32)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = find(bank, 8, "torch")
            assert recall(found, torch.from_numpy(bank), ALONE, sample=100, seed=0) == 1.0
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    check(found, bank, 8)


def test_recall_counts_what_is_missing_wrong_named_twice_or_the_image_itself() -> None:
    bank = people([5] * 40, 24)
    shard, found = torch.from_numpy(bank), find(bank, 8, "faiss")

    def of(ids: NDArray[np.int32]) -> float:
        return recall(Neighbours(ids, found.cosine), shard, ALONE, sample=200, seed=0)

    def changed(column: int, to: object) -> NDArray[np.int32]:
        ids = found.ids.copy()
        ids[:, column] = to
        return ids

    assert of(found.ids) == 1.0
    assert of(found.ids[:, ::-1].copy()) == 1.0
    assert of(changed(7, NONE)) == pytest.approx(7 / 8)
    assert of(changed(7, found.ids[:, 0])) == pytest.approx(7 / 8)
    assert of(changed(7, np.arange(200))) == pytest.approx(7 / 8)
    assert of((found.ids + 1) % 200) < 0.5
    assert recall(find(bank[:1], 3, "faiss"), shard[:1], ALONE, sample=5, seed=0) == 1.0


def test_recall_counts_ties_as_right() -> None:
    bank = np.eye(3, dtype=np.float32).repeat(20, 0)
    ids = np.stack([np.roll(np.delete(np.arange(60), row)[row // 20 * 20 :][:19], 5)[:4] for row in range(60)])
    assert (ids // 20 == np.arange(60)[:, None] // 20).all()
    found = Neighbours(ids.astype(np.int32), np.ones((60, 4), np.float32))
    assert recall(found, torch.from_numpy(bank), ALONE, sample=60, seed=0) == 1.0


def test_a_sample_leaves_out_unusable_images_and_is_the_same_for_a_seed() -> None:
    bank = people([1] * 30, 8)
    bank[::2] = np.nan
    shard = torch.from_numpy(bank)
    assert np.array_equal(sample_rows(shard, ALONE, 100, 0), bank[1::2])
    some = sample_rows(shard, ALONE, 6, 1)
    assert np.array_equal(some, sample_rows(shard, ALONE, 6, 1))
    assert not np.array_equal(some, sample_rows(shard, ALONE, 6, 2))
    assert sample_rows(shard[:1], ALONE, 6, 1).shape == (0, 8)


def test_auto_takes_16_bits_only_where_they_are_fast() -> None:
    assert choose_backend("auto", torch.device("cuda"), 32) == "torch"
    has = torch.cpu.get_capabilities()
    fast = has.get("avx512_bf16", False) or has.get("amx_bf16", False)
    assert choose_backend("auto", torch.device("cpu"), 32) == ("torch" if fast else "faiss")
    assert choose_backend("torch", torch.device("cpu"), 32) == "torch"


def test_embeddings_are_copied_to_every_process_only_where_they_fit() -> None:
    shard = torch.zeros(1, 1)
    free = ring.free_bytes(shard.device)
    assert free is None or 2**20 < free < 2**50
    assert ring.fits(1000, shard, ALONE)
    assert free is None or not ring.fits(free // 2, shard, ALONE)


RANK = """
import sys
import numpy as np, torch
from app.mining import ring
from app.mining.knn import neighbours
from app.mining.sample import recall, sample_rows
from app.runtime import dist
torch.set_num_threads(1)
folder = sys.argv[1]
with dist.world() as here:
    for name, k in (("even", 32), ("lopsided", 12), ("few", 5)):
        bank = np.load(f"{folder}/{name}.npy")
        even = np.linspace(0, len(bank), here.size + 1).astype(int)[:-1]
        cuts = {"even": even, "lopsided": [0, 0, 200], "few": [0] * 3}
        bounds = [*cuts[name][: here.size], len(bank)]
        shard = torch.from_numpy(bank[bounds[here.rank] : bounds[here.rank + 1]])
        for backend in ("faiss", "torch")[: 1 + (name == "even")]:
            for placement in ("replicated", "ring"):
                found = neighbours(shard, k, here, backend=backend, placement=placement)
                ids = dist.gather_rows(torch.from_numpy(found.ids), here).numpy()
                cosine = dist.gather_rows(torch.from_numpy(found.cosine), here).numpy()
                right = recall(found, shard, here, sample=200, seed=1)
                sample = sample_rows(shard, here, 50, 2)
                np.savez(f"{folder}/{name}-{backend}-{placement}-{here.size}-{here.rank}.npz", ids=ids, cosine=cosine,
                         recall=right, sample=sample, unusable=found.unusable)
    # A rank where they do not fit sends all of them into the ring.
    starts = lambda: [start for start, _ in ring.blocks(shard, here, "auto")]
    assert len(starts()) == 1
    if here.is_main:
        ring.free_bytes = lambda device: 1
    assert len(starts()) == here.size
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_find_what_one_finds_across_shards_and_wherever_embeddings_lie(size: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    banks = {
        "even": people([40] * 30, 48, 0.8)[rng.permutation(1200)],  # each person has images on each rank
        "lopsided": people([10] * 60, 32)[rng.permutation(600)],  # rank 0 has no rows
        "few": people([1] * 3, 8),
    }
    banks["even"][:40] = banks["even"][40]  # more copies than k, on both sides of a cut between ranks
    banks["even"][600:620] = banks["even"][40]
    banks["even"][[7, 900]] = np.nan
    for name, bank in banks.items():
        np.save(tmp_path / f"{name}.npy", bank)
    run_ranks(RANK, size, str(tmp_path))
    for name, k in (("even", 32), ("lopsided", 12), ("few", 5)):
        alone = find(banks[name], k, "faiss")
        check(alone, banks[name], k)
        sample = sample_rows(torch.from_numpy(banks[name]), ALONE, 50, 2)
        results = [np.load(file) for file in tmp_path.glob(f"{name}-*-{size}-*.npz")]
        assert len(results) == (4 if name == "even" else 2) * size
        for result in results:
            assert np.array_equal(result["ids"], alone.ids)
            assert np.array_equal(result["cosine"], alone.cosine)
            assert np.array_equal(result["sample"], sample)
            assert result["recall"] == 1.0
            assert result["unusable"] == alone.unusable


def test_sums_of_16_bit_products_stay_in_fp32_inside_the_search_and_settings_come_back() -> None:
    """By default cuBLAS may add fp16 products in fp16; the error bound of the search does not cover that."""
    products = torch.backends.cuda.matmul
    assert len(REDUCED_SUMS) == 3
    for start in ([True, True, False], [False, True, True]):
        for name, value in zip(REDUCED_SUMS, start, strict=True):
            setattr(products, name, value)
        with full_precision(torch.device("cpu")):
            assert [getattr(products, name) for name in REDUCED_SUMS] == [False] * 3
        assert [getattr(products, name) for name in REDUCED_SUMS] == start
    for name, value in zip(REDUCED_SUMS, (True, True, False), strict=True):
        setattr(products, name, value)


@pytest.fixture
def faiss_with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give FAISS what only its GPU build has, on the CPU and with the GPU's limit on the length of a list."""
    faiss = faiss_module()

    def search(_: object, given: Any) -> None:
        assert given.k <= MOST_BY_FAISS_ON_GPU, "FAISS would abort the process"
        arrays = (given.queries, given.vectors, given.dims, given.numQueries, given.numVectors)
        faiss.knn_inner_product(*arrays, given.k, given.outDistances, given.outIndices)

    names = ("DistanceDataType_F32", "IndicesDataType_I64")
    parts = {"StandardGpuResources": SimpleNamespace, "GpuDistanceParams": SimpleNamespace, "bfKnn": search}
    for name, part in {**parts, **dict.fromkeys(names)}.items():
        monkeypatch.setattr(faiss, name, part, raising=False)
    monkeypatch.setattr(sys.modules["faiss.contrib.torch_utils"], "using_stream", nullcontext)


@pytest.mark.usefixtures("faiss_with_gpu")
def test_faiss_on_a_gpu_takes_tensors_where_they_are() -> None:
    bank = torch.from_numpy(people([3] * 20, 16))
    right, found = (knn_of_faiss(torch.device(name, 0))(bank[:7], bank, 5) for name in ("cpu", "cuda"))
    assert all(torch.equal(one, other) for one, other in zip(right, found, strict=True))


@pytest.mark.usefixtures("faiss_with_gpu")
def test_faiss_on_a_gpu_is_never_asked_for_lists_that_it_cannot_make(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    assert choose_backend("faiss", cuda, 32) == "faiss"
    assert choose_backend("faiss", cuda, MOST_BY_FAISS_ON_GPU) == "torch"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**34, 2**34))
    with FakeTensorMode():
        find, exact = methods("faiss", torch.empty(5000, 16, device=cuda))
    assert isinstance(find, Faiss)
    assert isinstance(exact, FullPrecision)  # many copies of an image need long lists to be told apart
    bank = torch.from_numpy(np.repeat(people([1] * 2, 16), 2500, axis=0))  # the same on the CPU
    find, exact = Faiss(bank), FullPrecision(bank)
    find.knn = knn_of_faiss(cuda)
    ids, cosine = Settled(bank, torch.arange(len(bank)), 32, exact)(bank[4990:], torch.arange(4990, 5000), 41, find)
    assert ids.tolist() == [list(range(2500, 2532))] * 10
    assert (cosine > 0.999).all()


WITHOUT_FAISS = """
import sys
import torch
sys.modules["faiss"] = None  # any import of it fails
from app.errors import WrongUse
from app.mining import knn
from app.runtime.dist import ALONE
from tests.app.mining.test_search import check, people, find
torch.cpu.get_capabilities = lambda: {}  # a CPU on which auto would take FAISS
assert knn.choose_backend("auto", ALONE.device, 32) == "torch"
bank = people([5] * 100, 24, 1.0)
bank[7], bank[3] = bank[4], 0
check(find(bank, 12, "auto"), bank, 12)
try:
    find(bank, 12, "faiss")
    raise SystemExit("searched without FAISS")
except WrongUse as error:
    print(error)
"""


def test_without_faiss_auto_searches_with_torch_and_says_so_and_faiss_is_refused_in_a_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_FAISS], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == NO_FAISS + "\n"
    assert set(done.stderr.splitlines()) == {
        "faiss is not installed; torch searches the neighbours instead, which is slower on this CPU"
    }
