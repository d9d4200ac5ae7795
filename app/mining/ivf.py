"""Find approximate nearest neighbours: each image is compared only with those of the cells near it, by FAISS's IVF.

Cells are small, about half of a person, so that a few near cells hold all images of a person. The centre of a large
cell would be the mean of several people, and many cells would have to be read.

Cells and centres are computed in whole numbers. Their products and sums are exact in any order, so the cells do not
depend on threads or on the number of processes. Within the cells the lists are exact, ties included: a list that a
candidate left out could still change is searched again with more candidates.

Letters: N images of all ranks, n of this rank, D size, C cells, P cells read for an image, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from app.mining.arrays import Floats
from app.mining.candidates import FP32_ERROR, full_precision, greatest, members_of_buckets, tile_rows
from app.mining.knn import SPARE, faiss_module, prefers_faiss, products, set_threads
from app.mining.lists import NONE, Neighbours, nothing, ranked, usable
from app.mining.ring import blocks
from app.mining.sample import counted, draw, owned, sum_before, true_neighbours
from app.runtime.dist import World, gather_rows, total
from app.runtime.stop import Poll, undisturbed

ROWS_A_CELL = 24
TRAINED_A_CELL, TRAINING_ROUNDS = 8, 2
MOST_READ = 32  # cells for an image; more take as long as comparing all pairs
GRID = 256  # bf16 holds whole numbers up to it; sums of products stay below 2^24, where fp32 is exact
ROWS_AT_ONCE, QUERIES_AT_ONCE = 2**16, 2**12
SAMPLE = 512  # images on which the number of cells is chosen
SEED = 0  # of cells and sample: pseudo-IDs depend on the embeddings alone


@dataclass(frozen=True)
class Cells:
    """Cells of all images. `near` and `home` are -1 for an image without a direction."""

    centres: Tensor  # [C, D] whole numbers
    near: Tensor  # int32 [n, MOST_READ] nearest cells of this rank's images, nearest first
    home: Tensor  # int32 [N] cell of each image of all ranks


def make_cells(shard: Tensor, here: World, poll: Poll = undisturbed) -> Cells:
    """Divide the images of all ranks into cells, by k-means on a sample, from this rank's `shard` [n, D].

    Raises ValueError where no image has a direction.
    """
    with full_precision(shard.device):
        good = usable(shard)
        ids = gather_rows(good.to(torch.uint8), here).nonzero().flatten().cpu().numpy()
        if not len(ids):
            raise ValueError("no embedding has a direction; give embeddings that are not zero or NaN")
        count = cells_of(len(ids))
        drawn = np.random.default_rng(SEED).choice(ids, min(len(ids), TRAINED_A_CELL * count), replace=False)
        start, sample = (
            owned(torch.from_numpy(np.sort(part)).to(shard.device), shard, here)[1] for part in (drawn[:count], drawn)
        )
        centres = gather_rows(on_grid(shard[start]), here)
        for _ in range(TRAINING_ROUNDS):
            sums = torch.zeros(centres.shape, dtype=torch.float64, device=shard.device)
            for part in sample.split(ROWS_AT_ONCE):
                rows = on_grid(shard[part])
                sums.index_add_(0, nearest_cells(rows, centres, 1)[:, 0].long(), rows.double())
            move(centres, total(sums, here))
            del sums  # before the next round makes its own
            poll()
        near = torch.full((len(shard), min(MOST_READ, count)), NONE, dtype=torch.int32, device=shard.device)
        rows_of_rank = good.nonzero().flatten()
        for part in rows_of_rank.tensor_split(rounds_of(shard, here)):
            near[part] = nearest_cells(on_grid(shard[part]), centres, near.shape[1])
            poll()
        return Cells(centres, near, gather_rows(near[:, 0].contiguous(), here))


def move(centres: Tensor, sums: Tensor) -> None:
    """Move `centres` [C, D] to the direction of the `sums` [C, D] of their rows. An empty cell keeps its centre.

    With 42 million images each table has 3.6 GB, so only a part is copied at a time.
    """
    for old, added in zip(centres.split(ROWS_AT_ONCE), sums.split(ROWS_AT_ONCE), strict=True):
        old.copy_(torch.where(added.any(1)[:, None], on_grid(normalize(added)), old))


def cells_of(images: int) -> int:
    """Return C for a number of usable images: a multiple of 128 where there are so many, at least one."""
    count = max(1, images // ROWS_A_CELL)
    return count if count < 128 else count // 128 * 128


def on_grid(rows: Tensor) -> Tensor:
    """Return unit rows [*, D] as whole numbers, in fp32."""
    return (rows * GRID).round().clamp(-GRID, GRID).float()


def rounds_of(shard: Tensor, here: World) -> int:
    """Return into how many pieces each rank divides its rows between two polls: the same on every rank."""
    counts = gather_rows(torch.tensor([len(shard)], device=shard.device), here)
    return max(1, -(-int(counts.max()) // ROWS_AT_ONCE))


def nearest_cells(rows: Tensor, centres: Tensor, count: int) -> Tensor:
    """Return the `count` nearest cells int32 [*, count] of `rows` on the grid, nearest first, ties by number."""
    fast = rows.device.type == "cuda" or not prefers_faiss(rows.device)
    kind = torch.bfloat16 if fast else torch.float32
    columns, tile = centres.to(kind).T, tile_rows(len(centres), 2 if fast else 4, rows.device)
    members = members_of_buckets(len(centres), count)
    members = members if len(centres) % members == 0 and len(centres) // members >= count else 1
    found = torch.empty(len(rows), count, dtype=torch.int32, device=rows.device)
    for part, into in zip(rows.split(tile), found.split(tile), strict=True):
        best, cells = greatest(part.to(kind) @ columns, count, members)
        cells, order = cells.sort(dim=1)
        into.copy_(cells.gather(1, best.gather(1, order).sort(dim=1, descending=True, stable=True).indices))
    return found


def cells_to_read(
    cells: Cells, shard: Tensor, k: int, floors: Floats | None, here: World, min_recall: float
) -> tuple[int | None, float]:
    """Return how many cells to read for `min_recall`, and the recall on a sample; None if MOST_READ are too few.

    Recall is that of the neighbours that the clustering reads (`counted`). The same on every rank.
    """
    with full_precision(shard.device):
        ids, rows = draw(shard, here, SAMPLE, SEED)
        true, cosine = true_neighbours(ids, rows, shard, k, here)
        matter = counted(cosine, floors)
        order = nearest_cells(on_grid(rows), cells.centres, cells.near.shape[1])
        within = (order[:, None, :] == cells.home[true.clamp(min=0)][:, :, None]) & matter[:, :, None]  # [s, k, P]
    share = (within.sum((0, 1)).cumsum(0) / matter.sum()).tolist() if matter.any() else [1.0] * order.shape[1]
    enough = [number for number, each in enumerate(share, 1) if each >= with_reserve(min_recall)]
    return (enough[0], share[enough[0] - 1]) if enough else (None, share[-1])


def with_reserve(min_recall: float) -> float:
    """Return the recall on a sample that cells must reach: half of what may be missed is for another sample."""
    return 1 - (1 - min_recall) / 2


def neighbours_in_cells(
    shard: Tensor, k: int, cells: Cells, read: int, here: World, *, placement: str, poll: Poll = undisturbed
) -> Neighbours:
    """Return the k nearest other images of each unit vector of `shard` [n, D] in the `read` cells nearest to it.

    The result does not depend on the number of processes, nor on `placement`. FAISS reads the cells on the CPU.
    """
    device, shard = shard.device, shard.cpu().contiguous()
    near, home = cells.near[:, :read].cpu(), cells.home.cpu()
    set_threads(torch.get_num_threads(), shard.device)
    first, rounds = sum_before(len(shard), World(here.rank, here.size, shard.device)), rounds_of(shard, here)
    queries = (near[:, 0] != NONE).nonzero().flatten()
    queries = queries[near[queries, 0].argsort(stable=True)]  # images of one cell after another: its rows stay cached
    ids, cosine = nothing(len(shard), k, shard.device)
    for start, block in blocks(shard, here, placement):
        inside = Inside(block, start, home[start : start + len(block)], len(cells.centres), read, k)
        for some in queries.tensor_split(rounds):
            for part in some.split(QUERIES_AT_ONCE):
                found = inside(shard[part], part + first, near[part], k + 1 + SPARE)
                ids[part], cosine[part] = ranked(
                    torch.cat([ids[part], found[0]], 1), torch.cat([cosine[part], found[1]], 1), k
                )
            poll()
    unusable = int(gather_rows((near[:, 0] == NONE).sum()[None].to(device), here).sum())
    return Neighbours(ids.int().numpy(), cosine.numpy(), unusable)


class Inside:
    """Search of a block [M, D] within given cells: FAISS's inverted lists, with our cells."""

    def __init__(self, block: Tensor, start: int, home: Tensor, count: int, read: int, k: int) -> None:
        faiss = faiss_module()
        self.bank, self.start, self.k = block.contiguous(), start, k
        self.quantizer = faiss.IndexFlatIP(block.shape[1])  # FAISS wants one; the cells are given, so it stays empty
        self.index: Any = faiss.IndexIVFFlat(self.quantizer, block.shape[1], count, faiss.METRIC_INNER_PRODUCT)
        self.index.own_fields, self.index.is_trained, self.index.nprobe = False, True, read
        names, lists = np.arange(len(block)), home.long().numpy()
        if len(block):  # a row of list -1 enters no list
            self.index.add_core(len(block), *(faiss.swig_ptr(each) for each in (self.bank.numpy(), names, lists)))

    def __call__(self, queries: Tensor, own: Tensor, near: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return ids and cosines [B, k] of `queries` [B, D] in their cells `near` [B, P], without the image itself."""
        if not len(self.bank) or not len(queries):
            return nothing(len(queries), self.k, queries.device)
        found = self.index.search_preassigned(queries.numpy(), count, near.numpy(), None)
        best, rows = (torch.from_numpy(array) for array in found)
        absent = rows < 0
        score, ids = products(queries, self.bank, rows.clamp(min=0)), rows + self.start
        absent |= ids == own[:, None]
        ids, score = ranked(ids.masked_fill_(absent, NONE), score.masked_fill_(absent, -torch.inf), self.k)
        all_read = (rows[:, -1] < 0) | (count >= len(self.bank))
        beyond = torch.where(all_read, -torch.inf, best[:, -1] + FP32_ERROR)
        unsure = (score[:, -1] < beyond).nonzero().flatten()
        for part in unsure.split(max(1, QUERIES_AT_ONCE * (self.k + 1) // count)):
            ids[part], score[part] = self(queries[part], own[part], near[part], 4 * count)
        return ids, score
