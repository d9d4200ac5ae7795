"""Quality of clusters of 200,000 synthetic embeddings, measured by pairs.

Ours, from embeddings to pseudo-IDs at the default settings, is compared with connected components at their best
threshold, label propagation by similarity, and HDBSCAN where it is installed. Components and propagation start from
exact lists of 32 neighbours.

The synthetic people have 1 to 468 images (log-normal) and come in families of look-alikes. Image quality is
heavy-tailed; poor images drift to one blurry direction. 1 % of the images are bridges: they lie between two people and
belong to the slightly nearer one. 5 % are junk, a cone around the blurry direction. Each junk image is a person of its
own in the ground truth, so joining them counts as wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import NO_ID, MiningConfig
from app.mining.cluster import propagate, similarity_floors
from app.mining.gate import pair_f
from app.mining.graph import FULL
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime.dist import World
from benchmarks._claims import Claim, quick, report
from tests.app.support.nearest import nearest

DIM, LARGEST = 128, 468
HDBSCAN_IMAGES = 20_000  # more takes HDBSCAN hours
ALONE = World(0, 1, torch.device("cpu"))
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


def unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def planted(n: int, seed: int) -> tuple[Floats, NDArray[np.int32]]:
    """Return unit embeddings [n, DIM] and the person of each."""
    rng = np.random.default_rng(seed)

    def noise(count: int) -> Floats:  # of length about 1
        return rng.normal(size=(count, DIM)).astype(np.float32) / np.float32(np.sqrt(DIM))

    bridges, junk = n // 100, n // 20
    faces = n - bridges - junk
    sizes = np.clip(rng.lognormal(2.9, 1.05, faces), 1, LARGEST).astype(np.int64)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), faces)]
    sizes = np.append(sizes, faces - sizes.sum())
    people = len(sizes)
    families = noise(people // 6 + 1)
    centres = unit(0.6 * families[rng.integers(0, len(families), people)] + 0.8 * noise(people))

    labels = np.repeat(np.arange(people), sizes)
    blur = unit(noise(1))
    spread = np.minimum(rng.lognormal(0, 0.3, (faces, 1)), 2.5).astype(np.float32)
    drift = np.clip(0.5 * (spread - 1.3), 0, 0.6)
    x = (1 - drift) * unit(centres[labels] + 0.75 * spread * noise(faces)) + drift * blur

    near, far = rng.integers(0, people, (2, bridges))
    share = rng.uniform(0.5, 0.65, (bridges, 1)).astype(np.float32)
    between = share * centres[near] + (1 - share) * centres[far] + 0.3 * noise(bridges)
    width = rng.uniform(0.5, 1.0, (junk, 1)).astype(np.float32)
    cone = blur + width * noise(junk) + 0.3 * centres[rng.integers(0, people, junk)]

    order = rng.permutation(n)
    labels = np.concatenate([labels, near, people + np.arange(junk)])
    return np.ascontiguousarray(unit(np.concatenate([x, between, cone]))[order]), labels[order].astype(np.int32)


def components(ids: NDArray[np.int32], cosine: Floats, threshold: float) -> Ids:
    row, place = np.nonzero(cosine >= threshold)
    graph = sparse.coo_array((np.ones(len(row), np.bool_), (row, ids[row, place])), shape=(len(ids), len(ids)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def plain_propagation(ids: NDArray[np.int32], cosine: Floats, floor: float, *, mutual: bool) -> Ids:
    """Label propagation by similarity alone, over all edges above the floor or only mutual ones."""
    degree = (cosine >= floor).sum(1).astype(np.int32)
    weight = np.where(cosine >= floor, cosine * FULL, 0).astype(np.uint16)
    if mutual:
        weight[~named_back(ids, cosine >= floor)] = 0
    return propagate(ids, degree, weight, 0, ALONE).astype(np.int64)


def named_back(ids: NDArray[np.int32], near: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which `near` entries [N, k] are mutual: the other image's list has this image, also as a `near` entry."""
    row, place = np.nonzero(near)
    key = row * len(ids) + ids[row, place]
    back = ids[row, place].astype(np.int64) * len(ids) + row
    both = np.zeros(ids.shape, np.bool_)
    both[row, place] = np.isin(back, key)
    return both


def main() -> int:
    is_quick = quick()
    n = 20_000 if is_quick else 200_000
    config = MiningConfig()
    x, labels = planted(n, 0)
    largest = int(np.bincount(labels).max())
    ids, cosine = nearest(x, np.arange(n), config.neighbours, threads=torch.get_num_threads(), backend="auto")
    floors = similarity_floors(x[:2048], n, config.neighbours, config.false_edges_per_image)
    floor = float(floors[0])
    print(f"{n} images, {labels.max() + 1 - n // 20} people, the largest of {largest}, floor {floor:.3f}")

    def measured(name: str, clusters: Ids, truth: NDArray[np.int32] = labels) -> float:
        f, size = pair_f(clusters, truth), np.bincount(clusters[clusters >= 0]).max()
        print(f"  {name:44} pairwise F {f:.4f}, largest {size}")
        return f

    def mined(x: Floats) -> Ids:
        none = np.full(len(x), NO_ID, np.int64)
        found, verdict = find_pseudo_ids(torch.from_numpy(x), none, None, config, ALONE, seed=0)
        print(f"  mining of {len(x)} images: {'used' if verdict.accepted else 'refused: ' + verdict.why}")
        return found

    found = mined(x)
    ours = measured("ours", found)
    ours_largest = int(np.bincount(found[found >= 0]).max())
    thresholds = np.arange(0.4, 0.86, 0.02)
    connected = 0.0
    for t in thresholds:
        both = np.where(named_back(ids, cosine >= t), cosine, -np.inf)
        connected = max(
            connected,
            measured(f"components, cosine >= {t:.2f}", components(ids, cosine, t)),
            measured(f"components, cosine >= {t:.2f}, mutual edges", components(ids, both, t)),
        )
    unweighted = max(
        measured("propagation by similarity", plain_propagation(ids, cosine, floor, mutual=False)),
        measured("propagation by similarity, mutual edges", plain_propagation(ids, cosine, floor, mutual=True)),
    )
    claims = [
        Claim("pairwise F of planted people, % (peer: truth)", 100 * ours, 100.0, "%", ours, 0.97),
        Claim(
            "largest cluster (peer: largest person)", ours_largest, largest, "images", largest / ours_largest, 1 / 1.2
        ),
        Claim("F against components, best threshold", 100 * ours, 100 * connected, "%", ours / connected, 1.0),
        Claim("F against propagation by similarity", 100 * ours, 100 * unweighted, "%", ours / unweighted, 1.0),
    ]
    try:
        from sklearn.cluster import HDBSCAN
    except ImportError:
        print("  HDBSCAN: not run, scikit-learn is not installed")
    else:
        some = slice(HDBSCAN_IMAGES)
        theirs = measured("HDBSCAN", HDBSCAN(min_cluster_size=2).fit_predict(x[some]).astype(np.int64), labels[some])
        here = measured("ours on the same", mined(x[some]), labels[some])
        claims.append(Claim("F against HDBSCAN, 20,000 images", 100 * here, 100 * theirs, "%", here / theirs, 1.0))
    return report("clusters", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
