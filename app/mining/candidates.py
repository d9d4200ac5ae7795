"""Find candidates for the nearest neighbours of a query by matrix products in torch, with an error bound.

A 16-bit product is several times faster than one in fp32 where the hardware has units for it. It ranks some rows
wrongly; app/mining/knn.py corrects that by recomputing a few candidates in fp32.

Selecting candidates must not cost more than the product. So scores are reduced to the maxima of buckets of G columns,
the best buckets are selected, and only their members are read again (after Chern et al. 2022, arXiv:2206.14286). There
a bucket keeps only its winner and may lose neighbours; here the whole bucket is read. Bucket b holds the columns b, b +
L, b + 2L, … because neighbours are often adjacent in the data, and would be in one bucket of consecutive rows.

Each answer includes `beyond`, an upper bound on the product of every row left out, so the caller knows when to stop.

Letters: M rows in the bank, D size, B queries of a tile, c candidates, G members of a bucket, L = M / G buckets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from app.runtime.memory import free_bytes
from app.runtime.precision import exact

# Bound on the rounding error of an fp32 product of unit vectors. 512 terms, each off by 2^-24 of its value, add up to
# 3e-5 only if all errors have one sign; in practice they add up to a few 1e-7.
FP32_ERROR = 4e-6
ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
MOST_MEMBERS = 128
ROWS_AT_ONCE = 2**16
# Settings of torch.backends.cuda.matmul under which cuBLAS adds 16-bit products in 16 bits.
REDUCED_SUMS = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


class Candidates(Protocol):
    tile: int  # most queries per call

    def __call__(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` rows of the bank per query (int64 [B, count]) and `beyond` [B], for `queries` [B, D].

        The rows have the greatest products with the query, in any order. No other row's product exceeds `beyond`, which
        is -inf where every row is a candidate.
        """


class HalfPrecision:
    """Candidates by a 16-bit product: fp16 on a GPU, bf16 on a CPU, the types of their matrix units."""

    def __init__(self, bank: Tensor) -> None:
        self.half = torch.float16 if bank.device.type == "cuda" else torch.bfloat16
        self.count = len(bank)
        # Subtracting one vector from all rows changes no query's order. It leaves smaller numbers, which 16 bits
        # resolve much better: the embeddings of a young network all point nearly the same way.
        self.mean = bank.mean(0)
        padded = -(-self.count // MOST_MEMBERS) * MOST_MEMBERS
        self.rows = torch.zeros(padded, bank.shape[1], dtype=self.half, device=bank.device)
        self.radius = 0.0
        for part, into in zip(bank.split(ROWS_AT_ONCE), self.rows[: self.count].split(ROWS_AT_ONCE), strict=True):
            centred = part - self.mean
            into.copy_(centred)
            self.radius = max(self.radius, float(torch.linalg.vector_norm(centred, dim=1).max()))
        self.tile = tile_rows(padded, 2, bank.device)
        self.scores = torch.empty(self.tile, padded, dtype=self.half, device=bank.device)

    def __call__(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        scores = torch.mm(queries.to(self.half), self.rows.T, out=self.scores[: len(queries)])
        scores[:, self.count :] = -torch.inf
        members = members_of_buckets(self.count, count)
        best, ids = greatest(scores, count, members)
        lowest = best.float().amin(1)
        # Rounding errors of the terms are independent and cancel (0.05 of a unit for D = 512); that of the sum does
        # not.
        error = ROUNDOFF[self.half] * (lowest.abs() + self.radius)
        beyond = lowest + queries @ self.mean + error
        return ids, beyond if count < self.count else torch.full_like(beyond, -torch.inf)


class FullPrecision:
    """Candidates by a product in fp32, for the queries that 16 bits cannot settle."""

    def __init__(self, bank: Tensor) -> None:
        self.bank = bank
        self.tile = tile_rows(len(bank), 4, bank.device)

    def __call__(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best, ids = greatest(queries @ self.bank.T, count, members=1)
        return ids, surpassed(best, count, len(self.bank))


def greatest(scores: Tensor, count: int, members: int) -> tuple[Tensor, Tensor]:
    """Return the `count` greatest of each row of `scores` [B, M] and their columns, using strided buckets of `members`.

    Exact: the c greatest values lie in the c buckets with the greatest maxima. `members` must divide M.
    """
    if members == 1:
        best, columns = scores.topk(count, dim=1, sorted=False)
        return best, columns
    maxima = scores.view(len(scores), members, -1).amax(1)  # [B, L]
    buckets = maxima.topk(count, dim=1, sorted=False).indices  # [B, c]
    strides = maxima.shape[1] * torch.arange(members, device=scores.device)
    columns = (buckets[:, None, :] + strides[None, :, None]).flatten(1)  # [B, G c]
    best, places = scores.gather(1, columns).topk(count, dim=1, sorted=False)
    return best, columns.gather(1, places)


def members_of_buckets(rows: int, count: int) -> int:
    """Return G, a power of two that makes reading M / G maxima cost about as much as reading the c G members."""
    return int(min(MOST_MEMBERS, 2 ** max(0, round(math.log2(max(rows, 1) / max(count, 1)) / 2))))


def surpassed(best: Tensor, count: int, rows: int) -> Tensor:
    """Return `beyond` [B] for fp32 products, from the `count` greatest (`best`) of `rows`."""
    return best.amin(1) + FP32_ERROR if count < rows else torch.full_like(best[:, 0], -torch.inf)


def tile_rows(columns: int, bytes_each: int, device: torch.device) -> int:
    """Return how many rows of scores fit at once in a CPU's last-level cache, or in a share of a GPU's free memory."""
    room = 2**26  # about the last-level cache of a CPU
    if device.type == "cuda":
        room = min(2**31, (free_bytes(device) or 0) // 8)
    return max(16, min(4096, room // (columns * bytes_each)))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute products as exactly as their type allows, whatever training has set: no TF32, no autocast, sums in fp32.

    Otherwise cuBLAS may add the parts of a 16-bit product in 16 bits, which `ROUNDOFF` does not bound. No gradients.
    """
    products = torch.backends.cuda.matmul
    before = {name: getattr(products, name) for name in REDUCED_SUMS}
    try:
        for name in REDUCED_SUMS:
            setattr(products, name, False)
        with torch.no_grad(), exact(device):
            yield
    finally:
        for name, value in before.items():
            setattr(products, name, value)
