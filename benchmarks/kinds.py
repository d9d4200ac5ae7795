"""Pseudo-IDs at default settings on synthetic identities of twelve kinds, against peers at their best settings.

The seed is odd: even seeds served to choose the method. The peers get the same exact lists of 32 neighbours; HDBSCAN,
average linkage and FINCH get the embeddings. The labels of the same set choose the peers' settings, and the level of
FINCH, which favours the peers. `one floor` is our method with a single cosine floor, where every edge needs overlap.

The `oracle` (`_oracle.py`) knows the true people, and assigns each image to the most probable one. No clustering can be
expected to do better. In few dimensions it fails too. The careful oracle leaves out doubtful images until its precision
is 95 %, where it can reach that.

Further sets: 20 people of 128 to 1,000 images, and the mix of `experiment=sniperface` (people of 72 and of 5 images).
There the peer is `one floor`.

`--images 20000 --levels medium --seed 13` measures all kinds with more images, at one level, in `kinds_20000.json`. The
peers that compare all pairs (ALL_PAIRS) are left out there.

scikit-learn (DBSCAN, HDBSCAN) and infomap (GPL) are no dependencies of the project, and only this comparison uses them:
pip install --target FOLDER scikit-learn infomap, then PYTHONPATH=FOLDER. A peer that is not installed is left out; the
claims name those that ran.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import NO_ID, MiningConfig
from app.mining.cluster import by_overlap, number, similarity_floors
from app.mining.gate import pair_f, pair_precision
from app.mining.pseudo_ids import find_pseudo_ids
from benchmarks._claims import Claim, report
from benchmarks._oracle import PRECISION, limits
from benchmarks._planted import KINDS, NOISE, Floats, Ints, of_sizes, plant
from benchmarks.clusters import ALONE, components, plain_propagation
from tests.app.support.nearest import nearest

DIM, SEED, IMAGES = 256, 11, 2000
LARGE = (128, 200, 300, 500, 1000)  # images of a person; a list has 32
MIX = [72] * 20 + [5] * 200
THRESHOLDS = np.arange(0.2, 0.9, 0.06)
PEERS = ("components", "chinese whispers", "DBSCAN", "HDBSCAN", "Infomap", "average linkage", "FINCH")
ALL_PAIRS = ("HDBSCAN", "average linkage", "FINCH")  # peers of which time and memory grow with the square
MOST_FOR_ALL_PAIRS = 5000  # images
Ids = NDArray[np.int64]
Thresholds = NDArray[np.floating]
Row = dict[str, float | str | int | bool]


def one_floor(x: Floats, ids: Ints, cosine: Floats, config: MiningConfig) -> Ids:
    """Return our pseudo-IDs with one floor for all ranks, where every edge needs `mining.min_overlap`.

    Lists have one entry more, which reaches no floor: no list is full, so no edge is excepted.
    """
    floor = float(similarity_floors(x[:2048], len(x), 1, config.false_edges_per_image)[0])
    ids, cosine = np.pad(ids, ((0, 0), (0, 1))), np.pad(cosine, ((0, 0), (0, 1)), constant_values=-np.inf)
    raw = by_overlap(ids, cosine, ALONE, config, floor)
    return number(raw.labels, config.min_cluster, config.max_cluster)


def dbscan(ids: Ints, cosine: Floats, thresholds: Thresholds) -> Iterator[Ids]:
    from sklearn.cluster import DBSCAN

    row = np.repeat(np.arange(len(ids)), ids.shape[1])
    distance = np.maximum(1 - cosine.ravel(), 1e-6)
    graph = sparse.csr_array((distance, (row, ids.ravel())), shape=(len(ids), len(ids)))
    graph = sparse.csr_matrix(graph.maximum(graph.T))
    for threshold in thresholds:
        for least in (2, 4):
            yield DBSCAN(eps=1 - threshold, min_samples=least, metric="precomputed").fit_predict(graph)


def hdbscan(x: Floats) -> Iterator[Ids]:
    from sklearn.cluster import HDBSCAN

    distance = np.sqrt(np.maximum(0, 2 - 2 * (x @ x.T).astype(np.float64)))
    np.fill_diagonal(distance, 0)
    for least in (2, 4):
        peer = HDBSCAN(min_cluster_size=least, min_samples=2, metric="precomputed", copy=True)
        yield peer.fit_predict(distance).astype(np.int64)


def infomap(ids: Ints, cosine: Floats, thresholds: Thresholds) -> Iterator[Ids]:
    from infomap import Infomap

    for threshold in thresholds[::3].tolist():
        row, place = np.nonzero(cosine >= threshold)
        graph = Infomap("--two-level --silent --seed 1")
        for a, b, weight in zip(row.tolist(), ids[row, place].tolist(), cosine[row, place].tolist(), strict=True):
            graph.add_link(a, b, weight)
        found = np.arange(len(ids)) + len(ids)  # an image without a link is alone
        if len(row):
            graph.run()
            for image, module in graph.get_modules().items():
                found[image] = module
        yield found


def average_linkage(x: Floats, thresholds: Thresholds) -> Iterator[Ids]:
    distance = np.maximum(0, 1 - (x @ x.T).astype(np.float64))
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    for threshold in thresholds:
        yield fcluster(tree, 1 - threshold, "distance").astype(np.int64)


def finch(x: Floats) -> Iterator[Ids]:
    """Yield the partitions of FINCH (Sarfraz et al. 2019): each cluster joins its nearest one, level by level."""
    found = np.arange(len(x))
    while True:
        count = int(found.max()) + 1
        means = np.zeros((count, x.shape[1]))
        np.add.at(means, found, x)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        alike = means @ means.T
        np.fill_diagonal(alike, -np.inf)
        edge = np.ones(count), (np.arange(count), alike.argmax(1))
        joined = connected_components(sparse.coo_array(edge, shape=(count, count)), directed=False)[1]
        if joined.max() == 0:
            return
        found = joined[found]
        yield found.astype(np.int64)


def settings(peer: str, x: Floats, ids: Ints, cosine: Floats, thresholds: Thresholds) -> Iterator[Ids]:
    """Yield the clusters of `peer` at each of its settings; `thresholds` are of a cosine."""
    if peer == "components":
        return (components(ids, cosine, t) for t in thresholds)
    if peer == "chinese whispers":
        return (plain_propagation(ids, cosine, t, mutual=False) for t in thresholds)
    if peer in ("DBSCAN", "Infomap"):
        return {"DBSCAN": dbscan, "Infomap": infomap}[peer](ids, cosine, thresholds)
    if peer == "average linkage":
        return average_linkage(x, thresholds)
    return {"HDBSCAN": hdbscan, "FINCH": finch}[peer](x)


def measure(kind: str, level: str, planted: tuple[Floats, Ints], peers: tuple[str, ...], quantiles: int = 0) -> Row:
    """Measure ours, `one floor` and `peers` on the embeddings and labels `planted`; print and return the row.

    The thresholds of the peers are THRESHOLDS, or so many `quantiles` of the cosines in the lists.
    """
    x, labels = planted
    n = len(x)
    config, nothing = MiningConfig(), np.full(n, NO_ID, np.int64)
    found, verdict = find_pseudo_ids(torch.from_numpy(x), nothing, labels, config, ALONE, seed=0)
    ids, cosine = nearest(x, np.arange(n), config.neighbours, threads=torch.get_num_threads(), backend="auto")
    thresholds = np.unique(np.quantile(cosine, np.linspace(0.02, 0.98, quantiles))) if quantiles else THRESHOLDS
    best = {peer: max(pair_f(each, labels) for each in settings(peer, x, ids, cosine, thresholds)) for peer in peers}
    row: Row = {
        "kind": kind,
        "level": level,
        "images": n,
        "ours": pair_f(found, labels),
        "precision": pair_precision(found, labels),
        "accepted": verdict.accepted,
        "one floor": pair_f(one_floor(x, ids, cosine, config), labels),
        **best,
    }
    print(*(f"{k} {v:.4f}" if isinstance(v, float) else f"{v!s:8}" for k, v in row.items()), flush=True)
    return row


def installed() -> tuple[str, ...]:
    """Return those of PEERS that can run here."""
    missing: set[str] = set()
    for package, names in (("sklearn", ("DBSCAN", "HDBSCAN")), ("infomap", ("Infomap",))):
        try:
            __import__(package)
        except ImportError:
            print(f"{package} is not installed: {' and '.join(names)} left out")
            missing.update(names)
    return tuple(peer for peer in PEERS if peer not in missing)


def main() -> int:
    asked = arguments()
    n = asked.images // 2 if asked.quick else asked.images
    peers = tuple(peer for peer in installed() if n <= MOST_FOR_ALL_PAIRS or peer not in ALL_PAIRS)
    if asked.images != IMAGES:
        rows = all_kinds(n, asked.levels, asked.seed, peers)
        return report(f"kinds_{asked.images}", claims(rows, peers), is_quick=asked.quick)
    seed = asked.seed
    large = [measure("large", str(size), of_sizes([size] * 20, 0.8, DIM, seed), ()) for size in LARGE]
    mix = [measure("mix", str(noise), of_sizes(MIX, noise, DIM, each), ()) for noise in (0.8, 1.15) for each in (1, 3)]
    rows = all_kinds(n, asked.levels, seed, peers)
    further = [
        *(percent(f"F, 20 people of {row['level']} images", [row], of("one floor"), 1.0) for row in large),
        percent("F, people of 72 and of 5 images", mix, of("one floor"), 1.0),
    ]
    return report("kinds", [*claims(rows, peers), *further], is_quick=asked.quick)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half as many images; writes no results file")
    parser.add_argument("--images", type=int, default=IMAGES, help="of each set")
    parser.add_argument("--levels", nargs="+", choices=tuple(NOISE), default=tuple(NOISE), help="of noise")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="of the generator; even ones served to choose the method"
    )
    return parser.parse_args()


def all_kinds(n: int, levels: Sequence[str], seed: int, peers: tuple[str, ...]) -> list[Row]:
    """Measure all kinds at `levels` of noise, `n` images each, and what the oracle reaches."""
    rows = []
    for kind, level in itertools.product(KINDS, levels):
        truth = plant(kind, n, level, DIM, seed)
        bound = limits(truth)
        row = measure(kind, level, (truth.images, truth.labels), peers)
        reached = {"oracle": bound.f, "oracle precision": bound.precision, "careful oracle": bound.careful_f}
        print(*(f"  {name} {value:.4f}" for name, value in reached.items()), flush=True)
        rows.append({**row, **reached})
    return rows


def percent(name: str, some: list[Row], peer: Callable[[Row], float], at_least: float, what: str = "ours") -> Claim:
    """Return the claim that the mean of `what` over `some` rows is `at_least` that share of the mean of `peer`."""
    ours = 100 * float(np.mean([float(row[what]) for row in some]))
    theirs = 100 * float(np.mean([peer(row) for row in some]))
    return Claim(name, ours, theirs, "%", ours / max(theirs, 1e-9), at_least)


def of(name: str) -> Callable[[Row], float]:
    return lambda row: float(row[name])


def claims(rows: list[Row], peers: tuple[str, ...]) -> list[Claim]:
    """Return claims on the mean over all sets, against each peer, and on each kind."""

    def best(row: Row) -> float:
        return max(float(row[peer]) for peer in peers)

    def whole(_: Row) -> float:
        return 1.0

    kinds = [(kind, [row for row in rows if row["kind"] == kind]) for kind in KINDS]
    return [
        percent(f"mean F against the best of {len(peers)} peers", rows, best, 1.0),
        *(percent(f"mean F against {name}", rows, of(name), 1.0) for name in ("one floor", *peers)),
        *(percent(f"F of {kind} against best peer", some, best, 0.85) for kind, some in kinds),
        *(percent(f"F of {kind} against one floor", some, of("one floor"), 0.99) for kind, some in kinds),
        *(percent(f"precision of {kind}", some, whole, PRECISION, "precision") for kind, some in kinds),
        *(
            percent(f"precision of {kind}, the oracle", some, whole, PRECISION, "oracle precision")
            for kind, some in kinds
        ),
        *(percent(f"F of {kind} against careful oracle", some, of("careful oracle"), 0.85) for kind, some in kinds),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
