"""Neighbour search among 50,000 embeddings: 512 numbers, 32 neighbours, 8,192 queries, all cores.

Ours includes all of its extra work (removing the query itself, ties by id, lists that rounding cannot change); the peer
is bare faiss.knn. Where the CPU has units for bf16, a 16-bit product is measured too. With a GPU, ours searches 1.2
million embeddings there, against an fp32 product with topk, and against only the 16-bit product over the same tiles.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.mining.candidates import HalfPrecision
from app.mining.knn import choose_backend, neighbours, search
from app.mining.sample import recall
from app.runtime.dist import World
from benchmarks._claims import Claim, in_turn, quick, report, seconds
from benchmarks.gpu.searching import DIM, NEIGHBOURS, people
from tests.app.support.nearest import nearest

K = NEIGHBOURS
FP32_TILE = 1024  # queries; with 1.2 million columns their scores take 5 GB


def on_cpu(is_quick: bool) -> list[Claim]:
    count, asked, rounds = (5_000, 1_000, 1) if is_quick else (50_000, 8_192, 9)
    cpu = torch.device("cpu")
    bank, rows, threads = people(count, cpu), torch.arange(asked), torch.get_num_threads()
    vectors, queries = bank.numpy(), bank[:asked].numpy()
    faiss.omp_set_num_threads(threads)

    def ours(backend: str) -> float:
        return asked / seconds(lambda: nearest(vectors, rows.numpy(), K, threads=threads, backend=backend))

    def peer() -> float:
        return asked / seconds(lambda: faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT))

    what = f"N={count:,}, D={DIM}, k={K}, {threads} threads"
    fast, slow, ratio = in_turn(lambda: ours("faiss"), peer, rounds)
    claims = [Claim(f"fp32 search, {what}", fast, slow, "queries/s", ratio, 0.95)]
    if choose_backend("auto", cpu, 32) != "torch":
        print("This CPU has no units for bf16 (AVX512-BF16 or AMX): nothing is claimed of a 16-bit search on it.")
        return claims
    fast, slow, ratio = in_turn(lambda: ours("torch"), peer, rounds)
    here = World(0, 1, cpu)
    found = neighbours(bank, K, here, backend="torch", placement="replicated")
    share = recall(found, bank, here, sample=2000, seed=0)
    return [
        *claims,
        Claim(f"16-bit search, {what}", fast, slow, "queries/s", ratio, 1.4),
        Claim("its recall, sampled", share, 1.0, "share of neighbours", share, 0.9999),
    ]


def on_gpu(is_quick: bool) -> list[Claim]:
    device = torch.device("cuda", 0)
    name = torch.cuda.get_device_name(device)
    room = int(0.3 * torch.cuda.mem_get_info(device)[0]) // (DIM * 4)
    count, asked, rounds = (100_000, 8_192, 1) if is_quick else (min(1_200_000, room), 65_536, 3)
    bank = people(count, device)
    queries, own = bank[:asked], torch.arange(asked, device=device)
    here = World(0, 1, device)

    def rate(work: Callable[[], object]) -> float:
        def synchronised() -> None:
            work()
            torch.cuda.synchronize(device)

        torch.cuda.synchronize(device)
        return asked / seconds(synchronised)

    def matmul_topk() -> None:
        for part in queries.split(FP32_TILE):
            (part @ bank.T).topk(K + 1, dim=1)

    find = HalfPrecision(bank)
    half = queries.to(find.half)

    def product_alone() -> None:
        for part in half.split(find.tile):
            torch.mm(part, find.rows.T, out=find.scores[: len(part)])

    def ours() -> float:
        return rate(lambda: search(bank, 0, queries, own, K, "torch"))

    what = f"N={count:,}, D={DIM}, k={K}, {name}"
    fast, slow, ratio = in_turn(ours, lambda: rate(matmul_topk), rounds)
    _, bare, of_bare = in_turn(ours, lambda: rate(product_alone), rounds)
    whole = seconds(lambda: neighbours(bank, K, here, backend="torch", placement="replicated"))
    print(f"all {count:,} rows: {whole:.2f} s, {count / whole:,.0f} queries/s")
    return [
        Claim(f"16-bit search, fp32 matmul + topk, {what}", fast, slow, "queries/s", ratio, 5.0),
        Claim("the same, the 16-bit product alone", fast, bare, "queries/s", of_bare, 0.5),
    ]


def main() -> int:
    is_quick = quick()
    torch.set_float32_matmul_precision("highest")
    claims = on_cpu(is_quick)
    if torch.cuda.is_available():
        claims += on_gpu(is_quick)
    return report("search", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
