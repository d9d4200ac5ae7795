"""Candidates for the nearest neighbours of a query, by matrix products in torch: few, cheap, and with a certificate.

A 16-bit product runs several times faster than one in fp32 where the hardware has units for it, and what it ranks
wrongly is put right by computing a few candidates again in fp32 (app/mining/knn.py). Selecting them must not cost more
than the product: scores are reduced to the maxima of buckets of G columns, the best buckets are found among those, and
only their members are read again (after Chern et al. 2022, arXiv:2206.14286; there a bucket keeps its winner alone and
recall is a matter of luck, here the whole bucket is read and nothing is lost). Bucket b holds the columns b, b + L,
b + 2L, …: neighbours are often next to each other in the data, and buckets of consecutive rows would have to be read
for many of them at once.

Each answer comes with `beyond`, which no row left out can exceed; so the caller knows when it has seen enough.

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

# A bound on the rounding of a product of unit vectors in fp32: 512 terms, each off by 2^-24 of it, add up to 3e-5 only
# if all go one way; as they come, to a few 1e-7.
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
    tile: int  # queries that may be asked about at once

    def __call__(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Rows of the bank [B, count] (int64) with the greatest products with `queries` [B, D], in any order, and
        `beyond` [B]: no other row's product is greater. -inf where every row is a candidate.
        """


class HalfPrecision:
    """A 16-bit product, fp16 on a GPU and bf16 on a CPU: what their matrix units take."""

    def __init__(self, bank: Tensor) -> None:
        self.half = torch.float16 if bank.device.type == "cuda" else torch.bfloat16
        self.count = len(bank)
        # Subtracting one vector from all rows changes no query's order, and 16 bits resolve what is left of the rows
        # much better: those of a young network all point nearly the same way.
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
        # Roundings of the terms are independent and cancel (0.05 of a unit for D = 512); that of the sum does not.
        error = ROUNDOFF[self.half] * (lowest.abs() + self.radius)
        beyond = lowest + queries @ self.mean + error
        return ids, beyond if count < self.count else torch.full_like(beyond, -torch.inf)


class FullPrecision:
    """A product in fp32, for the queries that 16 bits cannot settle."""

    def __init__(self, bank: Tensor) -> None:
        self.bank = bank
        self.tile = tile_rows(len(bank), 4, bank.device)

    def __call__(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best, ids = greatest(queries @ self.bank.T, count, members=1)
        return ids, surpassed(best, count, len(self.bank))


def greatest(scores: Tensor, count: int, members: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest of each row of `scores` [B, M] and their columns, by way of strided buckets of `members`.

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
    """G, a power of two: reading M / G maxima should cost about as much as reading the c G members of the best."""
    return int(min(MOST_MEMBERS, 2 ** max(0, round(math.log2(max(rows, 1) / max(count, 1)) / 2))))


def surpassed(best: Tensor, count: int, rows: int) -> Tensor:
    """`beyond` [B] of products in fp32 of which the `count` greatest of `rows` are given."""
    return best.amin(1) + FP32_ERROR if count < rows else torch.full_like(best[:, 0], -torch.inf)


def tile_rows(columns: int, bytes_each: int, device: torch.device) -> int:
    """How many rows of scores are held at once: as large as products like them, within a share of what is free."""
    room = 2**26  # about the last cache of a CPU
    if device.type == "cuda":
        room = min(2**31, (free_bytes(device) or 0) // 8)
    return max(16, min(4096, room // (columns * bytes_each)))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products as exact as their type allows, whatever training has set: no TF32, no autocast, sums in fp32.

    cuBLAS may otherwise add the parts of a 16-bit product in 16 bits, which `ROUNDOFF` does not bound. No gradients.
    """
    products, precision = torch.backends.cuda.matmul, torch.get_float32_matmul_precision()
    before = {name: getattr(products, name) for name in REDUCED_SUMS}
    torch.set_float32_matmul_precision("highest")
    try:
        for name in REDUCED_SUMS:
            setattr(products, name, False)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for name, value in before.items():
            setattr(products, name, value)
