"""Time to cluster the neighbour lists of 1.2 million images, 32 neighbours each, on one core, and its peak memory.

Ours goes from the lists to pseudo-IDs. The peer is scipy's connected components, on the graph that ours keeps, prepared
beforehand. Both run in turn in one process. Peak memory is that of a process that runs only ours.

There is no search. People are synthetic: each has own embeddings, among which the nearest images are found; the rest of
a list are strangers. About 30 % of all entries lie above the similarity floor. 5 % of the images have one stranger
above that floor.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # one core; must be set before anything starts threads

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import MiningConfig
from app.mining.cluster import NONE_KNOWN, by_overlap, number
from app.mining.graph import weigh
from app.runtime.dist import World
from benchmarks._claims import Claim, in_turn, quick, report, seconds

K, FLOOR = 32, 0.45
ALONE = World(0, 1, torch.device("cpu"))
CONFIG = MiningConfig()
Lists = tuple[NDArray[np.int32], NDArray[np.float32]]


def planted_lists(n: int, seed: int) -> Lists:
    """Return lists [n, K] of ids and cosines, most similar first, of images in random order."""
    rng = np.random.default_rng(seed)
    cosine = np.sort(rng.uniform(0.2, FLOOR - 0.01, (n, K)).astype(np.float32), axis=1)[:, ::-1].copy()
    ids = rng.integers(0, n, (n, K)).astype(np.int32)
    start = 0
    while start < n:
        size = min(int(np.clip(rng.lognormal(1.7, 0.8), 1, 468)), n - start)
        person = rng.normal(size=(size, 32)).astype(np.float32) * rng.lognormal(0, 0.3, (size, 1)).astype(np.float32)
        x = person + rng.normal(size=32).astype(np.float32) * 1.3
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        alike = x @ x.T
        np.fill_diagonal(alike, -np.inf)
        order = np.argsort(-alike, axis=1)[:, : min(K, size - 1)]
        width = order.shape[1]
        ids[start : start + size, :width] = start + order
        cosine[start : start + size, :width] = np.take_along_axis(alike, order, 1)
        start += size
    bridged = rng.choice(n, n // 20, replace=False)
    ids[bridged, K - 1], cosine[bridged, K - 1] = rng.integers(0, n, len(bridged)), FLOOR + 0.01
    order = np.argsort(-cosine, axis=1, kind="stable")
    ids, cosine = np.take_along_axis(ids, order, 1), np.take_along_axis(cosine, order, 1)
    place = rng.permutation(n).astype(np.int32)  # a person's images are not adjacent in memory
    back = np.argsort(place)
    return place[ids][back], cosine[back]


def ours(lists: Lists) -> NDArray[np.int64]:
    raw = by_overlap(*lists, ALONE, CONFIG, FLOOR)
    return number(raw.labels, CONFIG.min_cluster, CONFIG.max_cluster)


def kept_edges(lists: Lists) -> NDArray[np.int32]:
    """Return the edges [2, E] above the floor that ours keeps of the lists, by rows."""
    ids, cosine = lists
    n = len(ids)
    degree, weight = (cosine >= FLOOR).sum(axis=1).astype(np.int32), np.zeros(ids.shape, np.uint16)
    everyone, group = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    weigh(ids, cosine, 0, ids, everyone, degree, degree == K, group, CONFIG.min_overlap, 0, weight, NONE_KNOWN)
    row, place = np.nonzero(weight)
    return np.stack([row, ids[row, place]]).astype(np.int32)


def kept_graph(lists: Lists) -> sparse.csr_array:
    """Return the edges that ours keeps of the lists, in scipy's format."""
    ids, cosine = lists
    edges, n = kept_edges(lists), len(ids)
    print(f"{n} images, {(cosine >= FLOOR).mean():.0%} of the entries above the floor, {edges.shape[1]} edges kept")
    return sparse.csr_array((np.ones(edges.shape[1], np.float32), tuple(edges)), shape=(n, n))


def peak_gib(folder: str) -> float:
    """Return the peak memory of a process that reads lists from `folder` and clusters them."""
    own = subprocess.run([sys.executable, __file__, folder], check=True, capture_output=True, text=True)
    return float(own.stdout) / 2**20


def main() -> int:
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        ours((np.load(Path(sys.argv[1]) / "ids.npy"), np.load(Path(sys.argv[1]) / "cosine.npy")))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB on Linux
        return 0
    is_quick = quick()
    n, rounds = (20_000, 2) if is_quick else (1_200_000, 5)
    torch.set_num_threads(1)
    lists = planted_lists(n, 0)
    graph = kept_graph(lists)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "ids.npy", lists[0])
        np.save(Path(folder) / "cosine.npy", lists[1])
        memory = peak_gib(folder)
    fast, slow, ratio = in_turn(
        lambda: 1 / seconds(lambda: ours(lists)),
        lambda: 1 / seconds(lambda: connected_components(graph, directed=False)),
        rounds,
    )
    print(f"ours {1 / fast:.2f} s, components {1 / slow:.2f} s")
    claims = [
        Claim("lists of 1.2M x 32 clustered, one core", 60 * fast, 60 * slow, "a minute", ratio, 1 / 15),
        Claim("peak memory (peer: the limit)", memory, 6.0, "GiB", 6.0 / memory, 1.0),
    ]
    return report("cluster_time", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
