"""Candidates that torch has no operation for: bucket maxima inside a product, and clustering on the device.

Letters: Q queries, M rows of the bank, D size, G members of a bucket, L = M / G buckets; N images, k neighbours.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.running import Missing

FULL = 65534  # as app/mining/graph.py
ROWS_AT_ONCE = 1024
GOLDEN, MIX_A, MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def bucket_maxima(queries: Tensor, bank: Tensor, members: int) -> Tensor:
    """Return the maxima [Q, L] of the products of `queries` [Q, D] with strided buckets of `bank` [M, D], in fp32.

    Bucket b holds rows b, b + L, b + 2L, …, as in app/mining/candidates.py. No product is written to memory. M must be
    a multiple of G times 128, and Q of 128. Raises Missing without Triton.
    """
    if importlib.util.find_spec("triton") is None:
        raise Missing("Triton, which comes with torch for CUDA")
    kernel, block_q, block_l = _kernel(), 128, 128
    buckets = len(bank) // members
    found = torch.empty(len(queries), buckets, device=bank.device)
    grid = (len(queries) // block_q, buckets // block_l)
    kernel[grid](queries, bank, found, buckets, members, bank.shape[1], block_q, block_l, min(64, bank.shape[1]))
    return found


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit
    def run(  # type: ignore[no-untyped-def] # triton's types are no classes
        queries,
        bank,
        found,
        buckets,
        members: tl.constexpr,
        dim: tl.constexpr,
        block_q: tl.constexpr,
        block_l: tl.constexpr,
        block_d: tl.constexpr,
    ):
        q = tl.program_id(0) * block_q + tl.arange(0, block_q)
        b = tl.program_id(1) * block_l + tl.arange(0, block_l)
        d = tl.arange(0, block_d)
        best = tl.full((block_q, block_l), float("-inf"), tl.float32)
        for member in range(members):
            rows = (member * buckets + b).to(tl.int64)
            total = tl.zeros((block_q, block_l), tl.float32)
            for start in range(0, dim, block_d):
                left = tl.load(queries + q[:, None] * dim + start + d[None, :])
                right = tl.load(bank + rows[None, :] * dim + start + d[:, None])
                total = tl.dot(left, right, total)
            best = tl.maximum(best, total)
        tl.store(found + q[:, None].to(tl.int64) * buckets + b[None, :], best)

    return run


def overlaps(ids: Tensor, cosine: Tensor, min_overlap: float) -> Tensor:
    """Return the edge weights int32 [N, k] of app/mining/graph.py's `weigh`, where every entry of every list counts.

    ids int32 [N, k], cosine [N, k].
    """
    n, k = ids.shape
    weight = torch.zeros(n, k, dtype=torch.int32, device=ids.device)
    ranked = torch.cat([ids, torch.arange(n, device=ids.device, dtype=ids.dtype)[:, None]], 1).sort(1).values
    for start in range(0, n, ROWS_AT_ONCE):
        mine = ids[start : start + ROWS_AT_ONCE].long()  # [r, k]
        own = ranked[start : start + ROWS_AT_ONCE]  # [r, k + 1]: the list with its image, ascending
        theirs = ids[mine]  # [r, k, k]
        place = torch.searchsorted(own, theirs.flatten(1)).clamp_(max=k)
        common = (own.gather(1, place) == theirs.flatten(1)).view(theirs.shape).sum(2) + 1  # and the neighbour itself
        rows = torch.arange(start, start + len(mine), device=ids.device)
        mutual = (theirs == rows[:, None, None]).any(2)
        overlap = common.double() / (2 * k + 2 - common)
        scale = torch.where(mutual, FULL, FULL // 2)
        value = (scale * overlap * cosine[start : start + len(mine)].double()).to(torch.int32).clamp_(max=FULL)
        weight[start : start + len(mine)] = torch.where(overlap >= min_overlap, value, 0)
    return weight


def swept(ids: Tensor, weight: Tensor, labels: Tensor, *, seed: int, number: int) -> Tensor:
    """Return the labels [N] after one sweep of app/mining/graph.py's `sweep` in which every row is pending."""
    names = labels[ids.long()]  # [N, k]
    new = labels.clone()
    for start in range(0, len(ids), ROWS_AT_ONCE):
        here = slice(start, start + ROWS_AT_ONCE)
        same = names[here][:, :, None] == names[here][:, None, :]  # [r, k, k]
        totals = (same * weight[here][:, None, :]).sum(2)  # [r, k]
        # The greatest total wins, and among equals the smallest label; an entry without weight is no candidate.
        rank = torch.where(weight[here] > 0, (totals << 32) - names[here], -1)
        best = rank.max(1)
        new[here] = torch.where(best.values >= 0, names[here].gather(1, best.indices[:, None])[:, 0], labels[here])
    return torch.where(heads(len(ids), seed, number, ids.device), labels, new)


def heads(count: int, seed: int, number: int, device: torch.device) -> Tensor:
    """Return which of `count` images [N] wait in this sweep: the same coins as `sweep`, by splitmix64."""
    coin = _signed(seed + number * MIX_B) + torch.arange(count, device=device) * _signed(GOLDEN)
    coin = (coin ^ _shifted(coin, 30)) * _signed(MIX_A)
    coin = (coin ^ _shifted(coin, 27)) * _signed(MIX_B)
    return coin < 0  # the highest bit


def _signed(value: int) -> int:
    """The int64 with the same bits as a uint64; sums and products wrap alike."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shifted(value: Tensor, bits: int) -> Tensor:
    """A right shift that fills with zeros."""
    return (value >> bits) & (2 ** (64 - bits) - 1)
