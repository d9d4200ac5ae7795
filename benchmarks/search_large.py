"""Neighbour search within cells (`mining.search=ivf`) among a million embeddings of 256 numbers, against exact search.

People are synthetic: 40 images each on average, at the easy level of `_planted.py` (mutual cosine 0.6). At the medium
one (0.43) the 32 cells that a search reads at most held 97.4 % of the neighbours of 200,000. The time within cells is
that of the whole search: k-means, cells of all images, the choice of the number of cells, and the lists. Exact search
is our own, measured on a sample of the queries, before and after, and scaled to all: each takes the same time.

The advantage grows with N: it was 9.8 times at 500,000. Time is that of the cores, on one thread, because other
processes may share the machine. Recall is that of all 32 neighbours, on a sample against brute force. No GPU is
measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import MiningConfig
from app.mining.lists import Neighbours
from app.mining.sample import recall
from app.mining.search import searched
from app.runtime.dist import ALONE
from benchmarks._claims import Claim, core_seconds, quick, report
from benchmarks._planted import NOISE
from tests.app.support.nearest import nearest

DIM, IMAGES_EACH, K, MIN_RECALL = 256, 40, 32, 0.97


def people(count: int, noise: float) -> Tensor:
    """Return unit vectors [count, DIM], in random order."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(count // IMAGES_EACH, DIM, generator=generator)
    centres /= torch.linalg.vector_norm(centres, dim=1, keepdim=True)
    bank = centres[torch.randint(0, len(centres), (count,), generator=generator)]
    for part in bank.split(2**16):
        part += noise / DIM**0.5 * torch.randn(part.shape, generator=generator)
        part /= torch.linalg.vector_norm(part, dim=1, keepdim=True)
    return bank


def measured(count: int, sample: int, level: str) -> list[Claim]:
    bank = people(count, NOISE[level])
    rows, vectors = torch.arange(sample).numpy(), bank.numpy()
    found: list[Neighbours] = []

    def exact() -> float:
        return core_seconds(lambda: nearest(vectors, rows, K, threads=1, backend="auto")) * count / sample

    config = MiningConfig(neighbours=K, search="ivf", min_recall=MIN_RECALL)
    before = exact()
    within = core_seconds(lambda: found.append(searched(bank, config, None, ALONE)[0]))
    whole = (before + exact()) / 2
    share = recall(found[0], bank, ALONE, sample=1000, seed=3)
    print(f"{level}: within cells {within:.0f} s, exact {whole:.0f} s (scaled from {sample:,} queries)", flush=True)
    what = f"N={count:,}, D={DIM}, k={K}, {level}, one thread"
    return [
        Claim(f"search within cells, {what}", count / within, count / whole, "queries/s", whole / within, 10.0),
        Claim(f"its recall, {level}", share, 1.0, "share of neighbours", share, 0.98),
    ]


def main() -> int:
    is_quick = quick()
    torch.set_num_threads(1)
    count, sample = (20_000, 2_000) if is_quick else (1_000_000, 2_048)
    return report("search_large", measured(count, sample, "easy"), is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
