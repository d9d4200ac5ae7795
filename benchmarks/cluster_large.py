"""Clustering of 10 million lists of 32 neighbours by one process and by two: memory, time of the cores, equal results.

Ours goes from the lists to pseudo-IDs above one floor; mining does that twice, above two floors. Each run starts new
processes, which read their share of the lists from a file and then work on one thread. Peak memory is the sum of
their peaks, with Python and torch. The peer is scipy's connected components, in a process of its own, on the edges
that ours keeps; its memory includes the graph in scipy's format.

There is no search. The lists are those of a million images of `cluster_time.py`, repeated. Strangers are drawn anew
among all images, and no person's images are adjacent. Time is that of the cores, because other processes may
share the machine.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # one core a process; must be set before anything starts threads

import hashlib
import json
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import NO_ID
from app.mining.cluster import by_overlap, number
from app.runtime.dist import World, share, world
from benchmarks._claims import Claim, core_seconds, quick, report
from benchmarks.cluster_time import CONFIG, FLOOR, K, kept_edges, planted_lists

PIECE, LIMIT_GIB, RANKS = 1_000_000, 16.0, (1, 2)
FLOORS = np.linspace(FLOOR, FLOOR - 0.1, K, dtype=np.float32)  # of a list: they fall, as those of similarity_floors
SIZES = (CONFIG.min_cluster, CONFIG.max_cluster)


def write_lists(folder: Path, n: int) -> None:
    """Write lists [n, K] to `folder`, in pieces."""
    rng = np.random.default_rng(0)
    place = rng.permutation(n).astype(np.int32)
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.int32, (n, K))
    cosine = np.lib.format.open_memmap(folder / "cosine.npy", "w+", np.float32, (n, K))
    near, alike = planted_lists(min(PIECE, n), seed=0)
    strangers = (alike < FLOOR) | (alike == np.float32(FLOOR + 0.01))  # the latter by mistake
    for rows in np.split(place, n // len(near)):
        ids[rows] = np.where(strangers, rng.integers(0, n, near.shape, np.int32), rows[near])
        cosine[rows] = alike


def read_share(folder: Path, name: str, here: World) -> np.ndarray:
    """Read this process's rows of an array into its memory."""
    whole = np.load(folder / f"{name}.npy", mmap_mode="r")
    rows = share(np.arange(len(whole)), here)
    first, count = (int(rows[0]), len(rows)) if len(rows) else (0, 0)
    values = np.fromfile(folder / f"{name}.npy", whole.dtype, count * K, offset=whole.offset + first * 4 * K)
    return values.reshape(count, K)


def cluster(folder: Path) -> dict[str, Any]:
    """Cluster as one process of those that the environment names, and measure it."""
    torch.set_num_threads(1)
    found: list[np.ndarray] = []
    with world() as here:
        ids, cosine = read_share(folder, "ids", here), read_share(folder, "cosine", here)

        def work() -> None:
            found.append(number(by_overlap(ids, cosine, here, CONFIG, FLOORS).labels, *SIZES))

        # The first call compiles its loops, on a machine where they are new.
        by_overlap(ids[:50] % 50, cosine[:50], here, CONFIG, FLOORS)
        spent = core_seconds(work)
    digest = hashlib.sha256(found[0].tobytes()).hexdigest()
    return {"core_s": spent, "peak_gib": peak_gib(), "ids": digest, "clusters": int(found[0].max(initial=NO_ID)) + 1}


def components(folder: Path) -> dict[str, Any]:
    """Find the connected components of the edges that ours keeps, and measure that."""
    graph = np.load(folder / "edges.npy", mmap_mode="r")
    n = len(np.load(folder / "ids.npy", mmap_mode="r"))
    ends = np.bincount(graph[0], minlength=n).cumsum(dtype=np.int64)
    matrix = sparse.csr_array((np.ones(graph.shape[1], np.float32), graph[1], np.append(0, ends)), shape=(n, n))
    spent = core_seconds(lambda: connected_components(matrix, directed=False))
    return {"core_s": spent, "peak_gib": peak_gib(), "edges": graph.shape[1]}


def write_edges(folder: Path) -> None:
    """Write the edges [2, E] above the first floor, by rows; in a process of its own, as it needs memory."""
    np.save(folder / "edges.npy", kept_edges((np.load(folder / "ids.npy"), np.load(folder / "cosine.npy"))))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def processes(what: str, folder: Path, size: int) -> list[dict[str, Any]]:
    """Run `size` connected processes of this script; return what each measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    argv = [sys.executable, __file__, what, str(folder)]
    started = [
        subprocess.Popen(argv, env={**group, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{what} with {size} processes failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measured(folder: Path, n: int) -> list[Claim]:
    write_lists(folder, n)
    runs = {size: processes("cluster", folder, size) for size in RANKS}
    processes("edges", folder, 1)
    peer = processes("components", folder, 1)[0]
    print(json.dumps({"runs": runs, "components": peer}, indent=1), flush=True)
    return judged(n, runs, peer)


def judged(n: int, runs: dict[int, list[dict[str, Any]]], peer: dict[str, Any]) -> list[Claim]:
    name, claims = f"{n:,} x {K}", []
    for size, ranks in runs.items():
        peak = sum(rank["peak_gib"] for rank in ranks)
        what = f"{name}, {size} process{'es' * (size > 1)}"
        claims.append(Claim(f"{what}: peak memory (peer: the limit)", peak, LIMIT_GIB, "GiB", LIMIT_GIB / peak, 1.0))
    alone = runs[1][0]
    same = sum(rank["ids"] == alone["ids"] for ranks in runs.values() for rank in ranks)
    every = sum(RANKS)
    return [
        *claims,
        Claim("processes with the pseudo-IDs of one", same, every, "processes", same / every, 1.0),
        Claim(
            f"{name}, ours (peer: components)",
            alone["core_s"],
            peer["core_s"],
            "s of a core",
            peer["core_s"] / alone["core_s"],
            1 / 60,
        ),
        Claim(
            "its peak memory (peer: components)",
            alone["peak_gib"],
            peer["peak_gib"],
            "GiB",
            peer["peak_gib"] / alone["peak_gib"],
            1 / 4,
        ),
    ]


def main() -> int:
    roles = {"cluster": cluster, "edges": write_edges, "components": components}
    if len(sys.argv) == 3 and sys.argv[1] in roles:
        print(json.dumps(roles[sys.argv[1]](Path(sys.argv[2]))))
        return 0
    is_quick = quick()
    with tempfile.TemporaryDirectory() as folder:
        claims = measured(Path(folder), 20_000 if is_quick else 10_000_000)
    return report("cluster_large", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
