"""Iterate over the embeddings that a process searches: all at once, or shard by shard in a ring of ranks.

Letters: N images of all ranks, n of this rank, D embedding size, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from app.runtime.dist import World, any_rank, gather_rows, pass_on
from app.runtime.memory import free_bytes

FREE_SHARE = 0.35  # largest share of free memory for all embeddings, on every rank


def blocks(shard: Tensor, here: World, placement: str) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of all ranks' embeddings [*, D] with the position of their first row, until all are covered.

    replicated: one block with everything. ring: the shards [n, D], one by one; while one is searched the next is
    already being received, so a rank holds three shards at most. auto: replicated where that fits on every rank. A
    search may be abandoned between two blocks; a pending transfer completes first, because it still writes to its
    memory.
    """
    counts = gather_rows(torch.tensor([len(shard)], device=shard.device), here).tolist()
    if here.size == 1:
        yield 0, shard
        return
    if placement == "replicated" or (placement == "auto" and fits(sum(counts) * shard.shape[1] * 4, shard, here)):
        yield 0, gather_rows(shard, here)
        return
    first = [0, *accumulate(counts)]
    block = shard.contiguous()
    for step in range(here.size):
        owner, next_owner = (here.rank - step) % here.size, (here.rank - step - 1) % here.size
        if step == here.size - 1:
            yield first[owner], block
            return
        coming = shard.new_empty((counts[next_owner], shard.shape[1]))
        arrived = pass_on(block, coming, here)
        try:
            yield first[owner], block
        finally:
            arrived()
        block = coming


def fits(size_bytes: int, shard: Tensor, here: World) -> bool:
    """Whether every rank has `size_bytes` free on its shard's device; the same answer on all of them."""
    free = free_bytes(shard.device)
    return not any_rank(free is not None and size_bytes > FREE_SHARE * free, here)
