"""Find exact nearest neighbours by cosine among images spread over processes. Only this module imports FAISS.

FAISS is imported when a search on a CPU first needs it, so a process that never searches there starts without it.

The final cosines are recomputed in fp32, pair by pair, whichever backend found the candidates. A row whose list could
still change is searched again with more candidates. So the result does not depend on the backend, on the number of
processes, on where the embeddings lie, or on ties.

Letters: N images of all ranks, n of this rank, D size, M rows of a block of the bank, Q queries, k neighbours, c
candidates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor

from app.errors import Failed, WrongUse
from app.mining.candidates import Candidates, FullPrecision, HalfPrecision, full_precision, surpassed
from app.mining.lists import NONE, Neighbours, nothing, ranked, usable
from app.mining.ring import blocks
from app.runtime.dist import World, gather_rows
from app.runtime.stop import Poll, undisturbed

MOST_BY_FAISS_ON_GPU = 2048  # entries of a list; asked for more, FAISS aborts the process
SPARE = 8  # candidates above k + 1 in fp32; rows with ties at the end are few and cost a second search
PAIRS_AT_ONCE = 2**22
BYTES_AT_ONCE = 2**28
PRODUCTS_A_ROUND = {"cpu": 2**35, "cuda": 2**42}  # multiplications between two polls: less than a second
NO_FAISS = "mining.backend=faiss needs the package faiss-cpu or faiss-gpu; install one, or give mining.backend=auto"
NO_IVF = "mining.search=ivf needs the package faiss-cpu or faiss-gpu; install one, or give mining.search=auto"


class SearchInexact(Failed):
    """The search missed more neighbours than `mining.min_recall` allows. The message is one sentence."""


@cache
def installed_faiss() -> ModuleType | None:
    """Return the module `faiss`, or None where it is not installed or cannot be loaded."""
    try:
        import faiss.contrib.torch_utils  # makes its functions take tensors where they are, also on a GPU
    except ImportError:  # also raised when a library it needs is missing, such as one of CUDA
        return None
    return faiss


def faiss_module() -> ModuleType:
    """Return the module `faiss`. Raises WrongUse where it cannot be loaded."""
    module = installed_faiss()
    if module is None:
        raise WrongUse(NO_FAISS)
    return module


def refuse_without_faiss(backend: str, how: str = "exact") -> None:
    """Check before hours of work that `mining.backend` and `mining.search` (`how`) can run. Raises WrongUse if not."""
    if backend == "faiss":
        faiss_module()
    if how == "ivf" and installed_faiss() is None:
        raise WrongUse(NO_IVF)


class Faiss:
    """Candidates by FAISS: at the speed of its BLAS on a CPU, on the GPU where its GPU build is installed."""

    tile = 4096  # FAISS's own batch size

    def __init__(self, bank: Tensor) -> None:
        self.bank = bank.contiguous()
        self.knn = knn_of_faiss(bank.device)

    def __call__(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best, ids = self.knn(queries.contiguous(), self.bank, count)
        return ids, surpassed(best, count, len(self.bank))


def knn_of_faiss(device: torch.device) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    """Return FAISS's search for tensors on `device`: queries, bank and count -> greatest products and their rows."""
    faiss = faiss_module()
    product = faiss.METRIC_INNER_PRODUCT
    if device.type == "cuda":
        return partial(faiss.knn_gpu, faiss.StandardGpuResources(), metric=product, device=device.index)
    return partial(faiss.knn, metric=product)


BACKENDS: dict[str, type[Faiss] | type[HalfPrecision]] = {"faiss": Faiss, "torch": HalfPrecision}


def choose_backend(name: str, device: torch.device, k: int) -> str:
    """Resolve `auto`: torch on a GPU, on a CPU with units for bf16, and where FAISS is not installed; else faiss.

    On a CPU without such units a 16-bit product is several times slower than one in fp32, where FAISS is as fast as its
    BLAS. The choice depends on the CPU's features, not on a timing: under load, ranks would get different timings.

    Lists of `k` that are too long for FAISS on a GPU are torch's, whatever the name.
    """
    if device.type == "cuda" and k + 1 + SPARE > MOST_BY_FAISS_ON_GPU:
        return "torch"
    if name != "auto":
        return name
    return "faiss" if prefers_faiss(device) and installed_faiss() else "torch"


def prefers_faiss(device: torch.device) -> bool:
    """Whether FAISS is the faster backend on this device: on a CPU without units for bf16."""
    has = torch.cpu.get_capabilities()
    return device.type != "cuda" and not (has.get("avx512_bf16") or has.get("amx_bf16"))


def neighbours(
    shard: Tensor, k: int, here: World, *, backend: str, placement: str, poll: Poll = undisturbed
) -> Neighbours:
    """Return the k nearest other images, among those of all ranks, of each unit vector in this rank's `shard` [n, D].

    Every rank searches for its own rows, in all embeddings at once or in one shard after the other
    (app/mining/ring.py); the result is the same. Work on a GPU stays there, unless the backend is FAISS without its GPU
    build.
    """
    if here.is_main and backend == "auto" and prefers_faiss(shard.device) and not installed_faiss():
        words = "faiss is not installed; torch searches the neighbours instead, which is slower on this CPU"
        print(words, file=sys.stderr)
    backend = choose_backend(backend, shard.device, k)
    if backend == "faiss" and not faiss_module().get_num_gpus():
        shard = shard.cpu()
    with full_precision(shard.device):
        set_threads(torch.get_num_threads(), shard.device)
        good = usable(shard)
        counts = gather_rows(torch.tensor([len(shard)], device=shard.device), here).tolist()
        rounds = rounds_of(counts, shard)
        first = sum(counts[: here.rank])
        own = first + good.nonzero().flatten()
        queries = shard if len(own) == len(shard) else shard[good]  # copies only if some rows are unusable
        ids, cosine = nothing(len(own), k, shard.device)
        for start, block in blocks(shard, here, placement):
            found = search(block, start, queries, own, k, backend, rounds=rounds, poll=poll)
            ids, cosine = ranked(torch.cat([ids, found[0]], 1), torch.cat([cosine, found[1]], 1), k)
        all_ids, all_cosine = nothing(len(shard), k, shard.device)
        all_ids[good], all_cosine[good] = ids, cosine
        unusable = int(gather_rows((~good).sum()[None], here).sum())
    return Neighbours(all_ids.int().cpu().numpy(), all_cosine.cpu().numpy(), unusable)


def rounds_of(counts: list[int], shard: Tensor) -> int:
    """Return how many rounds the search of a block takes: the same on every rank, from the largest shard."""
    products = max(counts) * sum(counts) * shard.shape[1]
    return max(1, min(max(counts), -(-products // PRODUCTS_A_ROUND[shard.device.type])))


def set_threads(count: int, device: torch.device) -> None:
    """Set the thread count of FAISS, which has its own threads on a CPU."""
    faiss = installed_faiss() if device.type == "cpu" else None
    if faiss is not None:
        faiss.omp_set_num_threads(count)


def search(
    block: Tensor,
    start: int,
    queries: Tensor,
    own: Tensor,
    k: int,
    backend: str,
    *,
    rounds: int = 1,
    poll: Poll = undisturbed,
) -> tuple[Tensor, Tensor]:
    """Return global ids and cosines [Q, k] of the rows of `block` [M, D] most similar to `queries` [Q, D].

    `start` is the id of the block's first row. The queries' own ids (`own` [Q]) are left out wherever they rank: among
    duplicates they are not always first. The queries are split into `rounds`; `poll` is called after each, even if
    there is nothing to search.
    """
    good = usable(block)
    bank, names = block, torch.arange(start, start + len(block), device=block.device)
    if not good.all():
        bank, names = block[good], names[good]
    if not len(bank) or not len(queries):
        for _ in range(rounds):
            poll()
        return nothing(len(queries), k, block.device)
    find, exact = methods(backend, bank)
    # 16 bits order the best candidates poorly, but twice as many candidates contain them all.
    count = k + 1 + SPARE if isinstance(find, Faiss) else 2 * k + 2 * SPARE
    settled = Settled(bank, names, k, exact)
    parts = []
    for some, names_of_some in zip(queries.tensor_split(rounds), own.tensor_split(rounds), strict=True):
        tiles = zip(some.split(find.tile), names_of_some.split(find.tile), strict=True)
        parts += [settled(*tile, count, find) for tile in tiles if len(some)]
        poll()
    ids, cosine = (torch.cat(column) for column in zip(*parts, strict=True))
    return ids, cosine


def methods(backend: str, bank: Tensor) -> tuple[Candidates, Candidates]:
    """Return the method of `backend`, and the one for queries that it cannot settle.

    The second is the faster one in fp32 of this installation that has no limit on the length of a list.
    """
    find = BACKENDS[backend](bank)
    if bank.is_cuda or installed_faiss() is None:
        return find, FullPrecision(bank)
    return find, find if isinstance(find, Faiss) else Faiss(bank)


@dataclass(frozen=True)
class Settled:
    """Search for lists of k that no row left out of the candidates could still change."""

    bank: Tensor  # [M, D]
    names: Tensor  # [M] global ids, ascending
    k: int
    exact: Candidates

    def __call__(self, queries: Tensor, own: Tensor, count: int, find: Candidates) -> tuple[Tensor, Tensor]:
        """Return ids and cosines [B, k] of `queries` [B, D], from `count` candidates each or, where needed, more."""
        count = min(count, len(self.bank))
        rows, beyond = find(queries, count)
        score, ids = products(queries, self.bank, rows), self.names[rows]
        itself = ids == own[:, None]
        ids, score = ranked(ids.masked_fill_(itself, NONE), score.masked_fill_(itself, -torch.inf), self.k)
        unsure = (score[:, -1] < beyond).nonzero().flatten()
        if not len(unsure):
            return ids, score
        wider = self.k + 1 + SPARE if isinstance(find, HalfPrecision) else 4 * count
        for part in unsure.split(min(self.exact.tile, max(1, PAIRS_AT_ONCE // wider))):
            ids[part], score[part] = self(queries[part], own[part], wider, self.exact)
        return ids, score


def products(queries: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Return products [B, c] of `queries` [B, D] with `rows` [B, c] of `bank`, in fp32.

    Each pair is computed by itself, so its value does not depend on the other pairs; a matrix product rounds
    differently by position. Without FAISS a CPU adds in another order, so the last bits may differ.
    """
    faiss = None if bank.is_cuda else installed_faiss()
    if faiss is None:
        step = max(1, BYTES_AT_ONCE // (4 * rows.shape[1] * bank.shape[1]))
        pairs = zip(queries.split(step), rows.split(step), strict=True)
        return torch.cat([(q[:, None] * bank[r]).sum(2) for q, r in pairs])
    queries, rows = queries.contiguous(), rows.contiguous()
    result = torch.empty(rows.shape)
    arrays = (result, queries, bank, rows)
    faiss.fvec_inner_products_by_idx(*(faiss.swig_ptr(array.numpy()) for array in arrays), bank.shape[1], *rows.shape)
    return result
